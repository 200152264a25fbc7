//! A row of logits has the same bits however its sequence was chunked, whatever else is in the batch and wherever its
//! blocks are.

use cosec_worker::model::{BatchItem, ForwardError, ModelRunner};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::{ALL, golden, options};

pub(crate) const BLOCKS: usize = 200;

fn load(name: &str, block_tokens: usize) -> ModelRunner {
    ModelRunner::load(&golden(name), &options(BLOCKS, block_tokens)).unwrap()
}

/// All rows of one sequence in one pass.
pub(crate) fn whole(model: &mut ModelRunner, tokens: &[u32], blocks: &[u32]) -> Vec<Vec<f32>> {
    let item = BatchItem { tokens, start: 0, blocks, rows: 0..tokens.len(), adapter: None };
    let logits = model.forward(&[item]).unwrap();
    (0..logits.len()).map(|row| logits.row(row).to_vec()).collect()
}

/// Tokens of a few sequences, and 20 blocks for each.
pub(crate) fn random_sequences(model: &ModelRunner, rng: &mut StdRng) -> Vec<(Vec<u32>, Vec<u32>)> {
    let vocabulary = model.description().vocabulary as u32;
    let mut free: Vec<u32> = (0..BLOCKS as u32).collect();
    free.shuffle(rng);
    let mut sequence = || {
        let length = rng.random_range(1..60);
        let tokens = (0..length).map(|_| rng.random_range(0..vocabulary)).collect();
        (tokens, free.split_off(free.len() - 20))
    };
    (0..4).map(|_| sequence()).collect()
}

/// All rows of several sequences, fed in random chunks that ride in common batches.
pub(crate) fn ragged(
    model: &mut ModelRunner,
    sequences: &[(Vec<u32>, Vec<u32>)],
    rng: &mut StdRng,
) -> Vec<Vec<Vec<f32>>> {
    let mut found = vec![Vec::new(); sequences.len()];
    while found.iter().zip(sequences).any(|(rows, (tokens, _))| rows.len() < tokens.len()) {
        let mut batch = Vec::new();
        let mut owners = Vec::new();
        for (index, (tokens, blocks)) in sequences.iter().enumerate() {
            let start = found[index].len();
            if start < tokens.len() && rng.random_range(0..3) > 0 {
                let count = rng.random_range(1..=(tokens.len() - start).min(6));
                batch.push(BatchItem {
                    tokens: &tokens[start..start + count],
                    start,
                    blocks,
                    rows: 0..count,
                    adapter: None,
                });
                owners.extend(std::iter::repeat_n(index, count));
            }
        }
        let logits = model.forward(&batch).unwrap();
        assert_eq!(logits.len(), owners.len());
        for (row, owner) in owners.into_iter().enumerate() {
            found[owner].push(logits.row(row).to_vec());
        }
    }
    found
}

#[test]
fn chunks_company_and_blocks_change_no_bit() {
    for name in ALL {
        let seed: u64 = rand::random();
        let rng = &mut StdRng::seed_from_u64(seed);
        let mut models = [load(name, 16), load(name, 3)];
        let sequences = random_sequences(&models[0], rng);
        let ragged = ragged(&mut models[1], &sequences, rng);
        for ((tokens, _), ragged) in sequences.iter().zip(ragged) {
            let blocks: Vec<u32> = (0..4).collect();
            let expected = whole(&mut models[0], tokens, &blocks);
            assert!(expected == ragged, "{name}, seed {seed}: a ragged batch differs");
            for (position, expected) in expected.iter().enumerate() {
                let tokens = &tokens[position..=position];
                let item = BatchItem { tokens, start: position, blocks: &blocks, rows: 0..1, adapter: None };
                let alone = models[0].forward(&[item]).unwrap();
                assert!(alone.row(0) == expected, "{name}, seed {seed}: token {position} alone differs");
            }
        }
    }
}

#[test]
fn a_truncated_cache_is_overwritten() {
    let mut model = load("codegen", 4);
    let blocks: Vec<u32> = (10..20).collect();
    let expected = whole(&mut model, &[5, 6, 7, 8, 9], &blocks);
    whole(&mut model, &[5, 6, 90, 91, 92, 93], &blocks);
    let item = BatchItem { tokens: &[7, 8, 9], start: 2, blocks: &blocks, rows: 2..3, adapter: None };
    assert_eq!(model.forward(&[item]).unwrap().row(0), expected[4]);
}

#[test]
fn rows_may_be_left_out() {
    let mut model = load("llama-gqa-tied", 4);
    let item = |rows| BatchItem { tokens: &[1, 2, 3], start: 0, blocks: &[0], rows, adapter: None };
    assert!(model.forward(&[item(0..0)]).unwrap().is_empty());
    assert!(model.forward(&[]).unwrap().is_empty());
    let all = model.forward(&[item(0..3)]).unwrap().row(1).to_vec();
    assert_eq!(model.forward(&[item(1..2)]).unwrap().row(0), all);
}

#[test]
fn impossible_items_are_refused() {
    let mut model = load("llama-gqa-tied", 4);
    let description = model.description().clone();
    let good = BatchItem { tokens: &[1, 2, 3], start: 1, blocks: &[0], rows: 0..3, adapter: None };
    let long = vec![1; description.context_tokens + 1];
    let long_blocks: Vec<u32> = (0..BLOCKS as u32).collect();
    let outside = [description.vocabulary as u32];
    #[expect(clippy::reversed_empty_ranges, reason = "what a broken caller may pass")]
    let backwards = 2..1;
    for (bad, field) in [
        (BatchItem { tokens: &[], rows: 0..0, ..good.clone() }, "tokens"),
        (BatchItem { tokens: &outside, rows: 0..0, ..good.clone() }, "tokens"),
        (BatchItem { tokens: &long, start: 0, blocks: &long_blocks, rows: 0..0, adapter: None }, "context"),
        (BatchItem { start: usize::MAX, ..good.clone() }, "context"),
        (BatchItem { start: 2, ..good.clone() }, "blocks"),
        (BatchItem { blocks: &[BLOCKS as u32], ..good.clone() }, "blocks"),
        (BatchItem { rows: 0..4, ..good.clone() }, "rows"),
        (BatchItem { rows: backwards, ..good.clone() }, "rows"),
    ] {
        match model.forward(&[good.clone(), bad.clone()]) {
            Err(ForwardError::InvalidItem { item: 1, problem }) => assert!(problem.contains(field), "{problem}"),
            other => panic!("{bad:?}: {other:?}"),
        }
    }
    assert!(model.forward(&[good]).is_ok());
}
