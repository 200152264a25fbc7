//! Writes checkpoints of random weights as Hugging Face directories: config.json, tokenizer.json, model.safetensors.
//!
//! Tensors are made while they are written, by a thread per core, so that a checkpoint larger than memory could be.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use half::bf16;
use serde_json::{Map, Value, json};

use crate::shape::{Family, Shape};

/// What the logits of a checkpoint say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Head {
    /// Nothing: every matrix is random.
    Random,
    /// Behind token t, nearly all mass is on t + 1 (modulo the vocabulary). The branches of all layers are computed, but are
    /// scaled down so that they do not drown the embedding, which the head reads.
    Planted,
    /// As `Planted`, with two rivals whose logits are lower by [`RIVAL_GAP`]: a draw under temperature T gives t + 1 with
    /// probability `1 / (1 + 2 exp(-RIVAL_GAP / T))`, whatever the context.
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

/// By how much the logits of the planted token and its rivals stand out.
const PLANTED_LOGIT: f32 = 60.0;

/// By how much the planted logit exceeds its two rivals in the expert, and in the base, whose draws never are rivals.
pub const RIVAL_GAP: f64 = 2.0;
const BASE_GAP: f32 = 30.0;

/// Tokens whose rows of the head are the same but for a mark: a planted one and its rivals, or the two beside it.
const GROUP: usize = 3;

/// The temperature under which a [`Head::PlantedWithRivals`] draws the planted token with probability `rate`, in (1/3, 1).
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

/// A tensor that is made when it is written.
struct Weight {
    name: String,
    dims: Vec<usize>,
    content: Content,
}

enum Content {
    Constant(f32),
    /// Nearly normal numbers; a row is a function of `seed` and its index.
    Random {
        seed: u64,
        deviation: f32,
    },
    /// Row r is `scale` times random row (r + shift) / GROUP, and its first GROUP numbers are 0 but for `mark` at
    /// (r + shift) % GROUP; r + shift is modulo the number of rows. So an embedding shifted by 1 and a head by 0 agree in row
    /// t of the one and the group of t + 1 of the other, and the mark says which of the group is meant.
    Marked {
        seed: u64,
        shift: usize,
        scale: f32,
        mark: f32,
    },
}

/// Bytes of an element: all tensors are bf16.
const ELEMENT_BYTES: usize = 2;

/// Bytes that a thread makes before it writes them, as far as whole rows allow.
const PIECE_BYTES: usize = 4 << 20;

impl Weight {
    fn len(&self) -> usize {
        self.dims.iter().product()
    }

    fn columns(&self) -> usize {
        self.dims.last().copied().unwrap_or(1)
    }

    fn rows(&self) -> usize {
        self.len() / self.columns()
    }

    fn row(&self, row: usize, values: &mut [f32]) {
        match &self.content {
            Content::Constant(value) => values.fill(*value),
            Content::Random { seed, deviation } => random_row(*seed, row, *deviation, values),
            Content::Marked { seed, shift, scale, mark } => {
                let source = (row + shift) % self.rows();
                random_row(*seed, source / GROUP, *scale, values);
                values[..GROUP].fill(0.0);
                values[source % GROUP] = *mark;
            }
        }
    }
}

/// Some rows of a tensor and where they begin in the file.
struct Piece<'a> {
    weight: &'a Weight,
    rows: Range<usize>,
    offset: usize,
}

/// Writes a safetensors file.
fn write_tensors(path: &Path, weights: &[Weight]) -> Result<()> {
    let mut header = Map::new();
    let mut end = 0;
    for weight in weights {
        let begin = end;
        end += weight.len() * ELEMENT_BYTES;
        header.insert(
            weight.name.clone(),
            json!({"dtype": "BF16", "shape": weight.dims, "data_offsets": [begin, end]}),
        );
    }
    let mut header = Value::Object(header).to_string();
    // Tensors begin at a multiple of eight bytes.
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let file = File::create(path)?;
    file.write_all_at(&(header.len() as u64).to_le_bytes(), 0)?;
    file.write_all_at(header.as_bytes(), 8)?;
    write_pieces(&file, &pieces(weights, 8 + header.len()))
}

