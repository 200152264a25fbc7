//! Specific to a GPU's kernels: programs compiled at start, ragged batches, deferred failures.

use cosec_worker::kernels::cuda::program::{PROGRAMS, compiled};
use cosec_worker::kernels::reference::ReferenceKernels;
use cosec_worker::kernels::{AttentionHeads, CacheFormat, CacheShape, Kernels, TokenPlace};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::{upload, with_gpu};

const HEADS: AttentionHeads = AttentionHeads { query: 4, kv: 2, width: 6 };
const SHAPE: CacheShape =
    CacheShape { layers: 2, blocks: 40, block_tokens: 4, kv_width: 12, format: CacheFormat::F32 };

/// Rows of one sequence that are new in a step.
struct Chunk {
    start: usize,
    rows: usize,
    blocks: Vec<u32>,
}

/// Attention's results for the rows of each step, layer by layer.
fn attended<K: Kernels>(kernels: &K, steps: &[(Vec<Chunk>, Vec<f32>)], windows: [Option<usize>; 2]) -> Vec<f32> {
    let mut cache = kernels.cache(SHAPE).unwrap();
    let mut all = Vec::new();
    for (chunks, values) in steps {
        let rows = |chunk: &'_ Chunk| chunk.start..chunk.start + chunk.rows;
        let places: Vec<TokenPlace<'_>> = chunks
            .iter()
            .flat_map(|chunk| rows(chunk).map(|position| TokenPlace { position, blocks: &chunk.blocks }))
            .collect();
        let mut qkv = kernels.buffer(values.len()).unwrap();
        kernels.write(values, &mut qkv).unwrap();
        for (layer, window) in windows.into_iter().enumerate() {
            let mut found = vec![0.0; places.len() * HEADS.query_width()];
            let mut out = kernels.buffer(found.len()).unwrap();
            kernels.append(&qkv, HEADS, &places, &mut cache, layer);
            kernels.attend(&qkv, HEADS, window, &places, (&cache, layer), &mut out);
            kernels.read(&out, &mut found).unwrap();
            all.extend(found);
        }
    }
    all
}

/// Sequences that grow by chunks of different sizes, in batches of changing order, whatever fits at a time.
#[test]
#[ignore = "needs a GPU, or the stand-in that tests/run gives it"]
fn ragged_batches_agree_whatever_fits() {
    let seed: u64 = rand::random();
    let rng = &mut StdRng::seed_from_u64(seed);
    let mut blocks: Vec<u32> = (0..40).collect();
    blocks.shuffle(rng);
    let mut lengths = [0; 5];
    let steps: Vec<_> = (0..6)
        .map(|_| {
            let mut order: Vec<usize> = (0..5).collect();
            order.shuffle(rng);
            let mut chunks = Vec::new();
            for sequence in order {
                let rows = *[0, 1, 1, 2, 5].get(rng.random_range(0..5)).unwrap();
                if rows > 0 {
                    let blocks = blocks[8 * sequence..][..8].to_vec();
                    chunks.push(Chunk { start: lengths[sequence], rows, blocks });
                    lengths[sequence] += rows;
                }
            }
            let rows: usize = chunks.iter().map(|chunk| chunk.rows).sum();
            let values = (0..rows * HEADS.qkv_width()).map(|_| rng.random_range(-2.0..2.0)).collect();
            (chunks, values)
        })
        .filter(|(chunks, _): &(Vec<Chunk>, Vec<f32>)| !chunks.is_empty())
        .collect();
    let windows = [None, Some(rng.random_range(1..12))];
    let expected = attended(&ReferenceKernels, &steps, windows);
    with_gpu(|cuda| {
        let found = attended(cuda, &steps, windows);
        let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(found.len() == expected.len() && worst < 2e-5, "seed {seed}: {worst}");
    });
}

/// Memory after a sequence's end may belong to another.
#[test]
#[ignore = "needs a GPU, or the stand-in that tests/run gives it"]
fn a_broken_sequence_breaks_no_other() {
    with_gpu(|cuda| {
        let chunk = |rows, block, start| Chunk { start, rows, blocks: vec![block] };
        let values = |rows: usize, value: f32| vec![value; rows * HEADS.qkv_width()];
        let steps = [
            (vec![chunk(3, 0, 0)], values(3, f32::NAN)),
            (vec![chunk(3, 1, 0)], values(3, 1.0)),
            (vec![chunk(1, 0, 3), chunk(1, 1, 3), chunk(1, 2, 0)], [values(1, f32::NAN), values(2, 1.0)].concat()),
        ];
        let found = attended(cuda, &steps, [None, Some(2)]);
        let last = &found[found.len() - 3 * HEADS.query_width()..];
        assert!(last[..HEADS.query_width()].iter().all(|value| value.is_nan()));
        assert!(last[HEADS.query_width()..].iter().all(|value| (value - 1.0).abs() < 1e-6), "{last:?}");
    });
}

/// The next read reports the failure, once.
#[test]
#[ignore = "needs a GPU, or the stand-in that tests/run gives it"]
fn a_gpu_keeps_the_first_failure() {
    with_gpu(|cuda| {
        let out = upload(cuda, &[7.0; 2]);
        let mut values = [0.0; 3];
        let error = cuda.read(&out, &mut values).unwrap_err().to_string();
        assert!(error.contains("3 numbers are read of 2"), "{error}");
        assert_eq!((cuda.read(&out, &mut values[..2]), &values[..2]), (Ok(()), [7.0; 2].as_slice()));
        let shape = CacheShape { blocks: 1 << 30, ..SHAPE };
        assert!(cuda.cache(shape).is_err());
    });
}

/// Needs NVRTC but no GPU. Compiles for A100, the oldest supported GPU, and H100.
#[test]
#[ignore = "needs libnvrtc, which tests/run installs"]
fn programs_compile_for_every_gpu() {
    let capabilities = [(8, 0), (9, 0)];
    for (index, capability) in capabilities.into_iter().enumerate() {
        // All for the newest, one format for the others.
        let programs = if index + 1 == capabilities.len() { &PROGRAMS[..] } else { &PROGRAMS[..4] };
        for &program in programs {
            let began = std::time::Instant::now();
            let code =
                compiled(program, capability).unwrap_or_else(|error| panic!("{program:?} {capability:?}: {error}"));
            println!(
                "{program:?} for {capability:?}: {} bytes in {:.1} s",
                code.len(),
                began.elapsed().as_secs_f64()
            );
            assert!(code.starts_with(b"\x7fELF"));
        }
    }
}
