//! Views of logits on a GPU have the bits of the host's.

use cosec_proto::LogitsView;
use cosec_proto::sampling::SamplingParams;
use cosec_worker::kernels::Kernels;
use cosec_worker::kernels::cpu::CpuKernels;
use cosec_worker::logits_view::{LogitsTask, TaskResult};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::{upload, with_gpu, with_seeds};

/// Views of a row by their indices, and a draw.
type Wanted = (Vec<(usize, LogitsView)>, Option<(SamplingParams, f64)>);

fn task<'a>((views, draw): &'a Wanted, found: &'a mut TaskResult) -> LogitsTask<'a> {
    LogitsTask { views, draw: *draw, keep: true, found }
}

/// What `kernels` take of the rows of `logits`, and again of the rows that they kept.
fn read<K: Kernels>(kernels: &K, vocabulary: usize, logits: &[f32], rows: &[Wanted]) -> Vec<TaskResult> {
    let mut found: Vec<TaskResult> = (0..2 * rows.len()).map(|_| TaskResult::default()).collect();
    let (first, again) = found.split_at_mut(rows.len());
    let mut tasks: Vec<LogitsTask<'_>> = rows.iter().zip(&mut *first).map(|(row, found)| task(row, found)).collect();
    kernels.read_rows(&upload(kernels, logits), vocabulary, &mut tasks).unwrap();
    for ((row, kept), found) in rows.iter().zip(first).zip(again) {
        if let Some(kept) = &kept.kept {
            kernels.read_kept(kept, &mut LogitsTask { keep: false, ..task(row, found) }).unwrap();
        }
    }
    found
}

fn random_row(rng: &mut StdRng, vocabulary: usize) -> Vec<f32> {
    let spread = [0.1, 3.0, 10.0, 200.0][rng.random_range(0..4)];
    // A few large logits, as in a real model.
    let peak = rng.random_range(0.0..4.0) * spread;
    let mut row: Vec<f32> = (0..vocabulary)
        .map(|_| rng.random_range(-spread..spread) + if rng.random_ratio(1, 50) { peak } else { 0.0 })
        .collect();
    match rng.random_range(0..10) {
        0 => row.iter_mut().for_each(|logit| *logit = logit.round()),
        1 => row.iter_mut().for_each(|logit| *logit = if *logit < 0.0 { f32::NEG_INFINITY } else { *logit }),
        2 => row[rng.random_range(0..vocabulary)] = f32::NAN,
        3 => row[rng.random_range(0..vocabulary)] = f32::INFINITY,
        4 => row.fill([f32::NEG_INFINITY, -0.0, 1.5][rng.random_range(0..3)]),
        _ => {}
    }
    row
}

fn random_warp(rng: &mut StdRng) -> SamplingParams {
    let temperature = [0.0, 1.0, 1.0, 0.4, rng.random_range(0.01..2.0), 1e-300, 1e300][rng.random_range(0..7)];
    let top_p = [1.0, 1.0, 0.95, 0.5, rng.random_range(0.001..1.0), 1.0 - 1e-12][rng.random_range(0..6)];
    let top_k = [0, 0, 0, 1, 40, rng.random_range(1..10_000)][rng.random_range(0..6)];
    SamplingParams::new(temperature, top_p, top_k).unwrap()
}

fn random_view(rng: &mut StdRng, vocabulary: usize, warp: SamplingParams) -> LogitsView {
    match rng.random_range(0..16) {
        0 => LogitsView::Full,
        1..6 => {
            let count = rng.random_range(0..6);
            LogitsView::Gather {
                sampling: warp,
                ids: (0..count).map(|_| rng.random_range(0..vocabulary as u32)).collect(),
            }
        }
        6..11 => LogitsView::Nucleus { sampling: warp, cap: [1, 5, 300, 4096, 100_000][rng.random_range(0..5)] },
        _ => LogitsView::Sample { sampling: warp, u: random_u(rng) },
    }
}

fn random_u(rng: &mut StdRng) -> f64 {
    [0.0, 1.0 - f64::EPSILON / 2.0, rng.random_range(0.0..1.0), rng.random_range(0.0..1.0)][rng.random_range(0..4)]
}

/// Compares some random rows of `vocabulary`.
fn check(rng: &mut StdRng, vocabulary: usize) {
    let rows: Vec<Wanted> = (0..rng.random_range(1..6))
        .map(|_| {
            let warps = [random_warp(rng), random_warp(rng)];
            let count = rng.random_range(0..4);
            let views = (0..count).map(|index| {
                let warp = warps[rng.random_range(0..2)];
                (index, random_view(rng, vocabulary, warp))
            });
            (views.collect(), rng.random_bool(0.5).then(|| (warps[0], random_u(rng))))
        })
        .collect();
    let logits: Vec<f32> = rows.iter().flat_map(|_| random_row(rng, vocabulary)).collect();
    let expected = read(&CpuKernels::default(), vocabulary, &logits, &rows);
    with_gpu(|cuda| {
        for (index, (found, expected)) in read(cuda, vocabulary, &logits, &rows).iter().zip(&expected).enumerate() {
            let wanted = &rows[index % rows.len()];
            // NaN does not equal itself.
            let invalid = [found, expected].map(|found| format!("{:?}", found.invalid));
            assert_eq!(invalid[0], invalid[1], "{vocabulary} tokens, {wanted:?}");
            assert_eq!(found.kept.is_some(), expected.kept.is_some(), "{vocabulary} tokens, {wanted:?}");
            if found.invalid.is_none() {
                assert_eq!(found.views, expected.views, "{vocabulary} tokens, {wanted:?}");
                assert_eq!(found.drawn, expected.drawn, "{vocabulary} tokens, {wanted:?}");
            }
        }
    });
}

#[test]
#[ignore = "needs a GPU, or the stand-in that tests/run gives it"]
fn rows_have_the_bits_of_the_host() {
    with_seeds(|rng| {
        for most in [5, 600, 5_000, 60_000] {
            let vocabulary = rng.random_range(1..=most);
            check(rng, vocabulary);
        }
    });
    check(&mut StdRng::seed_from_u64(rand::random()), 151_936);
}
