//! AVX2, FMA and F16C: sixteen numbers in two registers.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{PanelTask, Sixteen, Wide};
use crate::kernels::cpu::lanes::Avx2;

/// Runs `task` with these instructions.
#[inline]
pub(super) fn run<T: PanelTask>(wide: Avx2, task: T) {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn compiled<T: PanelTask>(wide: Avx2, task: T) {
        task.run(wide);
    }
    #[expect(unsafe_code, reason = "calls code compiled for instructions that not every machine has")]
    // SAFETY: an `Avx2` is only made after the features were detected.
    unsafe {
        compiled(wide, task);
    }
}

#[expect(unsafe_code, reason = "instructions that not every machine has, and loads through pointers")]
// SAFETY of all blocks: an `Avx2` is only made after the features were detected, and references to arrays of sixteen
// are valid for the unaligned loads and stores of all their bytes.
impl Wide for Avx2 {
    type Floats = [__m256; 2];
    type Pairs = [__m256i; 2];

    #[inline(always)]
    fn zero(self) -> [__m256; 2] {
        unsafe { [_mm256_setzero_ps(); 2] }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> [__m256; 2] {
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    fn load(self, values: &Sixteen<f32>) -> [__m256; 2] {
        let at = values.as_ptr();
        unsafe { [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))] }
    }

    #[inline(always)]
    fn load_bf16(self, values: &Sixteen<bf16>) -> [__m256; 2] {
        let at = values.as_ptr().cast::<__m128i>();
        unsafe {
            let low = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(at)));
            let high = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(at.add(1))));
            [_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)]
        }
    }

    #[inline(always)]
    fn load_f16(self, values: &Sixteen<f16>) -> [__m256; 2] {
        let at = values.as_ptr().cast::<__m128i>();
        unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at.add(1)))] }
    }

    #[inline(always)]
    fn load_u8(self, values: &Sixteen<u8>) -> [__m256; 2] {
        unsafe {
            let low = _mm_loadu_si128(values.as_ptr().cast());
            let high = _mm_unpackhi_epi64(low, low);
            [_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(low)), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(high))]
        }
    }

    #[inline(always)]
    fn store(self, [low, high]: [__m256; 2], to: &mut Sixteen<f32>) {
        let at = to.as_mut_ptr();
        unsafe {
            _mm256_storeu_ps(at, low);
            _mm256_storeu_ps(at.add(8), high);
        }
    }

    #[inline(always)]
    fn multiply(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn multiply_add(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn zero_pairs(self) -> [__m256i; 2] {
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    fn splat_pair(self, pair: u32) -> [__m256i; 2] {
        unsafe { [_mm256_set1_epi32(pair.cast_signed()); 2] }
    }

    #[inline(always)]
    fn load_pairs(self, values: &Sixteen<[i16; 2]>) -> [__m256i; 2] {
        let at = values.as_ptr().cast::<__m256i>();
        unsafe { [_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1))] }
    }

    #[inline(always)]
    fn widen_pairs(self, values: &Sixteen<[i8; 2]>) -> [__m256i; 2] {
        let at = values.as_ptr().cast::<__m128i>();
        unsafe { [_mm256_cvtepi8_epi16(_mm_loadu_si128(at)), _mm256_cvtepi8_epi16(_mm_loadu_si128(at.add(1)))] }
    }

    #[inline(always)]
    fn nibble_pairs(self, words: &Sixteen<u32>, index: usize) -> [__m256i; 2] {
        let at = words.as_ptr().cast::<__m256i>();
        unsafe {
            let (mask, count) = (_mm256_set1_epi32(0x000f_000f), _mm_cvtsi32_si128(4 * index as i32));
            let low = _mm256_srl_epi32(_mm256_loadu_si256(at), count);
            let high = _mm256_srl_epi32(_mm256_loadu_si256(at.add(1)), count);
            [_mm256_and_si256(low, mask), _mm256_and_si256(high, mask)]
        }
    }

    #[inline(always)]
    fn store_pairs(self, [low, high]: [__m256i; 2], to: &mut Sixteen<[i16; 2]>) {
        let at = to.as_mut_ptr().cast::<__m256i>();
        unsafe {
            _mm256_storeu_si256(at, low);
            _mm256_storeu_si256(at.add(1), high);
        }
    }

    #[inline(always)]
    fn multiply_add_pairs(self, a: [__m256i; 2], b: [__m256i; 2], c: [__m256i; 2]) -> [__m256i; 2] {
        unsafe {
            let low = _mm256_add_epi32(c[0], _mm256_madd_epi16(a[0], b[0]));
            [low, _mm256_add_epi32(c[1], _mm256_madd_epi16(a[1], b[1]))]
        }
    }

    #[inline(always)]
    fn to_floats(self, [low, high]: [__m256i; 2]) -> [__m256; 2] {
        unsafe { [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)] }
    }
}
