//! A linear layer.

use super::batch::BatchRows;
use super::lora::{LoraScratch, LoraUpdates};
use crate::kernels::{KernelError, Kernels};
use crate::weights::lora::LoraFactors;
use crate::weights::{HostMatrix, ModelWeights, WeightsError};

/// `x · weightᵀ + bias`, plus the adapters' updates.
pub(super) struct LinearLayer<K: Kernels> {
    weight: K::Matrix,
    bias: Option<K::Buffer>,
    updates: LoraUpdates<K>,
}

/// Where a checkpoint keeps a linear layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinearSite<'a> {
    /// Name of the tensors without `.weight` and `.bias`.
    pub(super) module: &'a str,
    /// Outputs and inputs.
    pub(super) shape: [usize; 2],
    /// Whether there is a bias.
    pub(super) bias: bool,
}

/// A layer as it was read.
pub(super) struct StoredLinear {
    pub(super) weight: HostMatrix,
    pub(super) bias: Option<Vec<f32>>,
    /// By adapter.
    pub(super) factors: Vec<Option<LoraFactors>>,
}

impl<K: Kernels> LinearLayer<K> {
    pub(super) fn load(kernels: &K, weights: &mut ModelWeights, site: LinearSite<'_>) -> Result<Self, WeightsError> {
        Self::upload(kernels, site.read(weights)?)
    }

    /// Joins layers over the same inputs into one, with their outputs concatenated.
    pub(super) fn load_joined(
        kernels: &K,
        weights: &mut ModelWeights,
        sites: &[LinearSite<'_>],
    ) -> Result<Self, WeightsError> {
        let parts = sites.iter().map(|site| site.read(weights)).collect::<Result<Vec<_>, _>>()?;
        let biases: Option<Vec<&[f32]>> = parts.iter().map(|part| part.bias.as_deref()).collect();
        let bias = biases.map(|biases| biases.concat());
        let (matrices, factors): (Vec<_>, Vec<_>) = parts.into_iter().map(|part| (part.weight, part.factors)).unzip();
        let weight = HostMatrix::stacked(matrices)?;
        let mut linear = Self::upload(kernels, StoredLinear { weight, bias, factors: Vec::new() })?;
        let mut outputs = 0;
        for (factors, site) in factors.iter().zip(sites) {
            linear.updates.push(kernels, outputs, factors)?;
            outputs += site.shape[0];
        }
        Ok(linear)
    }

    /// As [`Self::load`] with the outputs in another order: output `i` is the stored one `order()[i]`.
    pub(super) fn load_reordered(
        kernels: &K,
        weights: &mut ModelWeights,
        site: LinearSite<'_>,
        order: impl FnOnce() -> Vec<u32>,
    ) -> Result<Self, WeightsError> {
        let StoredLinear { weight, bias, factors } = site.read(weights)?;
        let order = order();
        let factors = factors.into_iter().map(|some| some.map(|factors| factors.reordered(&order)).transpose());
        let factors = factors.collect::<Result<Vec<_>, _>>()?;
        let bias = bias.map(|bias| order.iter().map(|&from| bias[from as usize]).collect());
        Self::upload(kernels, StoredLinear { weight: weight.reordered(&order), bias, factors })
    }

    pub(super) fn upload(kernels: &K, stored: StoredLinear) -> Result<Self, WeightsError> {
        let StoredLinear { weight, bias, factors } = stored;
        let bias = bias.map(|bias| vector(kernels, &bias)).transpose()?;
        let mut updates = LoraUpdates::new(weight.shape());
        updates.push(kernels, 0, &factors)?;
        Ok(Self { weight: weight.upload(kernels)?, bias, updates })
    }

    pub(super) fn forward(
        &self,
        kernels: &K,
        rows: BatchRows<'_>,
        x: &K::Buffer,
        out: &mut K::Buffer,
        scratch: &mut LoraScratch<K>,
    ) -> Result<(), KernelError> {
        kernels.linear(x, rows.count, &self.weight, self.bias.as_ref(), out);
        self.updates.apply(kernels, rows, x, out, scratch)
    }
}

impl<K: Kernels> LinearLayer<K> {
    /// As [`Self::forward`], with the outputs added to `sum`; `product` is memory for them.
    pub(super) fn forward_add(
        &self,
        kernels: &K,
        rows: BatchRows<'_>,
        x: &K::Buffer,
        (sum, product): (&mut K::Buffer, &mut K::Buffer),
        scratch: &mut LoraScratch<K>,
    ) -> Result<(), KernelError> {
        let outputs = self.updates.outputs();
        if !self.updates.concern(rows) {
            kernels.linear_add(x, rows.count, &self.weight, self.bias.as_ref(), (sum, outputs), product);
            return Ok(());
        }
        self.forward(kernels, rows, x, product, scratch)?;
        kernels.add(sum, product, rows.count * outputs);
        Ok(())
    }
}

impl LinearSite<'_> {
    fn read(&self, weights: &mut ModelWeights) -> Result<StoredLinear, WeightsError> {
        let weight = weights.matrix(self.module, self.shape)?;
        let bias = match self.bias {
            true => Some(weights.vector(&format!("{}.bias", self.module), self.shape[0])?),
            false => None,
        };
        Ok(StoredLinear { weight, bias, factors: weights.factors(self.module, self.shape)? })
    }
}

/// Uploads a vector of weights to the device.
pub(super) fn vector<K: Kernels>(kernels: &K, values: &[f32]) -> Result<K::Buffer, WeightsError> {
    let mut buffer = kernels.buffer(values.len())?;
    kernels.write(values, &mut buffer)?;
    Ok(buffer)
}
