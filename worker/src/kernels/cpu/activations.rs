//! Rows of activations, laid out for the panels of a matrix.
//!
//! Rows go in groups of up to six, whose numbers of one input lie side by side. For integer weights a row becomes
//! integers of 16 bits with a scale for every 32 inputs: one part in 65,534 of the largest, far below what quantising
//! the weights cost. Nothing of it depends on the other rows.

use super::lanes::{InstructionSet, Simd, Task};
use super::threads::Threads;
use crate::kernels::blocks::BLOCK;

/// Rows of the largest group: with two registers each, what sixteen registers hold beside weights.
const GROUP: usize = 6;

/// Numbers below which one thread packs alone.
const PARALLEL_FROM: usize = 1 << 16;

/// How rows are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Floats,
    Integers,
}

impl Arithmetic {
    /// Words of 32 inputs of a row: a float each, or scale, sum and pairs.
    fn words(self) -> usize {
        match self {
            Self::Floats => BLOCK,
            Self::Integers => 2 + BLOCK / 2,
        }
    }
}

/// Rows that are multiplied together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    /// Index of the first.
    pub(super) first: usize,
    /// How many there are.
    pub(super) rows: usize,
    /// How many places they have, those beyond `rows` being zeros: 1, 2, 4 or 6.
    pub(super) places: usize,
}

/// The groups of some rows. Only the last may be smaller than the others, so its first row says where a group lies.
pub(super) fn groups(rows: usize) -> impl Iterator<Item = Group> {
    (0..rows).step_by(GROUP).map(move |first| group(first, rows))
}

fn group(first: usize, rows: usize) -> Group {
    let rows = GROUP.min(rows - first);
    let places = if rows == 1 { 1 } else { rows.next_multiple_of(2) };
    Group { first, rows, places }
}

/// Rows as they are multiplied with weights.
#[derive(Clone, Copy)]
pub(super) struct Packed<'a> {
    /// For each group, for each 32 inputs: what [`Arithmetic::words`] says, the group's rows side by side.
    words: &'a [u32],
    blocks: usize,
}

/// Packs `rows` rows of `inputs` numbers into `words`, which grows at need, with zeros up to `padded` inputs.
pub(super) fn pack<'a>(
    (instructions, threads): (InstructionSet, &Threads),
    (x, rows): (&[f32], usize),
    (inputs, padded): (usize, usize),
    arithmetic: Arithmetic,
    words: &'a mut Vec<u32>,
) -> Packed<'a> {
    let blocks = padded / BLOCK;
    let row_words = blocks * arithmetic.words();
    let needed = groups(rows).map(|group| group.places).sum::<usize>() * row_words;
    if words.len() < needed {
        words.resize(needed, 0);
    }
    threads.chunks(&mut words[..needed], GROUP * row_words, rows * inputs >= PARALLEL_FROM, |index, words| {
        let Group { first, rows, places } = group(index * GROUP, rows);
        let x = &x[first * inputs..][..rows * inputs];
        instructions.run(Pack { x, inputs, places, arithmetic, words });
    });
    Packed { words, blocks }
}

/// Packs one group.
struct Pack<'a> {
    x: &'a [f32],
    inputs: usize,
    places: usize,
    arithmetic: Arithmetic,
    words: &'a mut [u32],
}

impl Task for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { x, inputs, places, arithmetic, words } = self;
        let mut rows = x.chunks_exact(inputs);
        for place in 0..places {
            let row = rows.next().unwrap_or_default();
            for (block, words) in words.chunks_exact_mut(arithmetic.words() * places).enumerate() {
                let rest = row.get(block * BLOCK..).unwrap_or_default();
                let mut values = [0.0; BLOCK];
                match rest.first_chunk() {
                    Some(whole) => values = *whole,
                    None => values[..rest.len()].copy_from_slice(rest),
                }
                let to = words[place..].iter_mut().step_by(places);
                match arithmetic {
                    Arithmetic::Floats => to.zip(values).for_each(|(to, value)| *to = value.to_bits()),
                    Arithmetic::Integers => to.zip(quantise(&values)).for_each(|(to, word)| *to = word),
                }
            }
        }
    }
}

/// The value of 1, the value of the sum, and the integers nearest to 32 numbers, the largest being 32,767.
///
/// What is infinite or no number gives a scale that is no number, so that it is not lost.
#[inline(always)]
fn quantise(values: &[f32; BLOCK]) -> [u32; 2 + BLOCK / 2] {
    // Adding 1.5 · 2^23 rounds to the nearest integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let (mut largest, mut poison) = ([0.0_f32; 8], [0.0_f32; 8]);
    for values in values.as_chunks::<8>().0 {
        for lane in 0..8 {
            largest[lane] = largest[lane].max(values[lane].abs());
            poison[lane] += values[lane] * 0.0;
        }
    }
    let scale = largest.into_iter().fold(0.0, f32::max) / 32_767.0 + poison.into_iter().sum::<f32>();
    // Below it the inverse would be infinite, and the numbers are nothing beside any other.
    let inverse = if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
    let integers = values.map(|value| (value * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()));
    let sum = integers.iter().fold(0, |sum: u32, integer| sum.wrapping_add(*integer)).cast_signed();
    let mut words = [0; 2 + BLOCK / 2];
    words[0] = scale.to_bits();
    words[1] = (scale * sum as f32).to_bits();
    for (word, pair) in words[2..].iter_mut().zip(integers.as_chunks::<2>().0) {
        *word = pair[0] & 0xffff | pair[1] << 16;
    }
    words
}

impl<'a> Packed<'a> {
    /// The bits of the 32 inputs from `input` on of the group of `R` places whose first row is `row`.
    #[inline(always)]
    pub(super) fn floats<const R: usize>(&self, row: usize, input: usize) -> &'a [[u32; R]; BLOCK] {
        let (words, _) = self.words[(row * self.blocks + input / BLOCK * R) * BLOCK..].as_chunks().0.as_chunks();
        &words[0]
    }

    /// The same inputs as integers.
    #[inline(always)]
    pub(super) fn integers<const R: usize>(&self, row: usize, input: usize) -> Integers<'a, R> {
        let first = (row * self.blocks + input / BLOCK * R) * Arithmetic::Integers.words();
        let (words, _) = self.words[first..].as_chunks();
        let (pairs, _) = words[2..].as_chunks();
        Integers { scales: &words[0], sums: &words[1], pairs: &pairs[0] }
    }
}

/// 32 inputs of `R` rows.
pub(super) struct Integers<'a, const R: usize> {
    /// Bits of what 1 stands for.
    pub(super) scales: &'a [u32; R],
    /// Bits of what the sum stands for.
    pub(super) sums: &'a [u32; R],
    pub(super) pairs: &'a [[u32; R]; BLOCK / 2],
}
