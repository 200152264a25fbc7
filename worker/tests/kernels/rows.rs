//! Selecting rows, looking them up and adding to them.

use std::ops::Range;

use candle_core::Tensor;
use cosec_worker::kernels::cpu::CpuKernels;
use cosec_worker::kernels::reference::ReferenceKernels;
use cosec_worker::kernels::{Kernels, WeightFormat};
use rand::Rng;
use rand::seq::SliceRandom;

use crate::{Compute, FORMATS, check, check_cpu, compare, download, matrix, on_gpu, random, upload, with_seeds};

#[test]
fn selected_and_embedded_rows_are_exact() {
    let (cpu, table) = (CpuKernels::default(), [1.0, -2.5, 3.0, 0.25, 7.0, -0.5]);
    for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::F16] {
        let mut out = cpu.buffer(4).unwrap();
        cpu.embed(&cpu.matrix(&matrix(&table, 3), format).unwrap(), &[2, 0], &mut out);
        assert_eq!(out, [7.0, -0.5, 1.0, -2.5]);
        cpu.select(&table.to_vec(), 2, &[1, 1], &mut out);
        assert_eq!(out, [3.0, 0.25, 3.0, 0.25]);
    }
}

struct Embedded(Tensor, WeightFormat, Vec<u32>);

impl Compute for Embedded {
    fn with<K: Kernels>(&self, kernels: &K) -> Vec<f32> {
        let Self(table, format, ids) = self;
        let len = ids.len() * table.dims()[1];
        let mut out = kernels.buffer(len).unwrap();
        kernels.embed(&kernels.matrix(table, *format).unwrap(), ids, &mut out);
        download(kernels, &out, len)
    }
}

/// One rounding of the difference in Q4_K; the others are exact.
#[test]
fn embedded_rows_are_what_the_blocks_stand_for() {
    with_seeds(|rng| {
        for format in FORMATS {
            let (rows, width) = (rng.random_range(1..40), rng.random_range(1..600));
            let ids = (0..5).map(|_| rng.random_range(0..rows as u32)).collect();
            let embedded = Embedded(matrix(&random(rng, rows * width), rows), format, ids);
            check_cpu(2e-7, &embedded);
            // A GPU keeps the product of Q4_K's scales in f16.
            let tolerance = if format == WeightFormat::Q4K { 2e-3 } else { 2e-7 };
            on_gpu(|cuda| compare("cuda", tolerance, &embedded.with(cuda), &embedded.with(&ReferenceKernels)));
        }
    });
}

/// Selects rows, and adds to some of the columns of some rows.
struct Updated {
    x: Vec<f32>,
    width: usize,
    rows: Vec<usize>,
    columns: Range<usize>,
    y: Vec<f32>,
}

impl Compute for Updated {
    fn with<K: Kernels>(&self, kernels: &K) -> Vec<f32> {
        let Self { x, width, rows, columns, y } = self;
        let mut sum = upload(kernels, x);
        kernels.add_rows(&mut sum, *width, rows, columns.clone(), &upload(kernels, y));
        kernels.add_rows(&mut sum, *width, &[], columns.clone(), &upload(kernels, y));
        let mut picked = kernels.buffer(rows.len() * width).unwrap();
        kernels.select(&sum, *width, rows, &mut picked);
        kernels.select(&sum, *width, &[], &mut picked);
        [download(kernels, &sum, x.len()), download(kernels, &picked, rows.len() * width)].concat()
    }
}

#[test]
fn updated_rows_agree() {
    with_seeds(|rng| {
        let (count, width) = (rng.random_range(1..20), rng.random_range(1..50));
        let mut rows: Vec<usize> = (0..count).collect();
        rows.shuffle(rng);
        rows.truncate(rng.random_range(1..=count));
        let first = rng.random_range(0..width);
        let columns = first..rng.random_range(first + 1..=width);
        let y = random(rng, rows.len() * columns.len());
        check(1e-6, Updated { x: random(rng, count * width), width, rows, columns, y });
    });
}
