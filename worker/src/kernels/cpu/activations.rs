//! Rows of activations, packed for the panels of a matrix.
//!
//! Rows form groups of up to six, whose numbers of one input are adjacent. For integer weights a row becomes
//! integers with a scale for every 32 inputs. For weights of eight bits they have 16 bits: one part in 65,534 of the
//! largest, far below the error of the weights. For weights of four bits they have eight, as in llama.cpp,
//! whose blocks are eight times as long. None of this depends on other rows.

#![expect(clippy::needless_range_loop, reason = "iterators that are not inlined spill every register")]

use super::instruction_set::InstructionSet;
use super::simd16::{PANEL, Simd16, Simd16Task};
use super::threads::ThreadPool;
use crate::kernels::weight_format::BLOCK;

/// Rows of the largest group: with two registers each they leave enough of sixteen for the weights.
pub(super) const GROUP: usize = 6;

/// Below this many numbers one thread packs alone.
const PARALLEL_FROM: usize = 1 << 13;

/// How rows are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProductArithmetic {
    Floats,
    /// Integers of 16 bits, two in a word.
    Pairs,
    /// Integers of eight bits, four in a word.
    Quads,
}

/// Words of 32 inputs as pairs.
pub(super) const PAIRS: usize = BLOCK / 2;

/// Words of 32 inputs as quads.
pub(super) const QUADS: usize = BLOCK / 4;

impl ProductArithmetic {
    /// Words of 32 inputs of a row: a float each, or scale, sum and integers.
    fn words(self) -> usize {
        match self {
            Self::Floats => BLOCK,
            Self::Pairs => 2 + PAIRS,
            Self::Quads => 2 + QUADS,
        }
    }
}

/// Rows that are multiplied together.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowGroup {
    /// Index of the first.
    pub(super) first: usize,
    /// How many there are: 1 to 6.
    pub(super) rows: usize,
}

/// The groups of some rows: whole ones, but for the last.
pub(super) fn groups(rows: usize) -> impl Iterator<Item = RowGroup> + Clone {
    let size = group_size(rows);
    (0..rows).step_by(size).map(move |first| RowGroup { first, rows: size.min(rows - first) })
}

fn group_size(rows: usize) -> usize {
    rows.clamp(1, GROUP)
}

/// Rows as they are multiplied with weights.
#[derive(Clone, Copy)]
pub(super) struct PackedRows<'a> {
    /// For each group, for each 32 inputs: the words of [`ProductArithmetic::words`], the group's rows adjacent.
    words: &'a [u32],
    blocks: usize,
}

/// Packs `rows` rows of `inputs` numbers into `words`, which grows as needed, with zeros up to `padded` inputs.
pub(super) fn pack<'a>(
    (instructions, threads): (InstructionSet, &ThreadPool),
    (x, rows): (&[f32], usize),
    (inputs, padded): (usize, usize),
    arithmetic: ProductArithmetic,
    words: &'a mut Vec<u32>,
) -> PackedRows<'a> {
    let blocks = padded / BLOCK;
    let row_words = blocks * arithmetic.words();
    let needed = rows * row_words;
    if words.len() < needed {
        words.resize(needed, 0);
    }
    let size = group_size(rows);
    threads.chunks(&mut words[..needed], size * row_words, rows * inputs >= PARALLEL_FROM, |index, words| {
        let x = &x[index * size * inputs..][..words.len() / row_words * inputs];
        instructions.run_panels(PackGroup { x, inputs, arithmetic, words });
    });
    PackedRows { words, blocks }
}

/// Packs one group.
struct PackGroup<'a> {
    x: &'a [f32],
    inputs: usize,
    arithmetic: ProductArithmetic,
    words: &'a mut [u32],
}

impl Simd16Task for PackGroup<'_> {
    #[inline(always)]
    fn run<W: Simd16>(self, wide: W) {
        match self.x.len() / self.inputs {
            1 => self.rows::<1, W>(wide),
            2 => self.rows::<2, W>(wide),
            3 => self.rows::<3, W>(wide),
            4 => self.rows::<4, W>(wide),
            5 => self.rows::<5, W>(wide),
            _ => self.rows::<GROUP, W>(wide),
        }
    }
}

