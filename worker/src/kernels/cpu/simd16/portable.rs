//! Plain Rust for the target's baseline.

use half::{bf16, f16};

use super::{Simd16, Sixteen};
use crate::kernels::cpu::instruction_set::Baseline;
use crate::kernels::cpu::simd8::multiply_add;

impl Simd16 for Baseline {
    type Floats = Sixteen<f32>;
    type Words = Sixteen<u32>;

    #[inline(always)]
    fn zero(self) -> Sixteen<f32> {
        [0.0; 16]
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Sixteen<f32> {
        [value; 16]
    }

    #[inline(always)]
    fn load(self, values: &Sixteen<f32>) -> Sixteen<f32> {
        *values
    }

    #[inline(always)]
    fn load_bf16(self, values: &Sixteen<bf16>) -> Sixteen<f32> {
        std::array::from_fn(|i| f32::from_bits(u32::from(values[i % 8 * 2 + i / 8].to_bits()) << 16))
    }

    #[inline(always)]
    fn load_f16(self, values: &Sixteen<f16>) -> Sixteen<f32> {
        values.map(f16::to_f32)
    }

    #[inline(always)]
    fn load_u8(self, values: &Sixteen<u8>) -> Sixteen<f32> {
        values.map(f32::from)
    }

    #[inline(always)]
    fn store(self, floats: Sixteen<f32>, to: &mut Sixteen<f32>) {
        *to = floats;
    }

    #[inline(always)]
    fn multiply(self, mut a: Sixteen<f32>, b: Sixteen<f32>) -> Sixteen<f32> {
        for i in 0..16 {
            a[i] *= b[i];
        }
        a
    }

    #[inline(always)]
    fn multiply_add(self, a: Sixteen<f32>, b: Sixteen<f32>, mut c: Sixteen<f32>) -> Sixteen<f32> {
        for i in 0..16 {
            c[i] = multiply_add::<Self>(a[i], b[i], c[i]);
        }
        c
    }

    #[inline(always)]
    fn larger(self, mut a: Sixteen<f32>, b: Sixteen<f32>) -> Sixteen<f32> {
        for i in 0..16 {
            a[i] = a[i].abs().max(b[i].abs());
        }
        a
    }

    #[inline(always)]
    fn largest(self, floats: Sixteen<f32>) -> f32 {
        floats.into_iter().fold(floats[0], f32::max)
    }

    #[inline(always)]
    fn sum(self, mut floats: Sixteen<f32>) -> f32 {
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                floats[i] += floats[i + half];
            }
        }
        floats[0]
    }

    #[inline(always)]
    fn zero_words(self) -> Sixteen<u32> {
        [0; 16]
    }

    #[inline(always)]
    fn splat_word(self, word: u32) -> Sixteen<u32> {
        [word; 16]
    }

    #[inline(always)]
    fn store_words(self, words: Sixteen<u32>, to: &mut Sixteen<u32>) {
        *to = words;
    }

    #[inline(always)]
    fn round(self, floats: Sixteen<f32>) -> Sixteen<u32> {
        floats.map(|value| (value.round_ties_even() as i32).cast_unsigned())
    }

    #[inline(always)]
    fn pairs(self, mut low: Sixteen<u32>, high: Sixteen<u32>) -> Sixteen<u32> {
        for i in 0..16 {
            low[i] = low[i] & 0xffff | high[i] << 16;
        }
        low
    }

    #[inline(always)]
    fn widen_pairs(self, values: &Sixteen<[i8; 2]>) -> Sixteen<u32> {
        let half = |value: i8| u32::from(i16::from(value).cast_unsigned());
        values.map(|[low, high]| half(low) | half(high) << 16)
    }

    #[inline(always)]
    fn nibble_quads(self, words: &Sixteen<u32>) -> [Sixteen<u32>; 2] {
        [words.map(|word| word & 0x0f0f_0f0f), words.map(|word| word >> 4 & 0x0f0f_0f0f)]
    }

    #[inline(always)]
    fn multiply_add_pairs(self, a: Sixteen<u32>, b: Sixteen<u32>, mut c: Sixteen<u32>) -> Sixteen<u32> {
        for i in 0..16 {
            let (a, b) = (halves(a[i]), halves(b[i]));
            let sum = i32::from(a[0]) * i32::from(b[0]) + i32::from(a[1]) * i32::from(b[1]);
            c[i] = c[i].wrapping_add_signed(sum);
        }
        c
    }

    #[inline(always)]
    fn multiply_add_quads(self, a: Sixteen<u32>, b: Sixteen<u32>, mut c: Sixteen<u32>) -> Sixteen<u32> {
        for i in 0..16 {
            let (a, b) = (a[i].to_le_bytes(), b[i].to_le_bytes());
            for byte in 0..4 {
                c[i] = c[i].wrapping_add_signed(i32::from(a[byte]) * i32::from(b[byte].cast_signed()));
            }
        }
        c
    }

    #[inline(always)]
    fn to_floats(self, sums: Sixteen<u32>) -> Sixteen<f32> {
        sums.map(|sum| sum.cast_signed() as f32)
    }

    #[inline(always)]
    fn quads_to_floats(self, sums: Sixteen<u32>) -> Sixteen<f32> {
        self.to_floats(sums)
    }
}

#[inline(always)]
fn halves(pair: u32) -> [i16; 2] {
    [pair as u16, (pair >> 16) as u16].map(u16::cast_signed)
}
