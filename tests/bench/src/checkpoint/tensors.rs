//! Tensors that are made while they are written into a safetensors file.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use half::bf16;
use serde_json::{Map, Value, json};

/// Tokens whose rows of the head are the same but for a mark: a planted one and its rivals, or its two neighbours.
pub(super) const GROUP: usize = 3;

/// A tensor that is made when it is written.
pub(super) struct Weight {
    pub(super) name: String,
    pub(super) dims: Vec<usize>,
    pub(super) content: Content,
}

pub(super) enum Content {
    Constant(f32),
    /// Nearly normal numbers; a row is a function of `seed` and its index.
    Random {
        seed: u64,
        deviation: f32,
    },
    /// Row r is `scale` times random row (r + shift) / GROUP, and its first GROUP numbers are 0 but for `mark` at (r +
    /// shift) % GROUP; r + shift is modulo the number of rows. So an embedding shifted by 1 and a head by 0 agree in
    /// row t of the one and the group of t + 1 of the other, and the mark says which of the group is meant.
    Marked {
        seed: u64,
        shift: usize,
        scale: f32,
        mark: f32,
    },
}

/// Bytes of an element: all tensors are bf16.
pub(super) const ELEMENT_BYTES: usize = 2;

/// Bytes that a thread makes before it writes them, as far as whole rows allow.
const PIECE_BYTES: usize = 4 << 20;

impl Weight {
    pub(super) fn len(&self) -> usize {
        self.dims.iter().product()
    }

    pub(super) fn columns(&self) -> usize {
        self.dims.last().copied().unwrap_or(1)
    }

    pub(super) fn rows(&self) -> usize {
        self.len() / self.columns()
    }

    pub(super) fn row(&self, row: usize, values: &mut [f32]) {
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
pub(super) fn write_tensors(path: &Path, weights: &[Weight]) -> Result<()> {
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
pub(super) fn random_row(seed: u64, row: usize, deviation: f32, values: &mut [f32]) {
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
