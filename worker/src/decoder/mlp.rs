//! The MLP of a block, gated or not.

use super::decoder::Workspace;
use super::linear::{Linear, Rows, Site};
use crate::families::{Family, Mlp};
use crate::kernels::{KernelError, Kernels};
use crate::weights::{Weights, WeightsError};

pub(super) struct FeedForward<K: Kernels> {
    shape: Mlp,
    /// With a gate: its outputs, then those of the first layer.
    up: Linear<K>,
    down: Linear<K>,
}

impl<K: Kernels> FeedForward<K> {
    pub(super) fn load(
        kernels: &K,
        family: &Family,
        weights: &mut Weights,
        prefix: &str,
    ) -> Result<Self, WeightsError> {
        let Family { spec, names, .. } = family;
        let module = |name: &str| format!("{prefix}{name}");
        let (gate, up, down) = (module(names.mlp_gate), module(names.mlp_up), module(names.mlp_down));
        let inner = spec.mlp.inner;
        let site = |module, shape| Site { module, shape, bias: spec.biases.mlp };
        let first = site(&up, [inner, spec.hidden]);
        let up = match spec.mlp.gated {
            true => Linear::load_joined(kernels, weights, &[Site { module: &gate, ..first }, first])?,
            false => Linear::load(kernels, weights, first)?,
        };
        let down = Linear::load(kernels, weights, site(&down, [spec.hidden, inner]))?;
        Ok(Self { shape: spec.mlp, up, down })
    }

    /// Reads `workspace.normed`, adds to `workspace.stream`.
    pub(super) fn forward(
        &self,
        kernels: &K,
        rows: Rows<'_>,
        workspace: &mut Workspace<K>,
    ) -> Result<(), KernelError> {
        let Workspace { normed, projected, inner, branch, stream, scratch, .. } = workspace;
        let Mlp { inner: width, activation, gated } = self.shape;
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
