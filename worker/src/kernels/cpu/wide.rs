//! Sixteen outputs of a matrix at a time: the width of the panels that weights are stored in.
//!
//! Integers come in pairs of 16 bits, so that one instruction multiplies and adds two inputs of every output; their
//! sums are exact. Floats are added in one order, so instruction sets with fused multiply-add agree to the bit.

use half::{bf16, f16};

use super::lanes::{Baseline, InstructionSet};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(super) use avx512::Avx512;

/// Outputs of a panel.
pub(super) const PANEL: usize = 16;

/// A number for each output of a panel.
pub(super) type Sixteen<T> = [T; PANEL];

/// A kernel over panels that can be compiled for several instruction sets.
///
/// `run` and all that it calls must be `#[inline(always)]`, as in [`super::lanes::Task`].
pub(super) trait PanelTask {
    /// Computes it with the given instructions.
    fn run<W: Wide>(self, wide: W);
}

/// Instructions on sixteen numbers. A value is the proof that the machine has them.
pub(super) trait Wide: Copy {
    /// Sixteen floats.
    type Floats: Copy;
    /// Sixteen pairs of 16-bit integers, or sixteen 32-bit ones.
    type Pairs: Copy;

    fn zero(self) -> Self::Floats;
    fn splat(self, value: f32) -> Self::Floats;
    fn load(self, values: &Sixteen<f32>) -> Self::Floats;
    fn load_bf16(self, values: &Sixteen<bf16>) -> Self::Floats;
    fn load_f16(self, values: &Sixteen<f16>) -> Self::Floats;
    fn load_u8(self, values: &Sixteen<u8>) -> Self::Floats;
    fn store(self, floats: Self::Floats, to: &mut Sixteen<f32>);
    fn multiply(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a · b + c`.
    fn multiply_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;

    fn zero_pairs(self) -> Self::Pairs;
    /// The pair whose first number is in the low half of `pair`, sixteen times.
    fn splat_pair(self, pair: u32) -> Self::Pairs;
    fn load_pairs(self, values: &Sixteen<[i16; 2]>) -> Self::Pairs;
    fn widen_pairs(self, values: &Sixteen<[i8; 2]>) -> Self::Pairs;
    /// Bits `4 · index` to `4 · index + 3` of both halves of each word.
    fn nibble_pairs(self, words: &Sixteen<u32>, index: usize) -> Self::Pairs;
    fn store_pairs(self, pairs: Self::Pairs, to: &mut Sixteen<[i16; 2]>);
    /// `c + a₀ · b₀ + a₁ · b₁` in 32 bits.
    fn multiply_add_pairs(self, a: Self::Pairs, b: Self::Pairs, c: Self::Pairs) -> Self::Pairs;
    /// The 32-bit integers as floats.
    fn to_floats(self, sums: Self::Pairs) -> Self::Floats;
}

impl InstructionSet {
    /// Runs `task` with the widest instructions of the set.
    #[inline]
    pub(super) fn run_panels<T: PanelTask>(self, task: T) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(wide, _) => avx512::run(wide, task),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(wide) => avx2::run(wide, task),
            Self::Baseline => task.run(Baseline),
        }
    }
}
