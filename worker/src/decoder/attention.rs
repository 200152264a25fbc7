//! Grouped-query attention over the paged cache.

use super::batch::{BatchRows, DecoderBatch};
use super::linear::{LinearLayer, LinearSite};
use super::workspace::DecoderWorkspace;
use crate::families::{DecoderSpec, ModelFamily, PositionEmbedding, QkvNames};
use crate::kernels::{AttentionHeads, KernelError, Kernels, RotaryLayout};
use crate::weights::{ModelWeights, WeightsError};

pub(super) struct AttentionLayer<K: Kernels> {
    /// Queries, keys and values, each by head, whatever order the checkpoint has.
    qkv: LinearLayer<K>,
    output: LinearLayer<K>,
}

impl<K: Kernels> AttentionLayer<K> {
    pub(super) fn load(
        kernels: &K,
        family: &ModelFamily,
        weights: &mut ModelWeights,
        prefix: &str,
    ) -> Result<Self, WeightsError> {
        let ModelFamily { spec, names, .. } = family;
        let heads = spec.heads;
        let site = |module, outputs| LinearSite { module, shape: [outputs, spec.hidden], bias: spec.biases.qkv };
        let qkv = match names.qkv {
            QkvNames::Separate { names } => {
                let [query, key, value] = names.map(|name| format!("{prefix}{name}"));
                let (query, key) = (site(&query, heads.query_width()), site(&key, heads.kv_width()));
                LinearLayer::load_joined(kernels, weights, &[query, key, site(&value, heads.kv_width())])?
            }
            QkvNames::Fused { name, groups, order } => {
                let module = format!("{prefix}{name}");
                // The tensor's shape is checked before its rows are listed: the config alone could ask for any number.
                let fused = site(&module, heads.qkv_width());
                LinearLayer::load_reordered(kernels, weights, fused, || unfused(heads, groups, order))?
            }
        };
        let module = format!("{prefix}{}", names.attention_output);
        let shape = [spec.hidden, heads.query_width()];
        let output = LinearSite { module: &module, shape, bias: spec.biases.attention_output };
        Ok(Self { qkv, output: LinearLayer::load(kernels, weights, output)? })
    }

    /// Reads `workspace.normed`, writes `workspace.found`.
    pub(super) fn attend(
        &self,
        kernels: &K,
        spec: &DecoderSpec,
        batch: &DecoderBatch<'_>,
        (cache, layer): (&mut K::Cache, usize),
        workspace: &mut DecoderWorkspace<K>,
    ) -> Result<(), KernelError> {
        let DecoderWorkspace { normed, qkv, angles, found, scratch, .. } = workspace;
        let (rows, places) = (batch.rows(), batch.places.as_slice());
        self.qkv.forward(kernels, rows, normed, qkv, scratch)?;
        if let PositionEmbedding::Rotary(rotary) = &spec.positions {
            let layout = RotaryLayout { width: rotary.width, pairs: rotary.pairs };
            kernels.rotate_and_append(qkv, spec.heads, (layout, angles), places, cache, layer);
        } else {
            kernels.append(qkv, spec.heads, places, cache, layer);
        }
        kernels.attend(qkv, spec.heads, spec.windows[layer], places, (&*cache, layer), found);
        Ok(())
    }

    /// Reads `workspace.found`, writes `workspace.attended`.
    pub(super) fn project(
        &self,
        kernels: &K,
        rows: BatchRows<'_>,
        workspace: &mut DecoderWorkspace<K>,
    ) -> Result<(), KernelError> {
        let DecoderWorkspace { found, attended, scratch, .. } = workspace;
        self.output.forward(kernels, rows, found, attended, scratch)
    }

    /// Reads `workspace.found`, adds to `workspace.stream`.
    pub(super) fn project_add(
        &self,
        kernels: &K,
        rows: BatchRows<'_>,
        workspace: &mut DecoderWorkspace<K>,
    ) -> Result<(), KernelError> {
        let DecoderWorkspace { found, attended, stream, scratch, .. } = workspace;
        self.output.forward_add(kernels, rows, found, (stream, attended), scratch)
    }
}

/// Which stored row is row `i` of all queries, all keys, all values.
///
/// A group holds its share of the three, in `order`.
fn unfused(heads: AttentionHeads, groups: usize, order: [usize; 3]) -> Vec<u32> {
    let shares = [heads.query_width(), heads.kv_width(), heads.kv_width()].map(|width| width / groups);
    let group_rows: usize = shares.iter().sum();
    let mut rows = Vec::with_capacity(groups * group_rows);
    for part in 0..3 {
        let before: usize = order.iter().take_while(|&&other| other != part).map(|&other| shares[other]).sum();
        for group in 0..groups {
            let first = group * group_rows + before;
            // A matrix in memory has fewer rows than 32 bits count.
            rows.extend((first..first + shares[part]).map(|row| row as u32));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codegen_groups_hold_queries_values_keys() {
        let heads = AttentionHeads { query: 4, kv: 4, width: 1 };
        assert_eq!(unfused(heads, 2, [0, 2, 1]), [0, 1, 6, 7, 4, 5, 10, 11, 2, 3, 8, 9]);
    }

    #[test]
    fn one_group_stays_as_it_is() {
        let heads = AttentionHeads { query: 4, kv: 1, width: 2 };
        assert_eq!(unfused(heads, 1, [0, 1, 2]), (0..12).collect::<Vec<u32>>());
    }
}
