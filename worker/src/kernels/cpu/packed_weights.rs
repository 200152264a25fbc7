//! The layout of weights in memory: blocks of sixteen outputs by 32 or 256 inputs, read once from first to last.
//!
//! The sixteen numbers of one input, or words of a few inputs, are adjacent, so that a vector holds a number of
//! every output and a product needs no sum across lanes.

#![expect(clippy::needless_range_loop, reason = "iterators that are not inlined spill every register")]

use half::{bf16, f16};

use super::activations::{PAIRS, PackedRows, ProductArithmetic, QUADS};
use super::simd16::{PANEL, Simd16, Sixteen};
use crate::kernels::blocks::{PARTS, Q4KBlock, Q8Block};
use crate::kernels::weight_format::{BLOCK, SUPER_BLOCK};

/// Sixteen outputs by some inputs, as they are stored.
pub(super) trait PanelBlock: Copy + Send + Sync {
    /// Weights that are all zero.
    const ZERO: Self;
    /// Inputs of a block.
    const INPUTS: usize;
    /// How rows are multiplied.
    const ARITHMETIC: ProductArithmetic;

    /// Adds the products of `R` rows of `x`, from row `row` and input `input` on.
    fn multiply<const R: usize, W: Simd16>(
        &self,
        wide: W,
        x: &PackedRows<'_>,
        row: usize,
        input: usize,
        totals: &mut [W::Floats; R],
    );

    /// One weight, as a float.
    fn weight(&self, output: usize, input: usize) -> f32;
}

/// A type in which floats are stored.
pub(super) trait PanelFloat: Copy + Send + Sync {
    const ZERO: Self;

    /// Index of each output of a panel.
    const PLACES: Sixteen<usize> = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

    fn widen(self) -> f32;
    fn load<W: Simd16>(wide: W, values: &Sixteen<Self>) -> W::Floats;
}

impl PanelFloat for f32 {
    const ZERO: Self = 0.0;

    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn load<W: Simd16>(wide: W, values: &Sixteen<f32>) -> W::Floats {
        wide.load(values)
    }
}

impl PanelFloat for bf16 {
    const ZERO: Self = bf16::ZERO;
    const PLACES: Sixteen<usize> = [0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15];

    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn load<W: Simd16>(wide: W, values: &Sixteen<bf16>) -> W::Floats {
        wide.load_bf16(values)
    }
}

impl PanelFloat for f16 {
    const ZERO: Self = f16::ZERO;

    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn load<W: Simd16>(wide: W, values: &Sixteen<f16>) -> W::Floats {
        wide.load_f16(values)
    }
}

/// Floats of 32 inputs.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct FloatPanel<T>([Sixteen<T>; BLOCK]);

impl<T: PanelFloat> FloatPanel<T> {
    /// `weight` of an output and an input.
    pub(super) fn pack(weight: impl Fn(usize, usize) -> T) -> Self {
        let mut packed = [[T::ZERO; PANEL]; BLOCK];
        for (input, values) in packed.iter_mut().enumerate() {
            T::PLACES.into_iter().enumerate().for_each(|(output, place)| values[place] = weight(output, input));
        }
        Self(packed)
    }
}

impl<T: PanelFloat> PanelBlock for FloatPanel<T> {
    const ZERO: Self = Self([[T::ZERO; PANEL]; BLOCK]);
    const INPUTS: usize = BLOCK;
    const ARITHMETIC: ProductArithmetic = ProductArithmetic::Floats;

    #[inline(always)]
    fn multiply<const R: usize, W: Simd16>(
        &self,
        wide: W,
        x: &PackedRows<'_>,
        row: usize,
        input: usize,
        totals: &mut [W::Floats; R],
    ) {
        let x = x.floats::<R>(row, input);
        for i in 0..BLOCK {
            let weights = T::load(wide, &self.0[i]);
            for r in 0..R {
                totals[r] = wide.multiply_add(weights, wide.splat(f32::from_bits(x[i][r])), totals[r]);
            }
        }
    }

    fn weight(&self, output: usize, input: usize) -> f32 {
        self.0[input][T::PLACES[output]].widen()
    }
}

/// [`Q8Block`]s of sixteen outputs.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(super) struct Q8Panel {
    scales: Sixteen<f16>,
    /// Number `i` are inputs `i` and `i + 16`.
    pairs: [Sixteen<[i8; 2]>; PAIRS],
}

impl Q8Panel {
    pub(super) fn pack(blocks: &Sixteen<Q8Block>) -> Self {
        let pair = |step: usize| blocks.each_ref().map(|block| [block.quants[step], block.quants[step + PAIRS]]);
        Self { scales: blocks.each_ref().map(|block| block.scale), pairs: std::array::from_fn(pair) }
    }
}

impl PanelBlock for Q8Panel {
    const ZERO: Self = Self { scales: [f16::ZERO; PANEL], pairs: [[[0; 2]; PANEL]; PAIRS] };
    const INPUTS: usize = BLOCK;
    const ARITHMETIC: ProductArithmetic = ProductArithmetic::Pairs;

