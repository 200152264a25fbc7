//! AVX2, FMA and F16C: sixteen numbers in two registers.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Simd16, Sixteen};
use crate::kernels::cpu::instruction_set::Avx2;

#[expect(unsafe_code, reason = "instructions that not every machine has, and loads through pointers")]
// SAFETY of all blocks: an `Avx2` is only made after the features were detected, and references to arrays of sixteen
// are valid for the unaligned loads and stores of all their bytes.
impl Simd16 for Avx2 {
    type Floats = [__m256; 2];
    type Words = [__m256i; 2];

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
        unsafe {
            let pairs = _mm256_loadu_si256(values.as_ptr().cast());
            let (even, odd) = (_mm256_slli_epi32::<16>(pairs), _mm256_and_si256(pairs, _mm256_set1_epi32(-0x1_0000)));
            [_mm256_castsi256_ps(even), _mm256_castsi256_ps(odd)]
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
    fn larger(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            let low = _mm256_max_ps(_mm256_andnot_ps(sign, a[0]), _mm256_andnot_ps(sign, b[0]));
            [low, _mm256_max_ps(_mm256_andnot_ps(sign, a[1]), _mm256_andnot_ps(sign, b[1]))]
        }
    }

    #[inline(always)]
    fn largest(self, [low, high]: [__m256; 2]) -> f32 {
        unsafe {
            let eight = _mm256_max_ps(low, high);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn sum(self, [low, high]: [__m256; 2]) -> f32 {
        unsafe {
            let eight = _mm256_add_ps(low, high);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn zero_words(self) -> [__m256i; 2] {
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    fn splat_word(self, word: u32) -> [__m256i; 2] {
        unsafe { [_mm256_set1_epi32(word.cast_signed()); 2] }
    }

    #[inline(always)]
    fn store_words(self, [low, high]: [__m256i; 2], to: &mut Sixteen<u32>) {
        let at = to.as_mut_ptr().cast::<__m256i>();
        unsafe {
            _mm256_storeu_si256(at, low);
            _mm256_storeu_si256(at.add(1), high);
        }
    }

    #[inline(always)]
    fn round(self, [low, high]: [__m256; 2]) -> [__m256i; 2] {
        unsafe { [_mm256_cvtps_epi32(low), _mm256_cvtps_epi32(high)] }
    }

    #[inline(always)]
    fn pairs(self, low: [__m256i; 2], high: [__m256i; 2]) -> [__m256i; 2] {
        unsafe {
            let first = _mm256_blend_epi16::<0b1010_1010>(low[0], _mm256_slli_epi32::<16>(high[0]));
            [first, _mm256_blend_epi16::<0b1010_1010>(low[1], _mm256_slli_epi32::<16>(high[1]))]
        }
    }

    #[inline(always)]
    fn widen_pairs(self, values: &Sixteen<[i8; 2]>) -> [__m256i; 2] {
        let at = values.as_ptr().cast::<__m128i>();
        unsafe { [_mm256_cvtepi8_epi16(_mm_loadu_si128(at)), _mm256_cvtepi8_epi16(_mm_loadu_si128(at.add(1)))] }
    }

    #[inline(always)]
    fn nibble_quads(self, words: &Sixteen<u32>) -> [[__m256i; 2]; 2] {
        let at = words.as_ptr().cast::<__m256i>();
        unsafe {
            let (mask, first, second) = (_mm256_set1_epi8(15), _mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1)));
            let low = [_mm256_and_si256(first, mask), _mm256_and_si256(second, mask)];
            let high = [_mm256_srli_epi32::<4>(first), _mm256_srli_epi32::<4>(second)];
            [low, [_mm256_and_si256(high[0], mask), _mm256_and_si256(high[1], mask)]]
        }
    }

    #[inline(always)]
    fn multiply_add_pairs(self, a: [__m256i; 2], b: [__m256i; 2], c: [__m256i; 2]) -> [__m256i; 2] {
        unsafe {
            let low = _mm256_add_epi32(c[0], _mm256_madd_epi16(a[0], b[0]));
            [low, _mm256_add_epi32(c[1], _mm256_madd_epi16(a[1], b[1]))]
        }
    }

    /// Two sums of 16 bits for each output: eight times `2 · 15 · 127` fits.
    #[inline(always)]
    fn multiply_add_quads(self, a: [__m256i; 2], b: [__m256i; 2], c: [__m256i; 2]) -> [__m256i; 2] {
        unsafe {
            let low = _mm256_add_epi16(c[0], _mm256_maddubs_epi16(a[0], b[0]));
            [low, _mm256_add_epi16(c[1], _mm256_maddubs_epi16(a[1], b[1]))]
        }
    }

    #[inline(always)]
    fn to_floats(self, [low, high]: [__m256i; 2]) -> [__m256; 2] {
        unsafe { [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)] }
    }

    #[inline(always)]
    fn quads_to_floats(self, [low, high]: [__m256i; 2]) -> [__m256; 2] {
        unsafe {
            let ones = _mm256_set1_epi16(1);
            self.to_floats([_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, ones)])
        }
    }
}
