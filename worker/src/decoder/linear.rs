//! A linear layer.

use candle_core::{DType, Tensor};

use crate::kernels::{Kernels, WeightFormat};
use crate::loader::{LoadError, Weights};

/// `x · weightᵀ + bias`.
pub(super) struct Linear<K: Kernels> {
    weight: K::Matrix,
    bias: Option<K::Buffer>,
}

/// Where a checkpoint keeps a linear layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site<'a> {
    /// Name of the tensors without `.weight` and `.bias`.
    pub(super) module: &'a str,
    /// Outputs and inputs.
    pub(super) shape: [usize; 2],
    /// Whether there is a bias.
    pub(super) bias: bool,
}

impl<K: Kernels> Linear<K> {
    pub(super) fn load(kernels: &K, weights: &mut Weights, site: Site<'_>) -> Result<Self, LoadError> {
        let (weight, bias) = site.read(weights)?;
        Self::upload(kernels, &weight, bias.as_deref())
    }

    /// Joins layers over the same inputs into one, whose outputs are theirs one behind the other.
    pub(super) fn load_joined(kernels: &K, weights: &mut Weights, sites: &[Site<'_>]) -> Result<Self, LoadError> {
        let parts = sites.iter().map(|site| site.read(weights)).collect::<Result<Vec<_>, _>>()?;
        let first = parts.first().map(|(weight, _)| weight.dtype());
        let same = parts.iter().all(|(weight, _)| Some(weight.dtype()) == first);
        let unified = parts.iter().map(|(weight, _)| match same {
            true => Ok(weight.clone()),
            false => weight.to_dtype(DType::F32),
        });
        let unified = unified.collect::<Result<Vec<_>, _>>().map_err(LoadError::Convert)?;
        let weight = Tensor::cat(&unified, 0).map_err(LoadError::Convert)?;
        let biases: Option<Vec<Vec<f32>>> = parts.into_iter().map(|(_, bias)| bias).collect();
        Self::upload(kernels, &weight, biases.map(|biases| biases.concat()).as_deref())
    }

    /// As [`Self::load`] with the outputs in another order: output `i` is the stored one `order()[i]`.
    pub(super) fn load_reordered(
        kernels: &K,
        weights: &mut Weights,
        site: Site<'_>,
        order: impl FnOnce() -> Vec<u32>,
    ) -> Result<Self, LoadError> {
        let (weight, bias) = site.read(weights)?;
        let order = order();
        let index = Tensor::from_slice(&order, order.len(), weight.device()).map_err(LoadError::Convert)?;
        let weight = weight.index_select(&index, 0).map_err(LoadError::Convert)?;
        let bias = bias.map(|bias| order.iter().map(|&from| bias[from as usize]).collect::<Vec<_>>());
        Self::upload(kernels, &weight, bias.as_deref())
    }

    fn upload(kernels: &K, weight: &Tensor, bias: Option<&[f32]>) -> Result<Self, LoadError> {
        let bias = bias.map(|bias| vector(kernels, bias)).transpose()?;
        Ok(Self { weight: kernels.matrix(weight, WeightFormat::of(weight.dtype()))?, bias })
    }

    pub(super) fn forward(&self, kernels: &K, x: &K::Buffer, rows: usize, out: &mut K::Buffer) {
        kernels.linear(x, rows, &self.weight, self.bias.as_ref(), out);
    }
}

impl Site<'_> {
    fn read(&self, weights: &mut Weights) -> Result<(Tensor, Option<Vec<f32>>), LoadError> {
        let weight = weights.matrix(self.module, self.shape)?;
        let bias = match self.bias {
            true => Some(weights.vector(&format!("{}.bias", self.module), self.shape[0])?),
            false => None,
        };
        Ok((weight, bias))
    }
}

/// Brings a vector of weights to the device.
pub(super) fn vector<K: Kernels>(kernels: &K, values: &[f32]) -> Result<K::Buffer, LoadError> {
    let mut buffer = kernels.buffer(values.len())?;
    kernels.write(values, &mut buffer)?;
    Ok(buffer)
}