fn pieces(weights: &[Weight], mut offset: usize) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    for weight in weights {
        let row_bytes = weight.columns() * ELEMENT_BYTES;
        let step = (PIECE_BYTES / row_bytes).max(1);
        for first in (0..weight.rows()).step_by(step) {
            let rows = first..weight.rows().min(first + step);
            let bytes = rows.len() * row_bytes;
            pieces.push(Piece { weight, rows, offset });
            offset += bytes;
        }
    }
    pieces
}

fn write_pieces(file: &File, pieces: &[Piece<'_>]) -> Result<()> {
    let next = AtomicUsize::new(0);
    let work = || -> std::io::Result<()> {
        let (mut row, mut bytes) = (Vec::new(), Vec::new());
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            row.resize(piece.weight.columns(), 0.0);
            bytes.resize(piece.rows.len() * row.len() * ELEMENT_BYTES, 0);
            for (index, bytes) in piece.rows.clone().zip(bytes.chunks_exact_mut(row.len() * ELEMENT_BYTES)) {
                piece.weight.row(index, &mut row);
                for (&value, bytes) in row.iter().zip(bytes.chunks_exact_mut(ELEMENT_BYTES)) {
                    bytes.copy_from_slice(&bf16::from_f32(value).to_le_bytes());
                }
            }
            file.write_all_at(&bytes, piece.offset as u64)?;
        }
        Ok(())
    };
    let threads = std::thread::available_parallelism()?.get();
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for thread in running {
            match thread.join() {
                Ok(done) => done?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(())
    })
}

/// Numbers of mean 0 and this deviation: sums of four uniform ones.
fn random_row(seed: u64, row: usize, deviation: f32, values: &mut [f32]) {
    // Splitmix64 (Steele et al. 2014).
    let mut state = (seed << 32) ^ row as u64;
    for value in values {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        let sum: u32 = (0..4).map(|part| u32::from((bits >> (16 * part)) as u16)).sum();
        // Four numbers from 0 to 2^16 have mean 2^17 and deviation 2^16 / sqrt(3).
        *value = (sum as f32 - 131_070.0) * (1.732_050_8 / 65_536.0) * deviation;
    }
}

const EMBEDDING_SEED: u64 = 1;

/// Deviation of random matrices, and of those that lead back into the residual stream where the logits are planted.
const DEVIATION: f32 = 0.02;
const QUIET: f32 = 0.0001;

fn weights(shape: &Shape, head: Head) -> Vec<Weight> {
    let mut list = List { weights: Vec::new(), into_stream: if head == Head::Random { DEVIATION } else { QUIET } };
    let Shape { hidden, layers, vocabulary, .. } = *shape;
    let (embedding, block, output) = match shape.family {
        Family::Llama => ("model.embed_tokens", "model.layers", "lm_head"),
        Family::Codegen => ("transformer.wte", "transformer.h", "lm_head"),
        Family::GptNeox => ("gpt_neox.embed_in", "gpt_neox.layers", "embed_out"),
    };
    let marked = |shift, scale, mark| Content::Marked { seed: EMBEDDING_SEED, shift, scale, mark };
    let read = match head {
        Head::Random => Content::Random { seed: EMBEDDING_SEED, deviation: 1.0 },
        Head::Planted | Head::PlantedWithRivals => marked(1, 1.0, 1.0),
    };
    list.add(format!("{embedding}.weight"), &[vocabulary, hidden], read);
    for layer in 0..layers {
        list.block(shape, &format!("{block}.{layer}"));
    }
    match shape.family {
        Family::Llama => list.norm("model.norm", hidden, false),
        Family::Codegen => list.norm("transformer.ln_f", hidden, true),
        Family::GptNeox => list.norm("gpt_neox.final_layer_norm", hidden, true),
    }
    let planted = PLANTED_LOGIT / hidden as f32;
    let written = match head {
        Head::Random => Content::Random { seed: list.next_seed(), deviation: DEVIATION },
        Head::Planted => marked(0, planted, BASE_GAP),
        Head::PlantedWithRivals => marked(0, planted, RIVAL_GAP as f32),
    };
    list.add(format!("{output}.weight"), &[vocabulary, hidden], written);
    if shape.family == Family::Codegen {
        list.add(format!("{output}.bias"), &[vocabulary], Content::Constant(0.0));
    }
    list.weights
}

