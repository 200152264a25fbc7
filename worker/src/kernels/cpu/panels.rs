//! How weights lie in memory: blocks of sixteen outputs by 32 or 256 inputs, read once from first to last.
//!
//! The sixteen numbers of one input, or of a pair, lie side by side, so that a vector holds a number of every output
//! and a product needs no sum across lanes.

#![expect(clippy::needless_range_loop, reason = "iterators that are not inlined spill every register")]

use half::{bf16, f16};

use super::activations::{Arithmetic, Packed};
use super::wide::{PANEL, Sixteen, Wide};
use crate::kernels::blocks::BLOCK;

/// Inputs whose weights are unpacked at once: they stay in the first-level cache while many rows pass.
pub(super) const UNPACKED: usize = 256;

/// Something that a group of rows is multiplied with.
pub(super) trait Multiply {
    /// Adds the products of `R` rows of `x`, from padded row `row` and input `input` on.
    fn multiply<const R: usize, W: Wide>(
        &self,
        wide: W,
        x: &Packed<'_>,
        row: usize,
        input: usize,
        totals: &mut [W::Floats; R],
    );
}

/// Sixteen outputs by some inputs, as they are stored.
pub(super) trait Block: Multiply + Copy + Send + Sync {
    /// Weights that are all zero.
    const ZERO: Self;
    /// Inputs of a block.
    const INPUTS: usize;
    /// How rows are multiplied.
    const ARITHMETIC: Arithmetic;
    /// The block as it is fastest to multiply with.
    type Plain: Multiply;
    /// [`UNPACKED`] inputs.
    type Scratch: AsMut<[Self::Plain]>;

    fn scratch() -> Self::Scratch;
    fn unpack<W: Wide>(&self, wide: W, plain: &mut Self::Plain);
    /// One weight, as a float.
    fn weight(&self, output: usize, input: usize) -> f32;
}

/// A type in which floats are stored.
pub(super) trait Float: Copy + Send + Sync {
    const ZERO: Self;

    fn widen(self) -> f32;
    fn load<W: Wide>(wide: W, values: &Sixteen<Self>) -> W::Floats;
}

impl Float for f32 {
    const ZERO: Self = 0.0;

    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn load<W: Wide>(wide: W, values: &Sixteen<f32>) -> W::Floats {
        wide.load(values)
    }
}

impl Float for bf16 {
    const ZERO: Self = bf16::ZERO;

    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn load<W: Wide>(wide: W, values: &Sixteen<bf16>) -> W::Floats {
        wide.load_bf16(values)
    }
}

impl Float for f16 {
    const ZERO: Self = f16::ZERO;

    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn load<W: Wide>(wide: W, values: &Sixteen<f16>) -> W::Floats {
        wide.load_f16(values)
    }
}

/// Floats of 32 inputs.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Floats<T>([Sixteen<T>; BLOCK]);

impl<T: Float> Floats<T> {
    /// `weight` of an output and an input.
    pub(super) fn pack(weight: impl Fn(usize, usize) -> T) -> Self {
        Self(std::array::from_fn(|input| std::array::from_fn(|output| weight(output, input))))
    }
}

impl<T: Float> Multiply for Floats<T> {
    #[inline(always)]
    fn multiply<const R: usize, W: Wide>(
        &self,
        wide: W,
        x: &Packed<'_>,
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
}

impl<T: Float> Block for Floats<T> {
    const ZERO: Self = Self([[T::ZERO; PANEL]; BLOCK]);
    const INPUTS: usize = BLOCK;
    const ARITHMETIC: Arithmetic = Arithmetic::Floats;
    type Plain = Floats<f32>;
    type Scratch = [Floats<f32>; UNPACKED / BLOCK];

    #[inline(always)]
    fn scratch() -> Self::Scratch {
        [Floats([[0.0; PANEL]; BLOCK]); UNPACKED / BLOCK]
    }

    #[inline(always)]
    fn unpack<W: Wide>(&self, wide: W, plain: &mut Floats<f32>) {
        for i in 0..BLOCK {
            wide.store(T::load(wide, &self.0[i]), &mut plain.0[i]);
        }
    }

    fn weight(&self, output: usize, input: usize) -> f32 {
        self.0[input][output].widen()
    }
}
