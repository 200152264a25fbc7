//! SIMD over eight floats, with or without fused multiply-add.
//!
//! A kernel is written once, over [`Simd8`], and compiled twice: for AVX2 with FMA, and for whatever the target's
//! baseline. The choice is made when the kernels are created, so that all results of a process are rounded
//! alike.

use half::{bf16, f16};

#[cfg(target_arch = "x86_64")]
use super::instruction_set::Avx2;
use super::instruction_set::{Baseline, InstructionSet};

#[cfg(target_arch = "x86_64")]
mod avx2;
mod portable;

/// Lanes of a vector.
pub(super) const LANES: usize = 8;

/// Eight floats.
pub(super) type Lanes = [f32; LANES];

/// A kernel that can be compiled for several instruction sets.
///
/// `run` and all that it calls must be `#[inline(always)]`: only code inlined into [`fused`] gets its instructions.
pub(super) trait Simd8Task {
    /// What it computes.
    type Output;

    /// Computes it with the given instructions.
    fn run<S: Simd8>(self, simd: S) -> Self::Output;
}

/// Instructions on eight floats. A value is the proof that the machine has them.
pub(super) trait Simd8: Copy {
    /// Eight floats.
    type Vector: Copy;

    /// Whether [`Self::multiply_add`] rounds once.
    const FUSED: bool;

    fn zero(self) -> Self::Vector;
    fn splat(self, value: f32) -> Self::Vector;
    fn load_f32(self, values: &Lanes) -> Self::Vector;
    fn load_bf16(self, values: &[bf16; LANES]) -> Self::Vector;
    fn load_f16(self, values: &[f16; LANES]) -> Self::Vector;
    fn store(self, vector: Self::Vector, to: &mut Lanes);
    /// `a · b + c`.
    fn multiply_add(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;

    /// The sum of each, as [`sum`] has it.
    #[inline(always)]
    fn sums(self, vectors: [Self::Vector; 4]) -> [f32; 4] {
        vectors.map(|vector| {
            let mut lanes = [0.0; LANES];
            self.store(vector, &mut lanes);
            sum(lanes)
        })
    }
}

impl InstructionSet {
    /// Runs `task` with these instructions.
    #[inline]
    pub(super) fn run<T: Simd8Task>(self, task: T) -> T::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            #[expect(unsafe_code, reason = "calls code compiled for instructions that not every machine has")]
            // SAFETY: an `Avx2` is only made after the features were detected.
            Self::Avx2(avx2) | Self::Avx512(_, avx2) => unsafe { fused(task, avx2) },
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => task.run(Baseline),
            Self::Baseline => task.run(Baseline),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn fused<T: Simd8Task>(task: T, avx2: Avx2) -> T::Output {
    task.run(avx2)
}

/// A float in which weights, keys or values are stored. Zero bytes are the number zero.
pub(super) trait StoredFloat: Copy + Default + Send + Sync {
    /// The same number as f32.
    fn widen(self) -> f32;

    /// The nearest number of this type.
    fn narrow(value: f32) -> Self;

    /// Eight of them as f32.
    fn load<S: Simd8>(simd: S, values: &[Self; LANES]) -> S::Vector;
}

impl StoredFloat for f32 {
    fn widen(self) -> f32 {
        self
    }

    fn narrow(value: f32) -> f32 {
        value
    }

    #[inline(always)]
    fn load<S: Simd8>(simd: S, values: &[f32; LANES]) -> S::Vector {
        simd.load_f32(values)
    }
}

impl StoredFloat for bf16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }

    fn narrow(value: f32) -> Self {
        Self::from_f32(value)
    }

    #[inline(always)]
    fn load<S: Simd8>(simd: S, values: &[bf16; LANES]) -> S::Vector {
        simd.load_bf16(values)
    }
}

