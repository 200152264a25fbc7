//! Embed, blocks, norm, head.

use std::time::Duration;

use super::attention::AttentionLayer;
use super::batch::DecoderBatch;
use super::linear::{LinearLayer, LinearSite, StoredLinear};
use super::lora::LoraUpdates;
use super::mlp::FeedForward;
use super::norm::NormLayer;
use super::workspace::DecoderWorkspace;
use crate::families::{DecoderSpec, ModelFamily, PositionEmbedding, ResidualLayout};
use crate::kernels::{CacheShape, KernelError, Kernels};
use crate::logits_view::LogitsTask;
use crate::weights::{ModelWeights, WeightsError};

/// A model on a device, with its cache.
pub struct DecoderModel<K: Kernels> {
    kernels: K,
    spec: DecoderSpec,
    embedding: K::Matrix,
    /// Learned positions.
    positions: Option<K::Matrix>,
    blocks: Vec<DecoderBlock<K>>,
    final_norm: NormLayer<K>,
    head: LmHead<K>,
    cache: K::Cache,
    cache_shape: CacheShape,
    workspace: DecoderWorkspace<K>,
}

enum LmHead<K: Kernels> {
    Own(LinearLayer<K>),
    /// The embedding, plus adapters' updates in this place only.
    Tied(LoraUpdates<K>),
}

struct DecoderBlock<K: Kernels> {
    attention_norm: NormLayer<K>,
    attention: AttentionLayer<K>,
    /// `None` when the MLP shares attention's.
    mlp_norm: Option<NormLayer<K>>,
    mlp: FeedForward<K>,
}

impl<K: Kernels> DecoderModel<K> {
    /// Uploads the weights of `family` to the device and allocates the cache.
    ///
    /// # Errors
    /// [`WeightsError`] when the checkpoint does not match the family's spec, or memory runs out.
    pub fn load(
        kernels: K,
        family: &ModelFamily,
        weights: &mut ModelWeights,
        cache_shape: CacheShape,
    ) -> Result<Self, WeightsError> {
        let ModelFamily { spec, names, .. } = family;
        let table = [spec.vocabulary, spec.hidden];
        // The largest ones first: during an upload there are two copies.
        let embedding = weights.table(names.embedding, table)?.upload(&kernels)?;
        let head = LmHead::load(&kernels, family, weights)?;
        let positions = match names.positions {
            Some(name) => Some(weights.table(name, [spec.context_tokens, spec.hidden])?.upload(&kernels)?),
            None => None,
        };
        // Not reserved from the config's number: a block that the checkpoint lacks is an error first.
        let mut blocks = Vec::new();
        for index in 0..spec.layers {
            blocks.push(DecoderBlock::load(&kernels, family, weights, &format!("{}{index}.", names.block))?);
        }
        let final_norm = NormLayer::load(&kernels, spec, weights, names.final_norm)?;
        let (cache, workspace) = (kernels.cache(cache_shape)?, DecoderWorkspace::new(&kernels, spec, 1)?);
        let spec = spec.clone();
        Ok(Self { kernels, spec, embedding, positions, blocks, final_norm, head, cache, cache_shape, workspace })
    }

    /// The structure of the forward pass.
    #[must_use]
    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// The device.
    #[must_use]
    pub fn kernels(&self) -> &K {
        &self.kernels
    }

    /// Size of the cache.
    #[must_use]
    pub fn cache_shape(&self) -> CacheShape {
        self.cache_shape
    }

    /// Runs the model over `batch`, caching keys and values, and writes the wanted rows' logits
    /// `[wanted][vocabulary]`.
    ///
    /// Places must lie within the cache and the context, tokens within the vocabulary.
    ///
    /// # Errors
    /// [`KernelError`]; what the cache holds at the batch's places is then undefined.
    pub fn forward(&mut self, batch: &DecoderBatch<'_>, logits: &mut Vec<f32>) -> Result<(), KernelError> {
        logits.resize(batch.wanted.len() * self.spec.vocabulary, 0.0);
        self.run(batch)?;
        self.kernels.read(self.workspace.logits.buffer(), logits)
    }

