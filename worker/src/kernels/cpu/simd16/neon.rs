//! NEON, which every AArch64 has: sixteen numbers in four registers.

use std::arch::aarch64::*;

use half::{bf16, f16};

use super::{Simd16, Sixteen};
use crate::kernels::cpu::instruction_set::Neon;

#[expect(unsafe_code, reason = "loads and stores through pointers")]
// SAFETY of all blocks: references to arrays of sixteen are valid for the loads and stores of all their numbers.
impl Simd16 for Neon {
    type Floats = [float32x4_t; 4];
    type Words = [uint32x4_t; 4];

    #[inline(always)]
    fn zero(self) -> [float32x4_t; 4] {
        self.splat(0.0)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> [float32x4_t; 4] {
        unsafe { [vdupq_n_f32(value); 4] }
    }

    #[inline(always)]
    fn load(self, values: &Sixteen<f32>) -> [float32x4_t; 4] {
        let at = values.as_ptr();
        unsafe { [vld1q_f32(at), vld1q_f32(at.add(4)), vld1q_f32(at.add(8)), vld1q_f32(at.add(12))] }
    }

    #[inline(always)]
    fn load_bf16(self, values: &Sixteen<bf16>) -> [float32x4_t; 4] {
        let at = values.as_ptr().cast::<u16>();
        unsafe {
            let uint16x8x2_t(low, high) = vld2q_u16(at);
            [
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(low))),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_high_u16(low))),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(high))),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_high_u16(high))),
            ]
        }
    }

    #[inline(always)]
    fn load_f16(self, values: &Sixteen<f16>) -> [float32x4_t; 4] {
        let at = values.as_ptr().cast::<u16>();
        unsafe {
            let (low, high) = (vld1q_u16(at), vld1q_u16(at.add(8)));
            [
                vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(low))),
                vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(low))),
                vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(high))),
                vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(high))),
            ]
        }
    }

    #[inline(always)]
    fn load_u8(self, values: &Sixteen<u8>) -> [float32x4_t; 4] {
        unsafe {
            let bytes = vld1q_u8(values.as_ptr());
            let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
            [
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))),
                vcvtq_f32_u32(vmovl_high_u16(low)),
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))),
                vcvtq_f32_u32(vmovl_high_u16(high)),
            ]
        }
    }

    #[inline(always)]
    fn store(self, floats: [float32x4_t; 4], to: &mut Sixteen<f32>) {
        for i in 0..4 {
            unsafe { vst1q_f32(to.as_mut_ptr().add(4 * i), floats[i]) }
        }
    }

    #[inline(always)]
    fn multiply(self, mut a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        for i in 0..4 {
            a[i] = unsafe { vmulq_f32(a[i], b[i]) };
        }
        a
    }

    #[inline(always)]
    fn multiply_add(self, a: [float32x4_t; 4], b: [float32x4_t; 4], mut c: [float32x4_t; 4]) -> [float32x4_t; 4] {
        for i in 0..4 {
            c[i] = unsafe { vfmaq_f32(c[i], a[i], b[i]) };
        }
        c
    }

    #[inline(always)]
    fn larger(self, mut a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        for i in 0..4 {
            a[i] = unsafe { vmaxq_f32(vabsq_f32(a[i]), vabsq_f32(b[i])) };
        }
        a
    }

    #[inline(always)]
    fn largest(self, [a, b, c, d]: [float32x4_t; 4]) -> f32 {
        unsafe { vmaxvq_f32(vmaxq_f32(vmaxq_f32(a, b), vmaxq_f32(c, d))) }
    }

    #[inline(always)]
    fn sum(self, [a, b, c, d]: [float32x4_t; 4]) -> f32 {
        unsafe { vaddvq_f32(vaddq_f32(vaddq_f32(a, b), vaddq_f32(c, d))) }
    }

    #[inline(always)]
    fn zero_words(self) -> [uint32x4_t; 4] {
        self.splat_word(0)
    }

    #[inline(always)]
    fn splat_word(self, word: u32) -> [uint32x4_t; 4] {
        unsafe { [vdupq_n_u32(word); 4] }
    }

    #[inline(always)]
    fn store_words(self, words: [uint32x4_t; 4], to: &mut Sixteen<u32>) {
        for i in 0..4 {
            unsafe { vst1q_u32(to.as_mut_ptr().add(4 * i), words[i]) }
        }
    }

    #[inline(always)]
    fn round(self, floats: [float32x4_t; 4]) -> [uint32x4_t; 4] {
        let mut words = self.zero_words();
        for i in 0..4 {
            words[i] = unsafe { vreinterpretq_u32_s32(vcvtnq_s32_f32(floats[i])) };
        }
        words
    }

    #[inline(always)]
    fn pairs(self, mut low: [uint32x4_t; 4], high: [uint32x4_t; 4]) -> [uint32x4_t; 4] {
        for i in 0..4 {
            low[i] = unsafe { vsliq_n_u32::<16>(low[i], high[i]) };
        }
        low
    }

    #[inline(always)]
    fn widen_pairs(self, values: &Sixteen<[i8; 2]>) -> [uint32x4_t; 4] {
        let at = values.as_ptr().cast::<i8>();
        unsafe {
            let (low, high) = (vld1q_s8(at), vld1q_s8(at.add(16)));
            [
                vreinterpretq_u32_s16(vmovl_s8(vget_low_s8(low))),
                vreinterpretq_u32_s16(vmovl_high_s8(low)),
                vreinterpretq_u32_s16(vmovl_s8(vget_low_s8(high))),
                vreinterpretq_u32_s16(vmovl_high_s8(high)),
            ]
        }
    }

    #[inline(always)]
    fn nibble_quads(self, words: &Sixteen<u32>) -> [[uint32x4_t; 4]; 2] {
        let (mut low, mut high) = (self.zero_words(), self.zero_words());
        for i in 0..4 {
            unsafe {
                let bytes = vreinterpretq_u8_u32(vld1q_u32(words.as_ptr().add(4 * i)));
                low[i] = vreinterpretq_u32_u8(vandq_u8(bytes, vdupq_n_u8(15)));
                high[i] = vreinterpretq_u32_u8(vshrq_n_u8::<4>(bytes));
            }
        }
        [low, high]
    }

    #[inline(always)]
    fn multiply_add_pairs(self, a: [uint32x4_t; 4], b: [uint32x4_t; 4], mut c: [uint32x4_t; 4]) -> [uint32x4_t; 4] {
        for i in 0..4 {
            unsafe {
                let (a, b) = (vreinterpretq_s16_u32(a[i]), vreinterpretq_s16_u32(b[i]));
                let low = vmull_s16(vget_low_s16(a), vget_low_s16(b));
                let sums = vpaddq_s32(low, vmull_high_s16(a, b));
                c[i] = vaddq_u32(c[i], vreinterpretq_u32_s32(sums));
            }
        }
        c
    }

    #[inline(always)]
    fn multiply_add_quads(self, a: [uint32x4_t; 4], b: [uint32x4_t; 4], mut c: [uint32x4_t; 4]) -> [uint32x4_t; 4] {
        for i in 0..4 {
            unsafe {
                let (a, b) = (vreinterpretq_s8_u32(a[i]), vreinterpretq_s8_u32(b[i]));
                let low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
                let sums = vpaddq_s16(low, vmull_high_s8(a, b));
                c[i] = vreinterpretq_u32_s32(vpadalq_s16(vreinterpretq_s32_u32(c[i]), sums));
            }
        }
        c
    }

    #[inline(always)]
    fn to_floats(self, sums: [uint32x4_t; 4]) -> [float32x4_t; 4] {
        let mut floats = self.zero();
        for i in 0..4 {
            floats[i] = unsafe { vcvtq_f32_s32(vreinterpretq_s32_u32(sums[i])) };
        }
        floats
    }

    #[inline(always)]
    fn quads_to_floats(self, sums: [uint32x4_t; 4]) -> [float32x4_t; 4] {
        self.to_floats(sums)
    }
}
