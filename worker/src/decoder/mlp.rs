//! The MLP of a block, gated or not.

use super::batch::BatchRows;
use super::linear::{LinearLayer, LinearSite};
use super::workspace::DecoderWorkspace;
use crate::families::{MlpSpec, ModelFamily};
use crate::kernels::{KernelError, Kernels};
use crate::weights::{ModelWeights, WeightsError};

pub(super) struct FeedForward<K: Kernels> {
    shape: MlpSpec,
    /// With a gate: its outputs, then those of the first layer.
    up: LinearLayer<K>,
    down: LinearLayer<K>,
}

impl<K: Kernels> FeedForward<K> {
    pub(super) fn load(
        kernels: &K,
        family: &ModelFamily,
        weights: &mut ModelWeights,
        prefix: &str,
    ) -> Result<Self, WeightsError> {
        let ModelFamily { spec, names, .. } = family;
        let module = |name: &str| format!("{prefix}{name}");
        let (up, down) = (module(names.mlp_up), module(names.mlp_down));
        let inner = spec.mlp.inner;
        let site = |module, shape| LinearSite { module, shape, bias: spec.biases.mlp };
        let first = site(&up, [inner, spec.hidden]);
        let up = match names.mlp_gate {
            Some(gate) => {
                LinearLayer::load_joined(kernels, weights, &[LinearSite { module: &module(gate), ..first }, first])?
            }
            None => LinearLayer::load(kernels, weights, first)?,
        };
        let down = LinearLayer::load(kernels, weights, site(&down, [spec.hidden, inner]))?;
        Ok(Self { shape: spec.mlp, up, down })
    }

    /// Reads `workspace.normed`, adds to `workspace.stream`.
    pub(super) fn forward(
        &self,
        kernels: &K,
        rows: BatchRows<'_>,
        workspace: &mut DecoderWorkspace<K>,
    ) -> Result<(), KernelError> {
        let DecoderWorkspace { normed, projected, inner, branch, stream, scratch, .. } = workspace;
        let MlpSpec { inner: width, activation, gated } = self.shape;
        self.up.forward(kernels, rows, normed, projected, scratch)?;
        if gated {
            kernels.activate_gated(activation, projected, rows.count, width, inner);
            self.down.forward_add(kernels, rows, inner, (stream, branch), scratch)
        } else {
            kernels.activate(activation, projected, rows.count * width);
            self.down.forward_add(kernels, rows, projected, (stream, branch), scratch)
        }
    }
}
