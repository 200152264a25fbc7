//! Panels of weights quantised to 8 or 4 bits, multiplied as integers.

#![expect(clippy::needless_range_loop, reason = "iterators that are not inlined spill every register")]

use half::f16;

use super::activations::{Arithmetic, Packed};
use super::panels::{Block, Multiply, UNPACKED};
use super::wide::{PANEL, Sixteen, Wide};
use crate::kernels::blocks::{BLOCK, PARTS, Q4KBlock, Q8Block, SUPER_BLOCK};

/// 32 inputs of integers with a scale for each output, and perhaps a minimum.
trait Part {
    /// Whether there are minimums.
    const MINIMUMS: bool;

    /// Inputs `2 · step` and `2 · step + 1`.
    fn pairs<W: Wide>(&self, wide: W, step: usize) -> W::Pairs;
    fn scales<W: Wide>(&self, wide: W) -> W::Floats;
    /// With a minus sign.
    fn minimums<W: Wide>(&self, wide: W) -> W::Floats;
}

#[inline(always)]
fn multiply_part<const R: usize, W: Wide, P: Part>(
    part: &P,
    wide: W,
    x: &Packed<'_>,
    row: usize,
    input: usize,
    totals: &mut [W::Floats; R],
) {
    let mut sums = [wide.zero_pairs(); R];
    let x = x.integers::<R>(row, input);
    // Four steps read the same words of four-bit weights.
    for four in (0..BLOCK / 2).step_by(4) {
        for step in four..four + 4 {
            let weights = part.pairs(wide, step);
            for r in 0..R {
                sums[r] = wide.multiply_add_pairs(weights, wide.splat_pair(x.pairs[step][r]), sums[r]);
            }
        }
    }
    let scales = part.scales(wide);
    for r in 0..R {
        let scaled = wide.multiply(wide.to_floats(sums[r]), wide.splat(f32::from_bits(x.scales[r])));
        totals[r] = wide.multiply_add(scaled, scales, totals[r]);
    }
    if P::MINIMUMS {
        let minimums = part.minimums(wide);
        for r in 0..R {
            totals[r] = wide.multiply_add(minimums, wide.splat(f32::from_bits(x.sums[r])), totals[r]);
        }
    }
}

/// [`Q8Block`]s of sixteen outputs.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(super) struct Q8 {
    scales: Sixteen<f16>,
    pairs: [Sixteen<[i8; 2]>; BLOCK / 2],
}

impl Q8 {
    pub(super) fn pack(blocks: &Sixteen<Q8Block>) -> Self {
        let pair = |step: usize| blocks.each_ref().map(|block| [block.quants[2 * step], block.quants[2 * step + 1]]);
        Self { scales: blocks.each_ref().map(|block| block.scale), pairs: std::array::from_fn(pair) }
    }
}

impl Part for Q8 {
    const MINIMUMS: bool = false;

    #[inline(always)]
    fn pairs<W: Wide>(&self, wide: W, step: usize) -> W::Pairs {
        wide.widen_pairs(&self.pairs[step])
    }

    #[inline(always)]
    fn scales<W: Wide>(&self, wide: W) -> W::Floats {
        wide.load_f16(&self.scales)
    }

    #[inline(always)]
    fn minimums<W: Wide>(&self, wide: W) -> W::Floats {
        wide.zero()
    }
}

impl Multiply for Q8 {
    #[inline(always)]
    fn multiply<const R: usize, W: Wide>(
        &self,
        wide: W,
        x: &Packed<'_>,
        row: usize,
        input: usize,
        totals: &mut [W::Floats; R],
    ) {
        multiply_part(self, wide, x, row, input, totals);
    }
}

impl Block for Q8 {
    const ZERO: Self = Self { scales: [f16::ZERO; PANEL], pairs: [[[0; 2]; PANEL]; BLOCK / 2] };
    const INPUTS: usize = BLOCK;
    const ARITHMETIC: Arithmetic = Arithmetic::Integers;
    type Plain = Integers<false>;
    type Scratch = [Integers<false>; UNPACKED / BLOCK];

    #[inline(always)]
    fn scratch() -> Self::Scratch {
        [Integers::EMPTY; UNPACKED / BLOCK]
    }

    #[inline(always)]
    fn unpack<W: Wide>(&self, wide: W, plain: &mut Integers<false>) {
        plain.fill(wide, self);
    }

    fn weight(&self, output: usize, input: usize) -> f32 {
        self.scales[output].to_f32() * f32::from(self.pairs[input / 2][output][input % 2])
    }
}

/// [`Q4KBlock`]s of sixteen outputs.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(super) struct Q4 {
    scales: Sixteen<f16>,
    minimums: Sixteen<f16>,
    parts: [Q4Part; PARTS],
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Q4Part {
    scales: Sixteen<u8>,
    minimums: Sixteen<u8>,
    /// Nibble `i % 4` of the lower and the upper half of word `i / 4` is pair `i`.
    words: [Sixteen<u32>; BLOCK / 8],
}

impl Q4Part {
    const ZERO: Self = Self { scales: [0; PANEL], minimums: [0; PANEL], words: [[0; PANEL]; BLOCK / 8] };
}

