//! Embed, blocks, norm, head.

use std::time::Duration;

use super::attention::Attention;
use super::growing::Growing;
use super::linear::{Linear, Rows, Site, Stored};
use super::lora::{AdaptedRows, Scratch, Updates};
use super::mlp::FeedForward;
use super::norm::Norm;
use crate::families::{DecoderSpec, Family, Mlp, Positions, Residual};
use crate::kernels::{CacheShape, KernelError, Kernels, Place};
use crate::rows::RowTask;
use crate::weights::{Weights, WeightsError};

/// Rows of several sequences, one behind the other.
#[derive(Clone, Debug, Default)]
pub struct Batch<'a> {
    /// Token of each row.
    pub tokens: Vec<u32>,
    /// Where each row stands.
    pub places: Vec<Place<'a>>,
    /// Rows whose logits are wanted.
    pub wanted: Vec<usize>,
    /// Rows by the adapter that they chose.
    pub adapted: Vec<AdaptedRows>,
    /// Indices into `wanted` by the adapter that their rows chose.
    pub adapted_wanted: Vec<AdaptedRows>,
}

impl Batch<'_> {
    /// Its memory for another batch.
    #[must_use]
    pub fn reused<'a>(self) -> Batch<'a> {
        let Self { mut tokens, places, mut wanted, mut adapted, mut adapted_wanted } = self;
        tokens.clear();
        wanted.clear();
        adapted.clear();
        adapted_wanted.clear();
        // Collects in place.
        let places = places.into_iter().map_while(|_| None).collect();
        Batch { tokens, places, wanted, adapted, adapted_wanted }
    }

    pub(super) fn rows(&self) -> Rows<'_> {
        Rows { count: self.tokens.len(), adapted: &self.adapted }
    }

    fn wanted_rows(&self) -> Rows<'_> {
        Rows { count: self.wanted.len(), adapted: &self.adapted_wanted }
    }
}

/// A model on a device, with its cache.
pub struct Decoder<K: Kernels> {
    kernels: K,
    spec: DecoderSpec,
    embedding: K::Matrix,
    /// Learned positions.
    positions: Option<K::Matrix>,
    blocks: Vec<Block<K>>,
    final_norm: Norm<K>,
    head: Head<K>,
    cache: K::Cache,
    cache_shape: CacheShape,
    workspace: Workspace<K>,
}

enum Head<K: Kernels> {
    Own(Linear<K>),
    /// The embedding, and what adapters add to it in this place only.
    Tied(Updates<K>),
}

struct Block<K: Kernels> {
    attention_norm: Norm<K>,
    attention: Attention<K>,
    /// `None` when the MLP shares attention's.
    mlp_norm: Option<Norm<K>>,
    mlp: FeedForward<K>,
}

impl<K: Kernels> Decoder<K> {
    /// Brings the weights of `family` to the device and makes room for the cache.
    ///
    /// # Errors
    /// [`WeightsError`] when the checkpoint does not hold what the family's spec says, or memory runs out.
    pub fn load(
        kernels: K,
        family: &Family,
        weights: &mut Weights,
        cache_shape: CacheShape,
    ) -> Result<Self, WeightsError> {
        let Family { spec, names, .. } = family;
        let table = [spec.vocabulary, spec.hidden];
        // The largest ones first: while they are brought to the device there are two of them.
        let embedding = weights.table(names.embedding, table)?.upload(&kernels)?;
        let head = Head::load(&kernels, family, weights)?;
        let positions = match spec.positions {
            Positions::Rotary(_) => None,
            Positions::Learned => {
                let table = [spec.context_tokens, spec.hidden];
                Some(weights.table(names.positions, table)?.upload(&kernels)?)
            }
        };
        // Not reserved from the config's number: a block that the checkpoint lacks is an error first.
        let mut blocks = Vec::new();
        for index in 0..spec.layers {
            blocks.push(Block::load(&kernels, family, weights, &format!("{}{index}.", names.block))?);
        }
        let final_norm = Norm::load(&kernels, spec, weights, names.final_norm)?;
        let (cache, workspace) = (kernels.cache(cache_shape)?, Workspace::new(&kernels, spec, 1)?);
        let spec = spec.clone();
        Ok(Self { kernels, spec, embedding, positions, blocks, final_norm, head, cache, cache_shape, workspace })
    }

