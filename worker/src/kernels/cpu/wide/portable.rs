//! Plain Rust for the target's baseline, which on AArch64 has NEON.

use half::{bf16, f16};

use super::{Sixteen, Wide};
use crate::kernels::cpu::lanes::{Baseline, multiply_add};

impl Wide for Baseline {
    type Floats = Sixteen<f32>;
    type Pairs = Sixteen<u32>;

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
        values.map(|value| f32::from_bits(u32::from(value.to_bits()) << 16))
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
    fn zero_pairs(self) -> Sixteen<u32> {
        [0; 16]
    }

    #[inline(always)]
    fn splat_pair(self, pair: u32) -> Sixteen<u32> {
        [pair; 16]
    }

    #[inline(always)]
    fn load_pairs(self, values: &Sixteen<[i16; 2]>) -> Sixteen<u32> {
        values.map(|[low, high]| u32::from(low.cast_unsigned()) | u32::from(high.cast_unsigned()) << 16)
    }

    #[inline(always)]
    fn widen_pairs(self, values: &Sixteen<[i8; 2]>) -> Sixteen<u32> {
        self.load_pairs(&values.map(|pair| pair.map(i16::from)))
    }

    #[inline(always)]
    fn nibble_pairs(self, words: &Sixteen<u32>, index: usize) -> Sixteen<u32> {
        words.map(|word| word >> (4 * index) & 0x000f_000f)
    }

    #[inline(always)]
    fn store_pairs(self, pairs: Sixteen<u32>, to: &mut Sixteen<[i16; 2]>) {
        *to = pairs.map(halves);
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
    fn to_floats(self, sums: Sixteen<u32>) -> Sixteen<f32> {
        sums.map(|sum| sum.cast_signed() as f32)
    }
}

#[inline(always)]
fn halves(pair: u32) -> [i16; 2] {
    [pair as u16, (pair >> 16) as u16].map(u16::cast_signed)
}