impl StoredFloat for f16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }

    fn narrow(value: f32) -> Self {
        Self::from_f32(value)
    }

    #[inline(always)]
    fn load<S: Simd8>(simd: S, values: &[f16; LANES]) -> S::Vector {
        simd.load_f16(values)
    }
}

/// Up to eight values, followed by zeros.
#[inline(always)]
pub(super) fn padded<W: StoredFloat>(values: &[W]) -> [W; LANES] {
    let mut padded = [W::default(); LANES];
    padded[..values.len()].copy_from_slice(values);
    padded
}

/// `a · b + c`.
#[inline(always)]
pub(super) fn multiply_add<S: Simd8>(a: f32, b: f32, c: f32) -> f32 {
    if S::FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// The sum of the lanes, as a tree.
#[inline(always)]
pub(super) fn sum(lanes: Lanes) -> f32 {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// Dot products of some rows `x` with some rows `w`, all of one length.
///
/// Element `i` goes to lane `i % LANES`, in ascending order, whatever `R` and `C` are. So a dot product has the same
/// bits whatever is computed with it.
#[inline(always)]
pub(super) fn dot_products<const R: usize, const C: usize, S: Simd8, W: StoredFloat>(
    simd: S,
    x: [&[f32]; R],
    w: [&[W]; C],
) -> [[f32; C]; R] {
    let whole = x[0].len() / LANES;
    let mut total = [[simd.zero(); C]; R];
    let mut x_chunks: [&[Lanes]; R] = [&[]; R];
    let mut w_chunks: [&[[W; LANES]]; C] = [&[]; C];
    for r in 0..R {
        x_chunks[r] = &x[r].as_chunks::<LANES>().0[..whole];
    }
    for c in 0..C {
        w_chunks[c] = &w[c].as_chunks::<LANES>().0[..whole];
    }
    for step in 0..whole {
        let mut w = [simd.zero(); C];
        for c in 0..C {
            w[c] = W::load(simd, &w_chunks[c][step]);
        }
        for r in 0..R {
            let x = simd.load_f32(&x_chunks[r][step]);
            for c in 0..C {
                total[r][c] = simd.multiply_add(x, w[c], total[r][c]);
            }
        }
    }
    let rest = whole * LANES;
    if rest < x[0].len() {
        for r in 0..R {
            let x = simd.load_f32(&padded(&x[r][rest..]));
            for c in 0..C {
                total[r][c] = simd.multiply_add(x, W::load(simd, &padded(&w[c][rest..])), total[r][c]);
            }
        }
    }
    let mut sums = [[0.0; C]; R];
    for first in (0..R * C).step_by(4) {
        let mut four = [simd.zero(); 4];
        let count = four.len().min(R * C - first);
        for i in 0..count {
            four[i] = total[(first + i) / C][(first + i) % C];
        }
        let found = simd.sums(four);
        for i in 0..count {
            sums[(first + i) / C][(first + i) % C] = found[i];
        }
    }
    sums
}

/// `e^x` to about two units in the last place; 0 below -87.
///
/// Cephes' `expf`: `x = n ln 2 + r` with |r| <= ln 2 / 2, a polynomial for `e^r`, and `2^n` by its bits. Free of
/// branches, so that loops over it vectorise.
#[inline(always)]
pub(super) fn exp<S: Simd8>(x: f32) -> f32 {
    // Adding and subtracting 1.5 · 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    // 355 / 512 exactly: its products with n are exact.
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = multiply_add::<S>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = multiply_add::<S>(n, -LN_2_HIGH, clamped);
    let r = multiply_add::<S>(n, -LN_2_LOW, r);
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
        p = multiply_add::<S>(p, r, coefficient);
    }
    let p = multiply_add::<S>(p * r, r, r) + 1.0;
    // The low bits of `shifted` are n, -126 to 127 after the clamp: the exponent's field holds it. NaN stays in `p`.
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { p * power }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(super) fn sigmoid<S: Simd8>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<S>(-x))
}