    /// What the forward pass looks like.
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
    pub fn forward(&mut self, batch: &Batch<'_>, logits: &mut Vec<f32>) -> Result<(), KernelError> {
        logits.resize(batch.wanted.len() * self.spec.vocabulary, 0.0);
        self.run(batch)?;
        self.kernels.read(self.workspace.logits.buffer(), logits)
    }

    /// The same, but takes of the logits of wanted row i what `tasks[i]` wants; see [`Kernels::read_rows`].
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_rows(&mut self, batch: &Batch<'_>, tasks: &mut [RowTask<'_>]) -> Result<Duration, KernelError> {
        self.run(batch)?;
        // Without any it waits, too: what failed concerns this batch and not the next one.
        self.kernels.read_rows(self.workspace.logits.buffer(), self.spec.vocabulary, tasks)
    }

    /// Leaves the wanted rows' logits in the workspace.
    fn run(&mut self, batch: &Batch<'_>) -> Result<(), KernelError> {
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

    fn embed(&mut self, batch: &Batch<'_>) -> Result<(), KernelError> {
        let Workspace { stream, branch, angles, host_angles, host_positions, frequencies, .. } = &mut self.workspace;
        self.kernels.embed(&self.embedding, &batch.tokens, stream);
        match (&self.spec.positions, &self.positions) {
            (Positions::Rotary(rotary), _) => {
                super::rotary::angles(rotary, frequencies, &batch.places, host_angles);
                self.kernels.write(host_angles, angles)?;
            }
            (Positions::Learned, Some(table)) => {
                // Positions are below the context's length, which a config limits to far less than 32 bits.
                host_positions.clear();
                host_positions.extend(batch.places.iter().map(|place| place.position as u32));
                self.kernels.embed(table, host_positions, branch);
                self.kernels.add(stream, branch, batch.tokens.len() * self.spec.hidden);
            }
            (Positions::Learned, None) => {}
        }
        Ok(())
    }

    fn block(&mut self, layer: usize, batch: &Batch<'_>) -> Result<(), KernelError> {
        let Self { kernels, spec, cache, workspace, .. } = self;
        let block = &self.blocks[layer];
        let rows = batch.tokens.len();
        block.attention_norm.forward(kernels, &workspace.stream, rows, &mut workspace.normed);
        block.attention.attend(kernels, spec, batch, (cache, layer), workspace)?;
        match (spec.residual, &block.mlp_norm) {
            // The MLP's norm reads the stream as it was before attention.
            (Residual::Parallel, Some(norm)) => {
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

    fn head(&mut self, batch: &Batch<'_>) -> Result<(), KernelError> {
        let rows = batch.wanted.len();
        let Workspace { stream, normed, branch, logits: out, scratch, .. } = &mut self.workspace;
        if rows == 0 {
            return Ok(());
        }
        let out = out.reserve(&self.kernels, rows * self.spec.vocabulary)?;
        self.kernels.select(stream, self.spec.hidden, &batch.wanted, branch);
        self.final_norm.forward(&self.kernels, branch, rows, normed);
        match &self.head {
            Head::Own(head) => head.forward(&self.kernels, batch.wanted_rows(), normed, out, scratch)?,
            Head::Tied(updates) => {
                self.kernels.linear(normed, rows, &self.embedding, None, out);
                updates.apply(&self.kernels, batch.wanted_rows(), normed, out, scratch)?;
            }
        }
        Ok(())
    }
}

impl<K: Kernels> Head<K> {
    fn load(kernels: &K, family: &Family, weights: &mut Weights) -> Result<Self, WeightsError> {
        let Family { spec, names, .. } = family;
        let shape = [spec.vocabulary, spec.hidden];
        if !spec.tied {
            let site = Site { module: names.head, shape, bias: spec.biases.head };
            return Ok(Self::Own(Linear::load(kernels, weights, site)?));
        }
        let factors = weights.factors(names.head, shape)?;
        if weights.is_merged_into(names.head) {
            // The embedding itself stays as it is.
            let weight = weights.merged(names.embedding, names.head, shape)?;
            return Ok(Self::Own(Linear::upload(kernels, Stored { weight, bias: None, factors })?));
        }
        let mut updates = Updates::new(shape);
        updates.push(kernels, 0, &factors)?;
        Ok(Self::Tied(updates))
    }
}

impl<K: Kernels> Block<K> {
    fn load(kernels: &K, family: &Family, weights: &mut Weights, prefix: &str) -> Result<Self, WeightsError> {
        let Family { spec, names, .. } = family;
        let norm = |weights: &mut Weights, name| Norm::load(kernels, spec, weights, &format!("{prefix}{name}"));
        Ok(Self {
            attention_norm: norm(weights, names.attention_norm)?,
            attention: Attention::load(kernels, family, weights, prefix)?,
            mlp_norm: match spec.residual {
                Residual::Sequential | Residual::Parallel => Some(norm(weights, names.mlp_norm)?),
                Residual::ParallelSharedNorm => None,
            },
            mlp: FeedForward::load(kernels, family, weights, prefix)?,
        })
    }
}

/// Buffers of a forward pass, kept from one to the next.
pub(super) struct Workspace<K: Kernels> {
    rows: usize,
    /// The residual stream `[rows][hidden]`.
    pub(super) stream: K::Buffer,
    /// Input of a branch.
    pub(super) normed: K::Buffer,
    /// What attention adds to the stream.
    pub(super) attended: K::Buffer,
    /// What the MLP adds to the stream.
    pub(super) branch: K::Buffer,
    pub(super) qkv: K::Buffer,
    /// What the heads of attention found, before the output projection.
    pub(super) found: K::Buffer,
    /// First layer of the MLP, with its gate.
    pub(super) projected: K::Buffer,
    /// Activated and gated.
    pub(super) inner: K::Buffer,
    pub(super) angles: K::Buffer,
    host_angles: Vec<f32>,
    host_positions: Vec<u32>,
    /// Radians per token of every rotated pair.
    frequencies: Vec<f64>,
    logits: Growing<K>,
    pub(super) scratch: Scratch<K>,
}

impl<K: Kernels> Workspace<K> {
    fn new(kernels: &K, spec: &DecoderSpec, rows: usize) -> Result<Self, KernelError> {
        let (rotated, frequencies) = match &spec.positions {
            Positions::Rotary(rotary) => (rotary.width, super::rotary::frequencies(rotary)),
            Positions::Learned => (0, Vec::new()),
        };
        let buffer = |width: usize| kernels.buffer(rows * width);
        let Mlp { inner, gated, .. } = spec.mlp;
        Ok(Self {
            rows,
            stream: buffer(spec.hidden)?,
            normed: buffer(spec.hidden)?,
            attended: buffer(spec.hidden)?,
            branch: buffer(spec.hidden)?,
            qkv: buffer(spec.heads.qkv_width())?,
            found: buffer(spec.heads.query_width())?,
            projected: buffer(if gated { 2 * inner } else { inner })?,
            inner: buffer(if gated { inner } else { 0 })?,
            angles: buffer(rotated)?,
            host_angles: Vec::new(),
            host_positions: Vec::new(),
            frequencies,
            logits: Growing::new(kernels)?,
            scratch: Scratch::new(kernels)?,
        })
    }

    /// Grows to the largest batch seen; the scheduler bounds batches.
    fn reserve(&mut self, kernels: &K, spec: &DecoderSpec, rows: usize) -> Result<(), KernelError> {
        if rows > self.rows {
            *self = Self::new(kernels, spec, rows)?;
        }
        Ok(())
    }
}
