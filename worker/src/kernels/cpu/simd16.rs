//! SIMD over sixteen outputs of a matrix: the width of the panels that weights are stored in.
//!
//! Integers come in words of 32 bits, two of 16 bits or four of 8 bits, so that one instruction multiplies and adds
//! several inputs of every output; their sums are exact. Floats are added in one order, so instruction sets with fused
//! multiply-add agree to the bit.

use half::{bf16, f16};

#[cfg(target_arch = "x86_64")]
use super::instruction_set::{Avx2, Avx512};
use super::instruction_set::{Baseline, InstructionSet};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

/// Outputs of a panel.
pub(super) const PANEL: usize = 16;

/// A number for each output of a panel.
pub(super) type Sixteen<T> = [T; PANEL];

/// A kernel over panels that can be compiled for several instruction sets.
///
/// `run` and all that it calls must be `#[inline(always)]`, as in [`super::simd8::Simd8Task`].
pub(super) trait Simd16Task {
    /// Computes it with the given instructions.
    fn run<W: Simd16>(self, wide: W);
}

/// Instructions on sixteen numbers. A value is the proof that the machine has them.
pub(super) trait Simd16: Copy {
    /// Sixteen floats.
    type Floats: Copy;
    /// Sixteen words of 32 bits: integers, pairs or quads.
    type Words: Copy;

    fn zero(self) -> Self::Floats;
    fn splat(self, value: f32) -> Self::Floats;
    fn load(self, values: &Sixteen<f32>) -> Self::Floats;
    /// Those at even places, then those at odd ones: a shift and a mask widen them.
    fn load_bf16(self, values: &Sixteen<bf16>) -> Self::Floats;
    fn load_f16(self, values: &Sixteen<f16>) -> Self::Floats;
    fn load_u8(self, values: &Sixteen<u8>) -> Self::Floats;
    fn store(self, floats: Self::Floats, to: &mut Sixteen<f32>);
    fn multiply(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a · b + c`.
    fn multiply_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;

    /// The larger of the two absolute values.
    fn larger(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The largest of sixteen.
    fn largest(self, floats: Self::Floats) -> f32;
    /// The sum of sixteen, in any order.
    fn sum(self, floats: Self::Floats) -> f32;

    fn zero_words(self) -> Self::Words;
    fn splat_word(self, word: u32) -> Self::Words;
    fn store_words(self, words: Self::Words, to: &mut Sixteen<u32>);
    /// The nearest integers, ties to even.
    fn round(self, floats: Self::Floats) -> Self::Words;
    /// Pairs of the lower halves of two integers.
    fn pairs(self, low: Self::Words, high: Self::Words) -> Self::Words;
    /// Pairs of 16 bits.
    fn widen_pairs(self, values: &Sixteen<[i8; 2]>) -> Self::Words;
    /// Quads of the lower four bits of each byte, and of the upper ones.
    fn nibble_quads(self, words: &Sixteen<u32>) -> [Self::Words; 2];
    /// `c + a₀ · b₀ + a₁ · b₁` in 32 bits.
    fn multiply_add_pairs(self, a: Self::Words, b: Self::Words, c: Self::Words) -> Self::Words;
    /// `c + a₀ · b₀ + a₁ · b₁ + a₂ · b₂ + a₃ · b₃` for `a` from 0 to 15 and `b` from -127 to 127. The sum of up to
    /// eight of them, from zero, is read by [`Self::quads_to_floats`].
    fn multiply_add_quads(self, a: Self::Words, b: Self::Words, c: Self::Words) -> Self::Words;
    /// 32-bit integers as floats.
    fn to_floats(self, sums: Self::Words) -> Self::Floats;
    /// Sums of [`Self::multiply_add_quads`] as floats.
    fn quads_to_floats(self, sums: Self::Words) -> Self::Floats;
}

impl InstructionSet {
    /// Runs `task` with the widest instructions of the set.
    #[inline]
    pub(super) fn run_panels<T: Simd16Task>(self, task: T) {
        match self {
            #[cfg(target_arch = "x86_64")]
            #[expect(unsafe_code, reason = "calls code compiled for instructions that not every machine has")]
            // SAFETY: an `Avx512` is only made after the features were detected.
            Self::Avx512(wide, _) => unsafe { with_avx512(task, wide) },
            #[cfg(target_arch = "x86_64")]
            #[expect(unsafe_code, reason = "calls code compiled for instructions that not every machine has")]
            // SAFETY: an `Avx2` is only made after the features were detected.
            Self::Avx2(wide) => unsafe { with_avx2(task, wide) },
            #[cfg(target_arch = "aarch64")]
            Self::Neon(wide) => task.run(wide),
            Self::Baseline => task.run(Baseline),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn with_avx512<T: Simd16Task>(task: T, wide: Avx512) {
    task.run(wide);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn with_avx2<T: Simd16Task>(task: T, wide: Avx2) {
    task.run(wide);
}
