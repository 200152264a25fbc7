//! What only a GPU's kernels do: programs that are compiled at start, ragged batches side by side, failures that wait.

use cosec_proto::draw::Warp;
use cosec_worker::kernels::cpu::Cpu;
use cosec_worker::kernels::cuda::program::{PROGRAMS, compiled};
use cosec_worker::kernels::reference::Reference;
use cosec_worker::kernels::{CacheFormat, CacheShape, Heads, Kernels, Place};
use cosec_worker::rows::{Found, Precision, RowTask, View};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::{on_gpu, upload};

const HEADS: Heads = Heads { query: 4, kv: 2, width: 6 };
const SHAPE: CacheShape =
    CacheShape { layers: 2, blocks: 40, block_tokens: 4, kv_width: 12, format: CacheFormat::F32 };

/// Rows of one sequence that are new in a step.
struct Chunk {
    start: usize,
    rows: usize,
    blocks: Vec<u32>,
}

/// What attention finds for the rows of each step, layer after layer.
fn attended<K: Kernels>(kernels: &K, steps: &[(Vec<Chunk>, Vec<f32>)], windows: [Option<usize>; 2]) -> Vec<f32> {
    let mut cache = kernels.cache(SHAPE).unwrap();
    let mut all = Vec::new();
    for (chunks, values) in steps {
        let rows = |chunk: &'_ Chunk| chunk.start..chunk.start + chunk.rows;
        let places: Vec<Place<'_>> = chunks
            .iter()
            .flat_map(|chunk| rows(chunk).map(|position| Place { position, blocks: &chunk.blocks }))
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
    let expected = attended(&Reference, &steps, windows);
    on_gpu(|cuda| {
        let found = attended(cuda, &steps, windows);
        let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(found.len() == expected.len() && worst < 2e-5, "seed {seed}: {worst}");
    });
}

/// What lies behind a sequence's end may be another's.
#[test]
fn a_broken_sequence_breaks_no_other() {
    on_gpu(|cuda| {
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

/// What is wanted of a row.
type Wanted = (Vec<(usize, View)>, Warp);

fn task<'a>((views, warp): &'a Wanted, found: &'a mut Found) -> RowTask<'a> {
    RowTask { views, draw: Some((*warp, 0.7)), keep: true, found }
}

/// What `kernels` take of the rows of `logits`, and again of the rows that they kept.
fn read<K: Kernels>(kernels: &K, vocabulary: usize, logits: &[f32], rows: &[Wanted]) -> Vec<Found> {
    let mut found: Vec<Found> = (0..2 * rows.len()).map(|_| Found::default()).collect();
    let (first, again) = found.split_at_mut(rows.len());
    let mut tasks: Vec<RowTask<'_>> = rows.iter().zip(&mut *first).map(|(row, found)| task(row, found)).collect();
    kernels.read_rows(&upload(kernels, logits), vocabulary, &mut tasks).unwrap();
    for ((row, kept), found) in rows.iter().zip(first).zip(again) {
        if let Some(kept) = &kept.kept {
            kernels.read_kept(kept, &mut RowTask { keep: false, ..task(row, found) }).unwrap();
        }
    }
    found
}

#[test]
fn rows_are_read_with_the_bits_of_the_host() {
    let seed: u64 = rand::random();
    let rng = &mut StdRng::seed_from_u64(seed);
    for vocabulary in [1, 300, 2048, 51_200, 151_936] {
        let nucleus = Warp::new(1.0, 0.95, 0).unwrap();
        let warps =
            [Warp::RAW, Warp::GREEDY, nucleus, Warp::new(0.4, 0.9, 50).unwrap(), Warp::new(0.7, 1.0, 0).unwrap()];
        let rows: Vec<Wanted> = (0..12)
            .map(|row| {
                let warp = warps[row % warps.len()];
                let ids = (0..3).map(|_| rng.random_range(0..vocabulary as u32)).collect();
                let sample = View::Sample { warp, u: rng.random_range(0.0..1.0) };
                let mut views = vec![View::Gather { warp, ids }, View::Nucleus { warp, cap: 200 }, sample];
                views.extend((row == 11).then_some(View::Full(Precision::F16)));
                (views.into_iter().enumerate().collect(), warps[rng.random_range(0..warps.len())])
            })
            .collect();
        let mut logits: Vec<f32> = (0..rows.len() * vocabulary)
            .map(|_| rng.random_range(-9.0..9.0) + if rng.random_ratio(1, 100) { 9.0 } else { 0.0 })
            .collect();
        logits[5 * vocabulary + vocabulary / 2] = f32::INFINITY;
        let expected = read(&Cpu::default(), vocabulary, &logits, &rows);
        on_gpu(|cuda| {
            for (found, expected) in read(cuda, vocabulary, &logits, &rows).iter().zip(&expected) {
                assert_eq!(found.invalid, expected.invalid, "seed {seed}");
                assert_eq!(found.kept.is_some(), expected.kept.is_some(), "seed {seed}");
                if found.invalid.is_none() {
                    assert_eq!((&found.contents, found.drawn), (&expected.contents, expected.drawn), "seed {seed}");
                }
            }
        });
    }
}

/// The failure waits for whoever reads next, and is told once.
#[test]
fn a_gpu_keeps_the_first_failure() {
    on_gpu(|cuda| {
        let out = upload(cuda, &[7.0; 2]);
        let mut values = [0.0; 3];
        let error = cuda.read(&out, &mut values).unwrap_err().to_string();
        assert!(error.contains("3 numbers are read of 2"), "{error}");
        assert_eq!((cuda.read(&out, &mut values[..2]), &values[..2]), (Ok(()), [7.0; 2].as_slice()));
        let shape = CacheShape { blocks: 1 << 30, ..SHAPE };
        assert!(cuda.cache(shape).is_err());
    });
}

/// Needs NVRTC and no GPU: A100, which is the oldest that the kernels are for, and H100.
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