struct List {
    weights: Vec<Weight>,
    /// Deviation of the matrices whose output is added to the residual stream.
    into_stream: f32,
}

impl List {
    fn add(&mut self, name: String, dims: &[usize], content: Content) {
        self.weights.push(Weight { name, dims: dims.to_vec(), content });
    }

    fn next_seed(&self) -> u64 {
        EMBEDDING_SEED + 1 + self.weights.len() as u64
    }

    fn linear(&mut self, name: &str, outputs: usize, inputs: usize, deviation: f32, biased: bool) {
        let content = Content::Random { seed: self.next_seed(), deviation };
        self.add(format!("{name}.weight"), &[outputs, inputs], content);
        if biased {
            self.add(format!("{name}.bias"), &[outputs], Content::Constant(0.0));
        }
    }

    fn norm(&mut self, name: &str, hidden: usize, biased: bool) {
        self.add(format!("{name}.weight"), &[hidden], Content::Constant(1.0));
        if biased {
            self.add(format!("{name}.bias"), &[hidden], Content::Constant(0.0));
        }
    }

    fn block(&mut self, shape: &Shape, block: &str) {
        let Shape { hidden, inner, .. } = *shape;
        let into_stream = self.into_stream;
        match shape.family {
            Family::Llama => {
                for name in ["q_proj", "k_proj", "v_proj"] {
                    self.linear(&format!("{block}.self_attn.{name}"), hidden, hidden, DEVIATION, false);
                }
                self.linear(&format!("{block}.self_attn.o_proj"), hidden, hidden, into_stream, false);
                self.linear(&format!("{block}.mlp.gate_proj"), inner, hidden, DEVIATION, false);
                self.linear(&format!("{block}.mlp.up_proj"), inner, hidden, DEVIATION, false);
                self.linear(&format!("{block}.mlp.down_proj"), hidden, inner, into_stream, false);
                self.norm(&format!("{block}.input_layernorm"), hidden, false);
                self.norm(&format!("{block}.post_attention_layernorm"), hidden, false);
            }
            Family::Codegen => {
                self.linear(&format!("{block}.attn.qkv_proj"), 3 * hidden, hidden, DEVIATION, false);
                self.linear(&format!("{block}.attn.out_proj"), hidden, hidden, into_stream, false);
                self.linear(&format!("{block}.mlp.fc_in"), inner, hidden, DEVIATION, true);
                self.linear(&format!("{block}.mlp.fc_out"), hidden, inner, into_stream, true);
                self.norm(&format!("{block}.ln_1"), hidden, true);
            }
            Family::GptNeox => {
                self.linear(&format!("{block}.attention.query_key_value"), 3 * hidden, hidden, DEVIATION, true);
                self.linear(&format!("{block}.attention.dense"), hidden, hidden, into_stream, true);
                self.linear(&format!("{block}.mlp.dense_h_to_4h"), inner, hidden, DEVIATION, true);
                self.linear(&format!("{block}.mlp.dense_4h_to_h"), hidden, inner, into_stream, true);
                self.norm(&format!("{block}.input_layernorm"), hidden, true);
                self.norm(&format!("{block}.post_attention_layernorm"), hidden, true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
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
