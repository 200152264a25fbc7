//! What only the kernels over tensors do: ragged batches in whatever fits, and failures that wait.

use cosec_worker::kernels::reference::Reference;
use cosec_worker::kernels::{Activation, CacheFormat, CacheShape, Heads, Kernels, Place};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::{candle, upload};

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
    for attention_elements in [1, 100, 700, 1 << 27] {
        let kernels = candle().with_attention_elements(attention_elements);
        let found = attended(&kernels, &steps, windows);
        let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(found.len() == expected.len() && worst < 2e-5, "seed {seed}, {attention_elements}: {worst}");
    }
}

/// Padding must not carry what another sequence left behind.
#[test]
fn a_broken_sequence_breaks_no_other() {
    let kernels = candle();
    let chunk = |rows, block, start| Chunk { start, rows, blocks: vec![block] };
    let values = |rows: usize, value: f32| vec![value; rows * HEADS.qkv_width()];
    let steps = [
        (vec![chunk(3, 0, 0)], values(3, f32::NAN)),
        (vec![chunk(3, 1, 0)], values(3, 1.0)),
        (vec![chunk(1, 0, 3), chunk(1, 1, 3), chunk(1, 2, 0)], [values(1, f32::NAN), values(2, 1.0)].concat()),
    ];
    let found = attended(&kernels, &steps, [None, Some(2)]);
    let last = &found[found.len() - 3 * HEADS.query_width()..];
    assert!(last[..HEADS.query_width()].iter().all(|value| value.is_nan()));
    assert!(last[HEADS.query_width()..].iter().all(|value| (value - 1.0).abs() < 1e-6), "{last:?}");
}

/// The failure waits for whoever reads next, and is told once.
#[test]
fn candle_keeps_the_first_failure() {
    let kernels = candle();
    let (short, mut out) = (upload(&kernels, &[1.0; 3]), upload(&kernels, &[7.0; 2]));
    kernels.activate(Activation::Silu, &mut out, 3);
    kernels.add(&mut out, &short, 2);
    let mut values = [0.0; 2];
    assert!(kernels.read(&out, &mut values).unwrap_err().to_string().contains("device: "));
    assert_eq!((kernels.read(&out, &mut values), values), (Ok(()), [8.0; 2]));
    kernels.activate(Activation::Silu, &mut out, 3);
    assert!(kernels.read(&out, &mut []).is_err());
    assert!(
        kernels
            .cache(CacheShape { layers: 1, blocks: 1 << 30, block_tokens: 8, kv_width: 0, format: CacheFormat::F32 })
            .is_err()
    );
}
