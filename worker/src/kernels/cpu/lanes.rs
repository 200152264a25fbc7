//! Eight floats at a time, with or without fused multiply-add.
//!
//! A kernel is written once, over arrays of eight lanes that the compiler turns into vector registers, and compiled
//! twice: for AVX2 with FMA, and for whatever the target's baseline is. Which one runs is decided when the kernels are
//! made, so that all results of a process are rounded alike.

use half::{bf16, f16};

/// Lanes of a vector.
pub(super) const LANES: usize = 8;

/// Eight floats.
pub(super) type Lanes = [f32; LANES];

/// A kernel that can be compiled for several instruction sets.
///
/// `run` and all that it calls must be `#[inline(always)]`: only code inlined into [`fused`] gets its instructions.
pub(super) trait Task {
    /// What it computes.
    type Output;

    /// Computes it, fusing multiplications and additions when `FUSED`.
    fn run<const FUSED: bool>(self) -> Self::Output;
}

/// The instruction sets that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InstructionSet {
    /// x86-64 with AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// The target's baseline.
    Baseline,
}

impl InstructionSet {
    /// The best that this machine has.
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            return Self::Avx2;
        }
        Self::Baseline
    }

    /// Runs `task` with these instructions.
    #[inline]
    pub(super) fn run<T: Task>(self, task: T) -> T::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            #[expect(unsafe_code, reason = "calls code compiled for instructions that not every machine has")]
            // SAFETY: this variant is only made after both features were detected.
            Self::Avx2 => unsafe { fused(task) },
            // Every AArch64 has fused multiply-add; elsewhere it would be a slow library call.
            Self::Baseline => task.run::<{ cfg!(target_arch = "aarch64") }>(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn fused<T: Task>(task: T) -> T::Output {
    task.run::<true>()
}

/// A type in which weights are stored.
pub(super) trait Element: Copy + Send + Sync {
    /// The same number as f32.
    fn widen(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Element for f16 {
    /// Written with integer operations because the crate's own conversion does not vectorise.
    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let sign = (bits & 0x8000) << 16;
        // Exponent and mantissa in their f32 places; the product moves the exponent's bias and makes subnormals normal.
        let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((254 - 15) << 23);
        let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
        f32::from_bits(sign | special | magnitude.to_bits())
    }
}

/// `a · b + c`.
#[inline(always)]
pub(super) fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// The sum of the lanes, as a tree.
#[inline(always)]
pub(super) fn sum(lanes: Lanes) -> f32 {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// Adds up `term` over both slices in lanes: element `i` goes to lane `i % LANES`.
#[inline(always)]
pub(super) fn reduce(x: &[f32], y: &[f32], term: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut total = [0.0; LANES];
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    for (x, y) in x.iter().zip(y) {
        for lane in 0..LANES {
            total[lane] = term(x[lane], y[lane], total[lane]);
        }
    }
    for (lane, (&x, &y)) in x_rest.iter().zip(y_rest).enumerate() {
        total[lane] = term(x, y, total[lane]);
    }
    sum(total)
}

/// `e^x` to about two units in the last place; 0 below -87.
///
/// Cephes' `expf`: `x = n ln 2 + r` with |r| <= ln 2 / 2, a polynomial for `e^r`, and `2^n` by its bits. Free of
/// branches, so that loops over it vectorise.
#[inline(always)]
pub(super) fn exp<const FUSED: bool>(x: f32) -> f32 {
    // Adding and subtracting 1.5 · 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_375;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = multiply_add::<FUSED>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = multiply_add::<FUSED>(n, -LN_2_HIGH, clamped);
    let r = multiply_add::<FUSED>(n, -LN_2_LOW, r);
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
        p = multiply_add::<FUSED>(p, r, coefficient);
    }
    let p = multiply_add::<FUSED>(p * r, r, r) + 1.0;
    // The low bits of `shifted` are n, -126 to 127 after the clamp: the exponent's field holds it. NaN stays in `p`.
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { p * power }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(super) fn sigmoid<const FUSED: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FUSED>(-x))
}