    #[inline(always)]
    fn multiply<const R: usize, W: Simd16>(
        &self,
        wide: W,
        x: &PackedRows<'_>,
        row: usize,
        input: usize,
        totals: &mut [W::Floats; R],
    ) {
        let x = x.integers::<R, PAIRS>(row, input);
        let mut sums = [wide.zero_words(); R];
        for step in 0..PAIRS {
            let weights = wide.widen_pairs(&self.pairs[step]);
            for r in 0..R {
                sums[r] = wide.multiply_add_pairs(weights, wide.splat_word(x.words[step][r]), sums[r]);
            }
        }
        let scales = wide.load_f16(&self.scales);
        for r in 0..R {
            add_scaled(wide, wide.to_floats(sums[r]), x.scales[r], scales, &mut totals[r]);
        }
    }

    fn weight(&self, output: usize, input: usize) -> f32 {
        self.scales[output].to_f32() * f32::from(self.pairs[input % PAIRS][output][input / PAIRS])
    }
}

/// [`Q4KBlock`]s of sixteen outputs.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(super) struct Q4Panel {
    scales: Sixteen<f16>,
    /// With the sign changed.
    minimums: Sixteen<f16>,
    parts: [Q4Part; PARTS],
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Q4Part {
    scales: Sixteen<u8>,
    minimums: Sixteen<u8>,
    /// The lower halves of the four bytes of word `i` are inputs `i`, `i + 8`, `i + 16` and `i + 24`, the upper halves
    /// those four inputs further on.
    words: [Sixteen<u32>; QUADS / 2],
}

impl Q4Part {
    const ZERO: Self = Self { scales: [0; PANEL], minimums: [0; PANEL], words: [[0; PANEL]; QUADS / 2] };
}

impl Q4Panel {
    pub(super) fn pack(blocks: &Sixteen<Q4KBlock>) -> Self {
        let part = |part: usize| Q4Part {
            scales: blocks.each_ref().map(|block| block.scales[part]),
            minimums: blocks.each_ref().map(|block| block.minimums[part]),
            words: std::array::from_fn(|word| {
                blocks.each_ref().map(|block| {
                    let quants = &block.quants[part * BLOCK + word..];
                    let byte = |byte| quants[byte * QUADS] | quants[byte * QUADS + QUADS / 2] << 4;
                    u32::from_le_bytes(std::array::from_fn(byte))
                })
            }),
        };
        Self {
            scales: blocks.each_ref().map(|block| block.scale),
            minimums: blocks.each_ref().map(|block| -block.minimum),
            parts: std::array::from_fn(part),
        }
    }
}

impl PanelBlock for Q4Panel {
    const ZERO: Self =
        Self { scales: [f16::ZERO; PANEL], minimums: [f16::ZERO; PANEL], parts: [Q4Part::ZERO; PARTS] };
    const INPUTS: usize = SUPER_BLOCK;
    const ARITHMETIC: ProductArithmetic = ProductArithmetic::Quads;

    #[inline(always)]
    fn multiply<const R: usize, W: Simd16>(
        &self,
        wide: W,
        x: &PackedRows<'_>,
        row: usize,
        input: usize,
        totals: &mut [W::Floats; R],
    ) {
        for index in 0..PARTS {
            let (part, x) = (&self.parts[index], x.integers::<R, QUADS>(row, input + index * BLOCK));
            let mut sums = [wide.zero_words(); R];
            for word in 0..QUADS / 2 {
                let weights = wide.nibble_quads(&part.words[word]);
                for half in 0..2 {
                    for r in 0..R {
                        let x = wide.splat_word(x.words[word + half * (QUADS / 2)][r]);
                        sums[r] = wide.multiply_add_quads(weights[half], x, sums[r]);
                    }
                }
            }
            let scales = wide.multiply(wide.load_f16(&self.scales), wide.load_u8(&part.scales));
            for r in 0..R {
                add_scaled(wide, wide.quads_to_floats(sums[r]), x.scales[r], scales, &mut totals[r]);
            }
            let minimums = wide.multiply(wide.load_f16(&self.minimums), wide.load_u8(&part.minimums));
            for r in 0..R {
                totals[r] = wide.multiply_add(minimums, wide.splat(f32::from_bits(x.sums[r])), totals[r]);
            }
        }
    }

    fn weight(&self, output: usize, input: usize) -> f32 {
        let (part, input) = (&self.parts[input / BLOCK], input % BLOCK);
        let (word, half, byte) = (input % QUADS % (QUADS / 2), input % QUADS / (QUADS / 2), input / QUADS);
        let quant = part.words[word][output] >> (8 * byte + 4 * half) & 15;
        let scale = self.scales[output].to_f32() * f32::from(part.scales[output]);
        scale * quant as f32 + self.minimums[output].to_f32() * f32::from(part.minimums[output])
    }
}

/// `total += sums · x_scale · scales`.
#[inline(always)]
fn add_scaled<W: Simd16>(wide: W, sums: W::Floats, x_scale: u32, scales: W::Floats, total: &mut W::Floats) {
    let scaled = wide.multiply(sums, wide.splat(f32::from_bits(x_scale)));
    *total = wide.multiply_add(scaled, scales, *total);
}