    /// Like [`Self::forward`], but runs `tasks[i]` on the logits of wanted row i; see [`Kernels::read_rows`].
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_rows(
        &mut self,
        batch: &DecoderBatch<'_>,
        tasks: &mut [LogitsTask<'_>],
    ) -> Result<Duration, KernelError> {
        self.run(batch)?;
        // Waits even without tasks, so that a failure is reported for this batch and not the next.
        self.kernels.read_rows(self.workspace.logits.buffer(), self.spec.vocabulary, tasks)
    }

    /// Leaves the wanted rows' logits in the workspace.
    fn run(&mut self, batch: &DecoderBatch<'_>) -> Result<(), KernelError> {
        if batch.tokens.is_empty() {
            return Ok(());
        }
        self.workspace.reserve(&self.kernels, &self.spec, batch.tokens.len())?;
        self.embed(batch)?;
        for layer in 0..self.blocks.len() {
            self.block(layer, batch)?;
        }
        self.head(batch)
    }

    fn embed(&mut self, batch: &DecoderBatch<'_>) -> Result<(), KernelError> {
        let DecoderWorkspace { stream, branch, angles, host_angles, host_positions, frequencies, .. } =
            &mut self.workspace;
        self.kernels.embed(&self.embedding, &batch.tokens, stream);
        match (&self.spec.positions, &self.positions) {
            (PositionEmbedding::Rotary(rotary), _) => {
                super::rotary::angles(rotary, frequencies, &batch.places, host_angles);
                self.kernels.write(host_angles, angles)?;
            }
            (PositionEmbedding::Learned, Some(table)) => {
                // Positions are below the context's length, which a config limits to far less than 32 bits.
                host_positions.clear();
                host_positions.extend(batch.places.iter().map(|place| place.position as u32));
                self.kernels.embed(table, host_positions, branch);
                self.kernels.add(stream, branch, batch.tokens.len() * self.spec.hidden);
            }
            (PositionEmbedding::Learned, None) => {}
        }
        Ok(())
    }

    fn block(&mut self, layer: usize, batch: &DecoderBatch<'_>) -> Result<(), KernelError> {
        let Self { kernels, spec, cache, workspace, .. } = self;
        let block = &self.blocks[layer];
        let rows = batch.tokens.len();
        block.attention_norm.forward(kernels, &workspace.stream, rows, &mut workspace.normed);
        block.attention.attend(kernels, spec, batch, (cache, layer), workspace)?;
        match (spec.residual, &block.mlp_norm) {
            // The MLP's norm reads the stream as it was before attention.
            (ResidualLayout::Parallel, Some(norm)) => {
                block.attention.project(kernels, batch.rows(), workspace)?;
                norm.forward(kernels, &workspace.stream, rows, &mut workspace.normed);
                kernels.add(&mut workspace.stream, &workspace.attended, rows * spec.hidden);
            }
            (_, norm) => {
                block.attention.project_add(kernels, batch.rows(), workspace)?;
                if let Some(norm) = norm {
                    norm.forward(kernels, &workspace.stream, rows, &mut workspace.normed);
                }
            }
        }
        block.mlp.forward(kernels, batch.rows(), workspace)
    }

    fn head(&mut self, batch: &DecoderBatch<'_>) -> Result<(), KernelError> {
        let rows = batch.wanted.len();
        let DecoderWorkspace { stream, normed, branch, logits: out, scratch, .. } = &mut self.workspace;
        if rows == 0 {
            return Ok(());
        }
        let out = out.reserve(&self.kernels, rows * self.spec.vocabulary)?;
        self.kernels.select(stream, self.spec.hidden, &batch.wanted, branch);
        self.final_norm.forward(&self.kernels, branch, rows, normed);
        match &self.head {
            LmHead::Own(head) => head.forward(&self.kernels, batch.wanted_rows(), normed, out, scratch)?,
            LmHead::Tied(updates) => {
                self.kernels.linear(normed, rows, &self.embedding, None, out);
                updates.apply(&self.kernels, batch.wanted_rows(), normed, out, scratch)?;
            }
        }
        Ok(())
    }
}

impl<K: Kernels> LmHead<K> {
    fn load(kernels: &K, family: &ModelFamily, weights: &mut ModelWeights) -> Result<Self, WeightsError> {
        let ModelFamily { spec, names, .. } = family;
        let shape = [spec.vocabulary, spec.hidden];
        if !spec.tied {
            let site = LinearSite { module: names.head, shape, bias: spec.biases.head };
            return Ok(Self::Own(LinearLayer::load(kernels, weights, site)?));
        }
        let factors = weights.factors(names.head, shape)?;
        if weights.is_merged_into(names.head) {
            // The embedding itself stays as it is.
            let weight = weights.merged(names.embedding, names.head, shape)?;
            return Ok(Self::Own(LinearLayer::upload(kernels, StoredLinear { weight, bias: None, factors })?));
        }
        let mut updates = LoraUpdates::new(shape);
        updates.push(kernels, 0, &factors)?;
        Ok(Self::Tied(updates))
    }
}

impl<K: Kernels> DecoderBlock<K> {
    fn load(
        kernels: &K,
        family: &ModelFamily,
        weights: &mut ModelWeights,
        prefix: &str,
    ) -> Result<Self, WeightsError> {
        let ModelFamily { spec, names, .. } = family;
        let norm =
            |weights: &mut ModelWeights, name| NormLayer::load(kernels, spec, weights, &format!("{prefix}{name}"));
        Ok(Self {
            attention_norm: norm(weights, names.attention_norm)?,
            attention: AttentionLayer::load(kernels, family, weights, prefix)?,
            mlp_norm: names.mlp_norm.map(|name| norm(weights, name)).transpose()?,
            mlp: FeedForward::load(kernels, family, weights, prefix)?,
        })
    }
}