impl PackGroup<'_> {
    #[inline(always)]
    fn rows<const R: usize, W: Simd16>(self, wide: W) {
        let (places, _) = self.words.as_chunks_mut::<R>();
        for (block, to) in places.chunks_exact_mut(self.arithmetic.words()).enumerate() {
            let mut rows = [[0.0; BLOCK]; R];
            for r in 0..R {
                let row = &self.x[r * self.inputs..][..self.inputs];
                let rest = row.get(block * BLOCK..).unwrap_or_default();
                match rest.first_chunk() {
                    Some(whole) => rows[r] = *whole,
                    None => rows[r][..rest.len()].copy_from_slice(rest),
                }
            }
            match self.arithmetic {
                ProductArithmetic::Floats => {
                    for i in 0..BLOCK {
                        for r in 0..R {
                            to[i][r] = rows[r][i].to_bits();
                        }
                    }
                }
                ProductArithmetic::Pairs => {
                    for r in 0..R {
                        let row = quantise(wide, &rows[r], 32_767.0);
                        (to[0][r], to[1][r]) = (row.scale, row.sum);
                        for i in 0..PAIRS {
                            to[2 + i][r] = row.pairs[i];
                        }
                    }
                }
                ProductArithmetic::Quads => {
                    for r in 0..R {
                        let row = quantise(wide, &rows[r], 127.0);
                        (to[0][r], to[1][r]) = (row.scale, row.sum);
                        for i in 0..QUADS {
                            // Both halves of a pair have eight bits.
                            to[2 + i][r] = row.pairs[i] & 0x00ff_00ff | (row.pairs[i + QUADS] & 0x00ff_00ff) << 8;
                        }
                    }
                }
            }
        }
    }
}

/// 32 numbers as integers.
struct QuantisedInputs {
    /// Bits of the float that 1 represents.
    scale: u32,
    /// Bits of the float that the sum represents.
    sum: u32,
    /// Number `i`, and number `i + 16` in the upper half.
    pairs: [u32; PAIRS],
}

/// The nearest integers, where the largest number is `largest`.
///
/// An infinity or NaN makes the scale NaN, so that it is not lost.
#[inline(always)]
fn quantise<W: Simd16>(wide: W, values: &[f32; BLOCK], largest: f32) -> QuantisedInputs {
    let (halves, _) = values.as_chunks::<PANEL>();
    let (low, high) = (wide.load(&halves[0]), wide.load(&halves[1]));
    let poison = wide.multiply_add(high, wide.zero(), wide.multiply(low, wide.zero()));
    let scale = wide.largest(wide.larger(low, high)) / largest + wide.sum(poison);
    // Below this the inverse would be infinite; such numbers round to zero.
    let inverse = wide.splat(if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 });
    let (low, high) = (wide.round(wide.multiply(low, inverse)), wide.round(wide.multiply(high, inverse)));
    // Exact: below 2^24.
    let sum = wide.sum(wide.multiply_add(wide.to_floats(low), wide.splat(1.0), wide.to_floats(high)));
    let mut pairs = [0; PAIRS];
    wide.store_words(wide.pairs(low, high), &mut pairs);
    QuantisedInputs { scale: scale.to_bits(), sum: (scale * sum).to_bits(), pairs }
}

impl<'a> PackedRows<'a> {
    /// The bits of the 32 inputs from `input` on of the group of `R` rows whose first is `row`.
    #[inline(always)]
    pub(super) fn floats<const R: usize>(&self, row: usize, input: usize) -> &'a [[u32; R]; BLOCK] {
        let (words, _) = self.words[(row * self.blocks + input / BLOCK * R) * BLOCK..].as_chunks().0.as_chunks();
        &words[0]
    }

    /// The same inputs as integers in `WORDS` words: [`PAIRS`] or [`QUADS`].
    #[inline(always)]
    pub(super) fn integers<const R: usize, const WORDS: usize>(
        &self,
        row: usize,
        input: usize,
    ) -> PackedIntegers<'a, R, WORDS> {
        let first = (row * self.blocks + input / BLOCK * R) * (2 + WORDS);
        let (words, _) = self.words[first..].as_chunks();
        let (integers, _) = words[2..].as_chunks();
        PackedIntegers { scales: &words[0], sums: &words[1], words: &integers[0] }
    }
}

/// 32 inputs of `R` rows.
pub(super) struct PackedIntegers<'a, const R: usize, const WORDS: usize> {
    /// Bits of the float that 1 represents.
    pub(super) scales: &'a [u32; R],
    /// Bits of the float that the sum represents.
    pub(super) sums: &'a [u32; R],
    pub(super) words: &'a [[u32; R]; WORDS],
}
