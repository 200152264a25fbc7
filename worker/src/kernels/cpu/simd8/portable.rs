//! Plain Rust for the target's baseline.

use half::{bf16, f16};

use super::{LANES, Lanes, Simd8, multiply_add};
use crate::kernels::cpu::instruction_set::Baseline;

impl Simd8 for Baseline {
    type Vector = Lanes;
    // Every AArch64 has fused multiply-add; elsewhere it would be a slow library call.
    const FUSED: bool = cfg!(target_arch = "aarch64");

    #[inline(always)]
    fn zero(self) -> Lanes {
        [0.0; LANES]
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Lanes {
        [value; LANES]
    }

    #[inline(always)]
    fn load_f32(self, values: &Lanes) -> Lanes {
        *values
    }

    #[inline(always)]
    fn load_bf16(self, values: &[bf16; LANES]) -> Lanes {
        values.map(bf16::to_f32)
    }

    #[inline(always)]
    fn load_f16(self, values: &[f16; LANES]) -> Lanes {
        values.map(f16::to_f32)
    }

    #[inline(always)]
    fn store(self, vector: Lanes, to: &mut Lanes) {
        *to = vector;
    }

    #[inline(always)]
    fn multiply_add(self, a: Lanes, b: Lanes, mut c: Lanes) -> Lanes {
        for lane in 0..LANES {
            c[lane] = multiply_add::<Self>(a[lane], b[lane], c[lane]);
        }
        c
    }
}
