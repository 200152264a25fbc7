//! AVX2, FMA and F16C: eight floats in one register.

use std::arch::x86_64::{
    __m256, _mm_add_ps, _mm_loadu_si128, _mm_movehl_ps, _mm_movelh_ps, _mm_setzero_ps, _mm_shuffle_ps, _mm_storeu_ps,
    _mm256_castps256_ps128, _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_extractf128_ps,
    _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_slli_epi32, _mm256_storeu_ps,
};

use half::{bf16, f16};

use super::{LANES, Lanes, Simd8};
use crate::kernels::cpu::instruction_set::Avx2;

#[expect(unsafe_code, reason = "instructions that not every machine has, and loads through pointers")]
// SAFETY of all blocks: an `Avx2` is only made after the features were detected, and references to arrays of eight
// are valid for the unaligned loads and stores of eight.
impl Simd8 for Avx2 {
    type Vector = __m256;
    const FUSED: bool = true;

    #[inline(always)]
    fn zero(self) -> __m256 {
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    fn load_f32(self, values: &Lanes) -> __m256 {
        unsafe { _mm256_loadu_ps(values.as_ptr()) }
    }

    #[inline(always)]
    fn load_bf16(self, values: &[bf16; LANES]) -> __m256 {
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(values.as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    fn load_f16(self, values: &[f16; LANES]) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(values.as_ptr().cast())) }
    }

    #[inline(always)]
    fn store(self, vector: __m256, to: &mut Lanes) {
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), vector) }
    }

    #[inline(always)]
    fn multiply_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn sums(self, vectors: [__m256; 4]) -> [f32; 4] {
        unsafe {
            let mut halves = [_mm_setzero_ps(); 4];
            for i in 0..4 {
                halves[i] = _mm_add_ps(_mm256_castps256_ps128(vectors[i]), _mm256_extractf128_ps::<1>(vectors[i]));
            }
            let [a, b, c, d] = halves;
            let ab = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
            let cd = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
            let sums = _mm_add_ps(_mm_shuffle_ps::<0b10_00_10_00>(ab, cd), _mm_shuffle_ps::<0b11_01_11_01>(ab, cd));
            let mut stored = [0.0; 4];
            _mm_storeu_ps(stored.as_mut_ptr(), sums);
            stored
        }
    }
}
