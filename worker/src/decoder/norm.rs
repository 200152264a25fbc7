//! Normalisation with its weights.

use super::linear::vector;
use crate::families::DecoderSpec;
use crate::kernels::{Kernels, NormKind, NormWeights};
use crate::weights::{ModelWeights, WeightsError};

pub(super) struct NormLayer<K: Kernels> {
    kind: NormKind,
    epsilon: f64,
    width: usize,
    weight: K::Buffer,
    bias: Option<K::Buffer>,
}

impl<K: Kernels> NormLayer<K> {
    pub(super) fn load(
        kernels: &K,
        spec: &DecoderSpec,
        weights: &mut ModelWeights,
        module: &str,
    ) -> Result<Self, WeightsError> {
        let width = spec.hidden;
        let mut read = |part| vector(kernels, &weights.vector(&format!("{module}.{part}"), width)?);
        let weight = read("weight")?;
        let bias = match spec.norm {
            NormKind::Layer => Some(read("bias")?),
            NormKind::RootMeanSquare => None,
        };
        Ok(Self { kind: spec.norm, epsilon: spec.norm_epsilon, width, weight, bias })
    }

    pub(super) fn forward(&self, kernels: &K, x: &K::Buffer, rows: usize, out: &mut K::Buffer) {
        let &Self { kind, epsilon, width, ref weight, ref bias } = self;
        kernels.norm(x, rows, NormWeights { kind, epsilon, width, weight, bias: bias.as_ref() }, out);
    }
}
