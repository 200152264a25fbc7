//! Low-rank updates of linear layers (LoRA; Hu et al., 2021), applied to the rows that chose an adapter.

use super::batch::{AdaptedRows, BatchRows};
use super::growing::GrowingBuffer;
use crate::kernels::{KernelError, Kernels, WeightFormat};
use crate::weights::WeightsError;
use crate::weights::lora::LoraFactors;

/// The adapters' updates of one linear layer.
pub(super) struct LoraUpdates<K: Kernels> {
    inputs: usize,
    outputs: usize,
    /// By adapter; empty for one that leaves the layer alone.
    adapters: Vec<Vec<LoraUpdate<K>>>,
}

/// `y[first..first + outputs] += up · (down · x)`.
struct LoraUpdate<K: Kernels> {
    down: K::Matrix,
    up: K::Matrix,
    rank: usize,
    first: usize,
    outputs: usize,
}

impl<K: Kernels> LoraUpdates<K> {
    /// No updates yet, for a layer of these outputs and inputs.
    pub(super) fn new([outputs, inputs]: [usize; 2]) -> Self {
        Self { inputs, outputs, adapters: Vec::new() }
    }

    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Whether one of the rows chose an adapter that changes the layer.
    pub(super) fn concern(&self, rows: BatchRows<'_>) -> bool {
        let changes = |rows: &AdaptedRows| self.adapters.get(rows.adapter).is_some_and(|updates| !updates.is_empty());
        rows.adapted.iter().any(changes)
    }

    /// Adds the factors of every adapter for the outputs from `first` on.
    pub(super) fn push(
        &mut self,
        kernels: &K,
        first: usize,
        factors: &[Option<LoraFactors>],
    ) -> Result<(), WeightsError> {
        self.adapters.resize_with(factors.len(), Vec::new);
        for (updates, factors) in self.adapters.iter_mut().zip(factors) {
            if let Some(LoraFactors { down, up }) = factors {
                let (outputs, rank) = up.dims2().map_err(WeightsError::Convert)?;
                let [down, up] = [down, up].map(|factor| kernels.matrix(factor, WeightFormat::F32));
                let (down, up) = (down?, up?);
                updates.push(LoraUpdate { down, up, rank, first, outputs });
            }
        }
        Ok(())
    }

    /// Adds the adapters' updates for the rows of `x` to `out`.
    pub(super) fn apply(
        &self,
        kernels: &K,
        rows: BatchRows<'_>,
        x: &K::Buffer,
        out: &mut K::Buffer,
        scratch: &mut LoraScratch<K>,
    ) -> Result<(), KernelError> {
        for AdaptedRows { adapter, rows } in rows.adapted {
            let Some(updates) = self.adapters.get(*adapter).filter(|updates| !updates.is_empty()) else { continue };
            let chosen = scratch.chosen.reserve(kernels, rows.len() * self.inputs)?;
            kernels.select(x, self.inputs, rows, chosen);
            for LoraUpdate { down, up, rank, first, outputs } in updates {
                let low = scratch.low.reserve(kernels, rows.len() * rank)?;
                kernels.linear(chosen, rows.len(), down, None, low);
                let update = scratch.update.reserve(kernels, rows.len() * outputs)?;
                kernels.linear(low, rows.len(), up, None, update);
                kernels.add_rows(out, self.outputs, rows, *first..first + outputs, update);
            }
        }
        Ok(())
    }
}

/// Buffers of updates, as large as the largest so far.
pub(super) struct LoraScratch<K: Kernels> {
    /// The rows of one adapter.
    chosen: GrowingBuffer<K>,
    /// Between the two factors.
    low: GrowingBuffer<K>,
    update: GrowingBuffer<K>,
}

impl<K: Kernels> LoraScratch<K> {
    pub(super) fn new(kernels: &K) -> Result<Self, KernelError> {
        Ok(Self {
            chosen: GrowingBuffer::new(kernels)?,
            low: GrowingBuffer::new(kernels)?,
            update: GrowingBuffer::new(kernels)?,
        })
    }
}