impl Q4 {
    pub(super) fn pack(blocks: &Sixteen<Q4KBlock>) -> Self {
        let part = |part: usize| Q4Part {
            scales: blocks.each_ref().map(|block| block.scales[part]),
            minimums: blocks.each_ref().map(|block| block.minimums[part]),
            words: std::array::from_fn(|word| {
                blocks.each_ref().map(|block| {
                    let quants = &block.quants[part * BLOCK + 8 * word..][..8];
                    let nibble = |(i, &quant): (usize, &u8)| u32::from(quant) << (4 * (i / 2) + 16 * (i % 2));
                    quants.iter().enumerate().map(nibble).sum()
                })
            }),
        };
        Self {
            scales: blocks.each_ref().map(|block| block.scale),
            minimums: blocks.each_ref().map(|block| block.minimum),
            parts: std::array::from_fn(part),
        }
    }
}

struct Q4PartOf<'a> {
    block: &'a Q4,
    part: &'a Q4Part,
}

impl Part for Q4PartOf<'_> {
    const MINIMUMS: bool = true;

    #[inline(always)]
    fn pairs<W: Wide>(&self, wide: W, step: usize) -> W::Pairs {
        wide.nibble_pairs(&self.part.words[step / 4], step % 4)
    }

    #[inline(always)]
    fn scales<W: Wide>(&self, wide: W) -> W::Floats {
        wide.multiply(wide.load_f16(&self.block.scales), wide.load_u8(&self.part.scales))
    }

    #[inline(always)]
    fn minimums<W: Wide>(&self, wide: W) -> W::Floats {
        let sign = wide.multiply(wide.load_f16(&self.block.minimums), wide.splat(-1.0));
        wide.multiply(sign, wide.load_u8(&self.part.minimums))
    }
}

impl Multiply for Q4 {
    #[inline(always)]
    fn multiply<const R: usize, W: Wide>(
        &self,
        wide: W,
        x: &Packed<'_>,
        row: usize,
        input: usize,
        totals: &mut [W::Floats; R],
    ) {
        for index in 0..PARTS {
            let part = Q4PartOf { block: self, part: &self.parts[index] };
            multiply_part(&part, wide, x, row, input + index * BLOCK, totals);
        }
    }
}

impl Block for Q4 {
    const ZERO: Self =
        Self { scales: [f16::ZERO; PANEL], minimums: [f16::ZERO; PANEL], parts: [Q4Part::ZERO; PARTS] };
    const INPUTS: usize = SUPER_BLOCK;
    const ARITHMETIC: Arithmetic = Arithmetic::Integers;
    type Plain = [Integers<true>; PARTS];
    type Scratch = [[Integers<true>; PARTS]; UNPACKED / SUPER_BLOCK];

    #[inline(always)]
    fn scratch() -> Self::Scratch {
        [[Integers::EMPTY; PARTS]; UNPACKED / SUPER_BLOCK]
    }

    #[inline(always)]
    fn unpack<W: Wide>(&self, wide: W, plain: &mut [Integers<true>; PARTS]) {
        for part in 0..PARTS {
            plain[part].fill(wide, &Q4PartOf { block: self, part: &self.parts[part] });
        }
    }

    fn weight(&self, output: usize, input: usize) -> f32 {
        let (part, input) = (&self.parts[input / BLOCK], input % BLOCK);
        let quant = part.words[input / 8][output] >> (4 * (input % 8 / 2) + 16 * (input % 2)) & 15;
        let scale = self.scales[output].to_f32() * f32::from(part.scales[output]);
        scale * quant as f32 - self.minimums[output].to_f32() * f32::from(part.minimums[output])
    }
}

/// A part with all its numbers ready.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Integers<const MINIMUMS: bool> {
    pairs: [Sixteen<[i16; 2]>; BLOCK / 2],
    scales: Sixteen<f32>,
    minimums: Sixteen<f32>,
}

impl<const MINIMUMS: bool> Integers<MINIMUMS> {
    const EMPTY: Self = Self { pairs: [[[0; 2]; PANEL]; BLOCK / 2], scales: [0.0; PANEL], minimums: [0.0; PANEL] };

    #[inline(always)]
    fn fill<W: Wide>(&mut self, wide: W, part: &impl Part) {
        for step in 0..BLOCK / 2 {
            wide.store_pairs(part.pairs(wide, step), &mut self.pairs[step]);
        }
        wide.store(part.scales(wide), &mut self.scales);
        wide.store(part.minimums(wide), &mut self.minimums);
    }
}

impl<const MINIMUMS: bool> Part for Integers<MINIMUMS> {
    const MINIMUMS: bool = MINIMUMS;

    #[inline(always)]
    fn pairs<W: Wide>(&self, wide: W, step: usize) -> W::Pairs {
        wide.load_pairs(&self.pairs[step])
    }

    #[inline(always)]
    fn scales<W: Wide>(&self, wide: W) -> W::Floats {
        wide.load(&self.scales)
    }

    #[inline(always)]
    fn minimums<W: Wide>(&self, wide: W) -> W::Floats {
        wide.load(&self.minimums)
    }
}

impl Multiply for Integers<false> {
    #[inline(always)]
    fn multiply<const R: usize, W: Wide>(
        &self,
        wide: W,
        x: &Packed<'_>,
        row: usize,
        input: usize,
        totals: &mut [W::Floats; R],
    ) {
        multiply_part(self, wide, x, row, input, totals);
    }
}

impl Multiply for [Integers<true>; PARTS] {
    #[inline(always)]
    fn multiply<const R: usize, W: Wide>(
        &self,
        wide: W,
        x: &Packed<'_>,
        row: usize,
        input: usize,
        totals: &mut [W::Floats; R],
    ) {
        for index in 0..PARTS {
            multiply_part(&self[index], wide, x, row, input + index * BLOCK, totals);
        }
    }
}
