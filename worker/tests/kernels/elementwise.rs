//! Norms, activations and rotations.

use cosec_worker::kernels::{Activation, AttentionHeads, Kernels, NormKind, NormWeights, RotaryLayout, RotaryPairs};
use rand::Rng;

use crate::{Compute, check, download, heads, random, upload, with_seeds};

struct Normed {
    kind: NormKind,
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Compute for Normed {
    fn with<K: Kernels>(&self, kernels: &K) -> Vec<f32> {
        let width = self.weight.len();
        let (weight, bias) = (upload(kernels, &self.weight), self.bias.as_ref().map(|bias| upload(kernels, bias)));
        let norm = NormWeights { kind: self.kind, epsilon: 1e-5, width, weight: &weight, bias: bias.as_ref() };
        let mut out = kernels.buffer(self.x.len()).unwrap();
        kernels.norm(&upload(kernels, &self.x), self.x.len() / width, norm, &mut out);
        download(kernels, &out, self.x.len())
    }
}

#[test]
fn norms_agree() {
    with_seeds(|rng| {
        let (rows, width) = (rng.random_range(1..5), rng.random_range(2..500));
        let (x, weight) = (random(rng, rows * width), random(rng, width));
        check(1e-5, Normed { kind: NormKind::RootMeanSquare, x: x.clone(), weight: weight.clone(), bias: None });
        check(1e-5, Normed { kind: NormKind::Layer, x, weight, bias: Some(random(rng, width)) });
    });
}

struct Activated(Activation, Vec<f32>);

impl Compute for Activated {
    fn with<K: Kernels>(&self, kernels: &K) -> Vec<f32> {
        let mut x = upload(kernels, &self.1);
        kernels.activate(self.0, &mut x, self.1.len());
        download(kernels, &x, self.1.len())
    }
}

struct Gated(Activation, Vec<f32>, usize);

impl Compute for Gated {
    fn with<K: Kernels>(&self, kernels: &K) -> Vec<f32> {
        let len = self.1.len() / 2;
        let mut out = kernels.buffer(len).unwrap();
        kernels.activate_gated(self.0, &upload(kernels, &self.1), len / self.2, self.2, &mut out);
        download(kernels, &out, len)
    }
}

#[test]
fn activations_agree() {
    with_seeds(|rng| {
        for activation in [Activation::Silu, Activation::GeluErf, Activation::GeluTanh] {
            let (rows, inner) = (rng.random_range(1..4), rng.random_range(1..100));
            let mut x: Vec<f32> = random(rng, 2 * rows * inner).into_iter().map(|x| 12.0 * x).collect();
            check(1e-6, Gated(activation, x.clone(), inner));
            x.extend([0.0, -0.0, 100.0, -100.0, 1e30, -1e30, 1e-30]);
            check(1e-6, Activated(activation, x));
        }
    });
}

struct Rotated {
    qkv: Vec<f32>,
    rows: usize,
    heads: AttentionHeads,
    rotary: RotaryLayout,
    angles: Vec<f32>,
}

impl Compute for Rotated {
    fn with<K: Kernels>(&self, kernels: &K) -> Vec<f32> {
        let mut qkv = upload(kernels, &self.qkv);
        kernels.rotate(&mut qkv, self.rows, self.heads, self.rotary, &upload(kernels, &self.angles));
        download(kernels, &qkv, self.qkv.len())
    }
}

#[test]
fn rotations_agree() {
    with_seeds(|rng| {
        for pairs in [RotaryPairs::Halves, RotaryPairs::Neighbours] {
            let (heads, rows) = (heads(rng), rng.random_range(1..5));
            let width = 2 * rng.random_range(1..=heads.width / 2);
            let (qkv, angles) = (random(rng, rows * heads.qkv_width()), random(rng, rows * width));
            check(1e-6, Rotated { qkv, rows, heads, rotary: RotaryLayout { width, pairs }, angles });
        }
    });
}
