//! AVX-512 with VNNI: sixteen numbers in one register, pairs and quads multiplied and added at once.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Simd16, Sixteen};
use crate::kernels::cpu::instruction_set::Avx512;

#[expect(unsafe_code, reason = "instructions that not every machine has, and loads through pointers")]
// SAFETY of all blocks: an `Avx512` is only made after the features were detected, and references to arrays of
// sixteen are valid for the unaligned loads and stores of all their bytes.
impl Simd16 for Avx512 {
    type Floats = __m512;
    type Words = __m512i;

    #[inline(always)]
    fn zero(self) -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, values: &Sixteen<f32>) -> __m512 {
        unsafe { _mm512_loadu_ps(values.as_ptr()) }
    }

    #[inline(always)]
    fn load_bf16(self, values: &Sixteen<bf16>) -> __m512 {
        unsafe {
            let pairs = _mm256_loadu_si256(values.as_ptr().cast());
            let (even, odd) = (_mm256_slli_epi32::<16>(pairs), _mm256_and_si256(pairs, _mm256_set1_epi32(-0x1_0000)));
            _mm512_castsi512_ps(_mm512_inserti64x4::<1>(_mm512_castsi256_si512(even), odd))
        }
    }

    #[inline(always)]
    fn load_f16(self, values: &Sixteen<f16>) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(values.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_u8(self, values: &Sixteen<u8>) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(values.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn store(self, floats: __m512, to: &mut Sixteen<f32>) {
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), floats) }
    }

    #[inline(always)]
    fn multiply(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn multiply_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn larger(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)) }
    }

    #[inline(always)]
    fn largest(self, floats: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(floats) }
    }

    #[inline(always)]
    fn sum(self, floats: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(floats) }
    }

    #[inline(always)]
    fn zero_words(self) -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    fn splat_word(self, word: u32) -> __m512i {
        unsafe { _mm512_set1_epi32(word.cast_signed()) }
    }

    #[inline(always)]
    fn store_words(self, words: __m512i, to: &mut Sixteen<u32>) {
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), words) }
    }

    #[inline(always)]
    fn round(self, floats: __m512) -> __m512i {
        unsafe { _mm512_cvtps_epi32(floats) }
    }

    #[inline(always)]
    fn pairs(self, low: __m512i, high: __m512i) -> __m512i {
        unsafe { _mm512_mask_blend_epi16(0xaaaa_aaaa, low, _mm512_slli_epi32::<16>(high)) }
    }

    #[inline(always)]
    fn widen_pairs(self, values: &Sixteen<[i8; 2]>) -> __m512i {
        unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(values.as_ptr().cast())) }
    }

    #[inline(always)]
    fn nibble_quads(self, words: &Sixteen<u32>) -> [__m512i; 2] {
        unsafe {
            let (mask, words) = (_mm512_set1_epi8(15), _mm512_loadu_si512(words.as_ptr().cast()));
            [_mm512_and_si512(words, mask), _mm512_and_si512(_mm512_srli_epi32::<4>(words), mask)]
        }
    }

    #[inline(always)]
    fn multiply_add_pairs(self, a: __m512i, b: __m512i, c: __m512i) -> __m512i {
        unsafe { _mm512_dpwssd_epi32(c, a, b) }
    }

    #[inline(always)]
    fn multiply_add_quads(self, a: __m512i, b: __m512i, c: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(c, a, b) }
    }

    #[inline(always)]
    fn to_floats(self, sums: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(sums) }
    }

    #[inline(always)]
    fn quads_to_floats(self, sums: __m512i) -> __m512 {
        self.to_floats(sums)
    }
}
