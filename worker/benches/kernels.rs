//! Speed of the linear kernel: `cargo bench -p cosec-worker --bench kernels -- [SHAPE|FORMAT|ROWS|THREADS=N]...`.
//!
//! Prints for each matrix, format and number of rows: time, bytes of weights per second and their ratio to the
//! bandwidth that a plain sum over memory reaches in the same run, and floating-point operations per second. Matrices
//! take turns, so that no weight is still in a cache when it is read again.

use std::hint::black_box;
use std::time::Instant;

use candle_core::{Device, Tensor};
use cosec_worker::kernels::cpu::{CpuKernels, CpuMatrix};
use cosec_worker::kernels::{Kernels, WeightFormat};

/// Name, outputs and inputs: a llama of 1.3 B parameters, then CodeGen-350M with its head.
const SHAPES: [(&str, usize, usize); 8] = [
    ("llama-output", 2048, 2048),
    ("llama-up", 5504, 2048),
    ("llama-down", 2048, 5504),
    ("llama-head", 32_256, 2048),
    ("codegen-output", 1024, 1024),
    ("codegen-up", 4096, 1024),
    ("codegen-down", 1024, 4096),
    ("codegen-head", 51_200, 1024),
];

const FORMATS: [(&str, WeightFormat, f64); 5] = [
    ("f32", WeightFormat::F32, 32.0),
    ("bf16", WeightFormat::Bf16, 16.0),
    ("f16", WeightFormat::F16, 16.0),
    ("q8_0", WeightFormat::Q8_0, 8.5),
    ("q4_k", WeightFormat::Q4K, 4.625),
];

const ROWS: [usize; 14] = [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 32, 64, 512];

/// Bytes of weights in rotation: more than any cache holds.
const WORKING_SET: usize = 128 << 20;

fn main() -> anyhow::Result<()> {
    let filters: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let threads = filters.iter().find_map(|filter| filter.strip_prefix("THREADS=")?.parse().ok()).unwrap_or(0);
    let chosen = |known: &[&str], name: &str| {
        filters.iter().any(|filter| filter == name) || !filters.iter().any(|filter| known.contains(&filter.as_str()))
    };
    let chosen_rows: Vec<usize> = filters.iter().filter_map(|filter| filter.parse().ok()).collect();
    let kernels = CpuKernels::new(threads, None)?;
    let bandwidth = read_bandwidth(threads);
    println!("read bandwidth {:.1} GB/s", bandwidth / 1e9);
    for (shape, outputs, inputs) in SHAPES {
        if !chosen(&SHAPES.map(|shape| shape.0), shape) {
            continue;
        }
        for (name, format, bits) in FORMATS {
            if !chosen(&FORMATS.map(|format| format.0), name) {
                continue;
            }
            let bytes = (outputs * inputs) as f64 * bits / 8.0;
            let weights = Tensor::randn(0f32, 0.02, (outputs, inputs), &Device::Cpu)?;
            let copies = 0..(WORKING_SET as f64 / bytes).ceil() as usize;
            let matrices: Vec<CpuMatrix> =
                copies.map(|_| kernels.matrix(&weights, format)).collect::<Result<_, _>>()?;
            for rows in ROWS {
                if chosen_rows.is_empty() || chosen_rows.contains(&rows) {
                    let seconds = measure(&kernels, &matrices, rows, outputs, inputs)?;
                    let speed = bytes / seconds;
                    println!(
                        "{shape:14} {name:4} {rows:3} rows: {:9.1} us, {:5.1} GB/s, {:4.2} of bandwidth, {:6.1} GFLOP/s",
                        seconds * 1e6,
                        speed / 1e9,
                        speed / bandwidth,
                        2e-9 * (rows * outputs * inputs) as f64 / seconds,
                    );
                }
            }
        }
    }
    Ok(())
}

/// The fastest tenth of the runs: as many as fit into a fifth of a second, but at least five.
fn measure(
    kernels: &CpuKernels,
    matrices: &[CpuMatrix],
    rows: usize,
    outputs: usize,
    inputs: usize,
) -> anyhow::Result<f64> {
    let x: Vec<f32> = (0..rows * inputs).map(|i| (i as f32).sin()).collect();
    let mut out = kernels.buffer(rows * outputs)?;
    let start = Instant::now();
    let mut seconds = Vec::new();
    for weight in matrices.iter().cycle() {
        let run = Instant::now();
        kernels.linear(&x, rows, weight, None, &mut out);
        seconds.push(run.elapsed().as_secs_f64());
        if start.elapsed().as_secs_f64() > 0.2 && seconds.len() >= 5 {
            break;
        }
    }
    black_box(&out);
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 10])
}

/// Bytes per second of all threads adding up memory, the best of twelve rounds.
fn read_bandwidth(threads: usize) -> f64 {
    let threads = if threads == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { threads };
    let memory = vec![1_u64; WORKING_SET / 4];
    let round = |_| {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in memory.chunks(memory.len().div_ceil(threads)) {
                scope.spawn(move || black_box(sum(part)));
            }
        });
        (memory.len() * size_of::<u64>()) as f64 / start.elapsed().as_secs_f64()
    };
    (0..12).map(round).fold(0.0, f64::max)
}

fn sum(part: &[u64]) -> u64 {
    let mut lanes = [0_u64; 32];
    for part in part.as_chunks::<32>().0 {
        for lane in 0..32 {
            lanes[lane] = lanes[lane].wrapping_add(part[lane]);
        }
    }
    lanes.into_iter().fold(0, u64::wrapping_add)
}
