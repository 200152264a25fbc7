//! Normalisation, rotation and activations, row by row.

use super::simd8::{LANES, Simd8, Simd8Task, exp, multiply_add, sigmoid, sum};
use crate::kernels::{Activation, NormKind, RotaryLayout, RotaryPairs};

/// One row through a normalisation.
pub(super) struct NormaliseTask<'a> {
    pub(super) kind: NormKind,
    pub(super) epsilon: f32,
    pub(super) x: &'a [f32],
    pub(super) weight: &'a [f32],
    pub(super) bias: Option<&'a [f32]>,
    pub(super) out: &'a mut [f32],
}

impl Simd8Task for NormaliseTask<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd8>(self, _: S) {
        let width = self.x.len() as f32;
        let mean = match self.kind {
            NormKind::RootMeanSquare => 0.0,
            NormKind::Layer => reduce(self.x, |x, total| total + x) / width,
        };
        let square = |x: f32, total| multiply_add::<S>(x - mean, x - mean, total);
        let variance = reduce(self.x, square) / width;
        let scale = 1.0 / (variance + self.epsilon).sqrt();
        for ((out, &x), &weight) in self.out.iter_mut().zip(self.x).zip(self.weight) {
            *out = (x - mean) * scale * weight;
        }
        if let Some(bias) = self.bias {
            self.out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
        }
    }
}

/// Folds `term` over `x` in lanes: element `i` goes to lane `i % LANES`.
#[inline(always)]
fn reduce(x: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut total = [0.0; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        for lane in 0..LANES {
            total[lane] = term(x[lane], total[lane]);
        }
    }
    for (lane, &x) in rest.iter().enumerate() {
        total[lane] = term(x, total[lane]);
    }
    sum(total)
}

/// Rotates one row's heads in place.
pub(super) struct RotateTask<'a> {
    pub(super) rotary: RotaryLayout,
    pub(super) head_width: usize,
    pub(super) angles: &'a [f32],
    pub(super) heads: &'a mut [f32],
}

impl Simd8Task for RotateTask<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd8>(self, _: S) {
        let half = self.rotary.width / 2;
        let (cos, sin) = self.angles.split_at(half);
        for head in self.heads.chunks_exact_mut(self.head_width) {
            let head = &mut head[..self.rotary.width];
            match self.rotary.pairs {
                RotaryPairs::Halves => {
                    let (a, b) = head.split_at_mut(half);
                    for (((a, b), &cos), &sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                        (*a, *b) = turn::<S>(*a, *b, cos, sin);
                    }
                }
                RotaryPairs::Neighbours => {
                    for ((pair, &cos), &sin) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                        *pair = turn::<S>(pair[0], pair[1], cos, sin).into();
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn turn<S: Simd8>(a: f32, b: f32, cos: f32, sin: f32) -> (f32, f32) {
    (multiply_add::<S>(a, cos, -(b * sin)), multiply_add::<S>(b, cos, a * sin))
}

/// Applies a nonlinearity in place.
pub(super) struct ActivateTask<'a> {
    pub(super) activation: Activation,
    pub(super) x: &'a mut [f32],
}

impl Simd8Task for ActivateTask<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd8>(self, _: S) {
        match self.activation {
            Activation::Silu => self.x.iter_mut().for_each(|x| *x *= sigmoid::<S>(*x)),
            Activation::GeluTanh => self.x.iter_mut().for_each(|x| *x = gelu_tanh::<S>(*x)),
            Activation::GeluErf => self.x.iter_mut().for_each(|x| *x = gelu_erf(*x)),
        }
    }
}

/// `out = activation(gate) · up` for one row.
pub(super) struct ActivateGatedTask<'a> {
    pub(super) activation: Activation,
    pub(super) gate: &'a [f32],
    pub(super) up: &'a [f32],
    pub(super) out: &'a mut [f32],
}

impl Simd8Task for ActivateGatedTask<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd8>(self, simd: S) {
        self.out.copy_from_slice(self.gate);
        ActivateTask { activation: self.activation, x: &mut *self.out }.run(simd);
        self.out.iter_mut().zip(self.up).for_each(|(out, up)| *out *= up);
    }
}

/// `x/2 · (1 + tanh(y)) = x · sigmoid(2y)`, which loses no digits where tanh is near -1.
#[inline(always)]
fn gelu_tanh<S: Simd8>(x: f32) -> f32 {
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769;
    let inner = multiply_add::<S>(0.044_715 * x * x, x, x);
    x / (1.0 + exp::<S>(-TWICE_SQRT_2_OVER_PI * inner))
}

#[inline(always)]
fn gelu_erf(x: f32) -> f32 {
    0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2))
}
