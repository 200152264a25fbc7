//! The instruction sets that kernels are compiled for, and which of them this machine has.
//!
//! A value of one of these types is the proof that the machine has the instructions.

/// The instruction sets that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InstructionSet {
    /// x86-64 with AVX-512, and AVX2 for the kernels of eight floats.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512, Avx2),
    /// x86-64 with AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// AArch64, with NEON for the kernels of sixteen numbers.
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
    /// The target's baseline, in plain Rust.
    Baseline,
}

impl InstructionSet {
    /// The best that this machine has.
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use std::is_x86_feature_detected as has;
            if has!("avx2") && has!("fma") && has!("f16c") {
                return Avx512::detect().map_or(Self::Avx2(Avx2(())), |wide| Self::Avx512(wide, Avx2(())));
            }
        }
        #[cfg(target_arch = "aarch64")]
        return Self::Neon(Neon);
        #[cfg(not(target_arch = "aarch64"))]
        Self::Baseline
    }
}

#[cfg(target_arch = "x86_64")]
/// AVX-512 F and BW with VNNI; only [`Avx512::detect`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Avx512(());

#[cfg(target_arch = "x86_64")]
impl Avx512 {
    /// The proof that this machine has them, if it does.
    fn detect() -> Option<Self> {
        use std::is_x86_feature_detected as has;
        (has!("avx512f") && has!("avx512bw") && has!("avx512vnni")).then_some(Self(()))
    }
}

/// AVX2, FMA and F16C; only [`InstructionSet::detect`] makes one.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Avx2(());

#[cfg(target_arch = "aarch64")]
/// NEON; the target has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neon;

/// The target's baseline.
#[derive(Clone, Copy)]
pub(super) struct Baseline;
