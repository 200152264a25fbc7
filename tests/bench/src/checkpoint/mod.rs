//! Writes checkpoints of random weights as Hugging Face directories: config.json, tokenizer.json, model.safetensors.
//!
//! Tensors are made while they are written, by a thread per core, so that a checkpoint larger than memory could be.

mod tensors;
mod weights;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::shape::Shape;
use tensors::{Weight, write_tensors};
use weights::weights;

/// What the logits of a checkpoint say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Head {
    /// Nothing: every matrix is random.
    Random,
    /// Behind token t, nearly all mass is on t + 1 (modulo the vocabulary). The branches of all layers are computed,
    /// but are scaled down so that they do not drown the embedding, which the head reads.
    Planted,
    /// As `Planted`, with two rivals whose logits are lower by [`RIVAL_GAP`]: a draw under temperature T gives t + 1
    /// with probability `1 / (1 + 2 exp(-RIVAL_GAP / T))`, whatever the context.
    PlantedWithRivals,
}

impl Head {
    fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Planted => "planted",
            Self::PlantedWithRivals => "rivals",
        }
    }
}

/// By how much the planted logit exceeds its two rivals in the expert.
pub const RIVAL_GAP: f64 = 2.0;

/// The temperature under which a [`Head::PlantedWithRivals`] draws the planted token with probability `rate`, in (1/3,
/// 1).
#[must_use]
pub fn temperature_for(rate: f64) -> f64 {
    RIVAL_GAP / (2.0 * rate / (1.0 - rate)).ln()
}

/// Writes the checkpoint into a folder of `work` unless it is there, and names the folder.
///
/// # Errors
/// When a file cannot be written.
pub fn prepare(work: &Path, shape: &Shape, head: Head) -> Result<PathBuf> {
    let directory = work.join(format!("{}-{}", shape.name, head.name()));
    // Written last, so what has it is complete.
    let config = directory.join("config.json");
    if config.is_file() {
        return Ok(directory);
    }
    println!(
        "writing {} ({} M weights)",
        directory.display(),
        weights(shape, head).iter().map(Weight::len).sum::<usize>() / 1_000_000
    );
    let write = || -> Result<()> {
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join("tokenizer.json"), tokenizer(shape.vocabulary).to_string())?;
        write_tensors(&directory.join("model.safetensors"), &weights(shape, head))?;
        std::fs::write(&config, shape.config().to_string())?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", directory.display()))?;
    Ok(directory)
}

/// One word a token, in the byte-level alphabet: Ġ is a space.
fn tokenizer(vocabulary: usize) -> Value {
    let words: Map<String, Value> = (0..vocabulary).map(|id| (format!("Ġw{id}"), json!(id))).collect();
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": bytes,
        "decoder": bytes,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "Ġw0"},
    })
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::tensors::{Content, ELEMENT_BYTES, GROUP, random_row};
    use super::*;

    #[test]
    fn random_rows_have_mean_0_and_deviation_1() {
        let mut values = vec![0.0; 64 * 1024];
        values.chunks_mut(1024).enumerate().for_each(|(row, values)| random_row(9, row, 1.0, values));
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let deviation = (values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32).sqrt();
        assert!(mean.abs() < 0.02, "{mean}");
        assert!((deviation - 1.0).abs() < 0.02, "{deviation}");
    }

    #[test]
    fn what_is_written_is_read() {
        let work = tempfile::tempdir().unwrap();
        // Whose tensors are more than a piece.
        let shape = Shape { vocabulary: 9000, ..Shape::named("llama-5m").unwrap() };
        let list = weights(&shape, Head::Planted);
        let bytes =
            std::fs::read(prepare(work.path(), &shape, Head::Planted).unwrap().join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.len(), list.len());
        for weight in &list {
            let stored = file.tensor(&weight.name).unwrap();
            assert_eq!(stored.shape(), weight.dims);
            let mut values = vec![0.0; weight.columns()];
            for (row, found) in stored.data().chunks(ELEMENT_BYTES * weight.columns()).enumerate() {
                weight.row(row, &mut values);
                let expected: Vec<u8> =
                    values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect();
                assert_eq!(found, expected, "{}, row {row}", weight.name);
            }
        }
    }

    #[test]
    fn the_temperature_gives_the_planted_token_its_rate() {
        for rate in [0.4, 0.5, 0.7, 0.9, 0.99] {
            let rival = (-RIVAL_GAP / temperature_for(rate)).exp();
            assert!((1.0 / (1.0 + 2.0 * rival) - rate).abs() < 1e-12, "{rate}");
        }
    }

    #[test]
    fn the_head_marks_the_token_behind_the_embedded_one() {
        let values = |content| {
            let weight = Weight { name: String::new(), dims: vec![8, 16], content };
            let mut values = vec![0.0; 8 * 16];
            values.chunks_mut(16).enumerate().for_each(|(row, values)| weight.row(row, values));
            values
        };
        let embedding = values(Content::Marked { seed: 3, shift: 1, scale: 1.0, mark: 1.0 });
        let head = values(Content::Marked { seed: 3, shift: 0, scale: 1.0, mark: 2.0 });
        for token in 0..8 {
            let dot = |row: usize| -> f32 {
                embedding[token * 16..][..16].iter().zip(&head[row * 16..][..16]).map(|(a, b)| a * b).sum()
            };
            let next = (token + 1) % 8;
            for rival in (0..8).filter(|&row| row != next && row / GROUP == next / GROUP) {
                assert!((dot(next) - dot(rival) - 2.0).abs() < 1e-4, "{token}: {} {}", dot(next), dot(rival));
            }
        }
    }
}
