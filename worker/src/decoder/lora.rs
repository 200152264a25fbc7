//! Low-rank updates of linear layers (LoRA; Hu et al., 2021), applied beside the weights to the rows that chose them.

use super::growing::Growing;
use super::linear::Rows;
use crate::kernels::{KernelError, Kernels, WeightFormat};
use crate::weights::WeightsError;
use crate::weights::lora::Factors;

/// What the adapters add to one linear layer.
pub(super) struct Updates<K: Kernels> {
    inputs: usize,
    outputs: usize,
    /// By adapter; empty for one that leaves the layer alone.
    adapters: Vec<Vec<Update<K>>>,
}

/// `y[first..first + outputs] += up · (down · x)`.
struct Update<K: Kernels> {
    down: K::Matrix,
    up: K::Matrix,
    rank: usize,
    first: usize,
    outputs: usize,
}

impl<K: Kernels> Updates<K> {
    /// No updates yet, for a layer of these outputs and inputs.
    pub(super) fn new([outputs, inputs]: [usize; 2]) -> Self {
        Self { inputs, outputs, adapters: Vec::new() }
    }

    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Whether one of the rows chose an adapter that changes the layer.
    pub(super) fn concern(&self, rows: Rows<'_>) -> bool {
        let changes = |rows: &AdaptedRows| self.adapters.get(rows.adapter).is_some_and(|updates| !updates.is_empty());
        rows.adapted.iter().any(changes)
    }

    /// Adds the factors of every adapter for the outputs from `first` on.
    pub(super) fn push(
        &mut self,
        kernels: &K,
        first: usize,
        factors: &[Option<Factors>],
    ) -> Result<(), WeightsError> {
        self.adapters.resize_with(factors.len(), Vec::new);
        for (updates, factors) in self.adapters.iter_mut().zip(factors) {
            if let Some(Factors { down, up }) = factors {
                let (outputs, rank) = up.dims2().map_err(WeightsError::Convert)?;
                let [down, up] = [down, up].map(|factor| kernels.matrix(factor, WeightFormat::F32));
                let (down, up) = (down?, up?);
                updates.push(Update { down, up, rank, first, outputs });
            }
        }
        Ok(())
    }

    /// Adds to the rows of `out` what their adapters make of the rows of `x`.
    pub(super) fn apply(
        &self,
        kernels: &K,
        rows: Rows<'_>,
        x: &K::Buffer,
        out: &mut K::Buffer,
        scratch: &mut Scratch<K>,
    ) -> Result<(), KernelError> {
        for AdaptedRows { adapter, rows } in rows.adapted {
            let Some(updates) = self.adapters.get(*adapter).filter(|updates| !updates.is_empty()) else { continue };
            let chosen = scratch.chosen.reserve(kernels, rows.len() * self.inputs)?;
            kernels.select(x, self.inputs, rows, chosen);
            for Update { down, up, rank, first, outputs } in updates {
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

/// Rows that one adapter applies to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdaptedRows {
    /// Index of the adapter.
    pub adapter: usize,
    /// Ascending.
    pub rows: Vec<usize>,
}

/// Buffers of updates, as large as the largest so far.
pub(super) struct Scratch<K: Kernels> {
    /// The rows of one adapter.
    chosen: Growing<K>,
    /// Between the two factors.
    low: Growing<K>,
    update: Growing<K>,
}

impl<K: Kernels> Scratch<K> {
    pub(super) fn new(kernels: &K) -> Result<Self, KernelError> {
        Ok(Self { chosen: Growing::new(kernels)?, low: Growing::new(kernels)?, update: Growing::new(kernels)? })
    }
}
