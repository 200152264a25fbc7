//! The weights of a checkpoint, converted to their formats in memory.

use std::collections::BTreeMap;

use candle_core::DType;
use candle_core::quantized::GgmlDType;

use sha2::{Digest, Sha256};

use super::WeightsError;
use super::host_matrix::{HostMatrix, row_bytes};
use super::lora::{LoraAdapter, LoraFactors};
use crate::checkpoint::config_section::JsonFile;
use crate::checkpoint::stored_tensor::TensorEncoding;
use crate::checkpoint::tensor_files::TensorFiles;
use crate::families::gguf::OriginalLayout;
use crate::families::{ModelFamily, TensorNames};
use crate::kernels::{CacheFormat, WeightFormat};

/// Element type of the weights in memory. Activations are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DtypeChoice {
    /// As the checkpoint stores them.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

/// How weights are quantised as they are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QuantizedFormat {
    /// 8 bits a weight and a scale for every 32, as GGML's Q8_0.
    #[value(name = "q8_0")]
    Q8_0,
    /// 4.5 bits a weight, as GGML's Q4_K; embedding and head, where it costs most, in Q8_0.
    #[value(name = "q4_k")]
    #[serde(rename = "q4_k")]
    Q4K,
}

/// The weights of a checkpoint in their formats in memory, with one adapter merged, and the unmerged
/// adapters.
pub struct ModelWeights {
    pub(crate) tensors: TensorFiles,
    /// Merged.
    pub(crate) merged: Option<LoraAdapter>,
    /// In the order of their indices.
    pub(crate) unmerged: Vec<LoraAdapter>,
    pub(crate) names: TensorNames,
    /// The checkpoint that adapters are made for, where it differs from this one.
    pub(crate) origin: Option<OriginalLayout>,
    pub(crate) dtype: DtypeChoice,
    pub(crate) quantize: Option<QuantizedFormat>,
}

impl ModelWeights {
    /// The weight `[outputs, inputs]` of the linear layer `module`.
    ///
    /// # Errors
    /// [`WeightsError`].
    pub fn matrix(&mut self, module: &str, shape: [usize; 2]) -> Result<HostMatrix, WeightsError> {
        self.merged(module, module, shape)
    }

    /// The matrix stored for `table`, without adapters.
    ///
    /// # Errors
    /// [`WeightsError`].
    pub fn table(&mut self, table: &str, shape: [usize; 2]) -> Result<HostMatrix, WeightsError> {
        self.read(table, shape, None)
    }

    /// The matrix stored for `table`, plus the merged adapter's update of the linear layer `module`.
    ///
    /// # Errors
    /// [`WeightsError`].
    pub fn merged(&mut self, table: &str, module: &str, shape: [usize; 2]) -> Result<HostMatrix, WeightsError> {
        let factors = self.merged.as_mut().map(|adapter| adapter.factors(module, shape)).transpose()?.flatten();
        self.read(table, shape, factors.as_ref())
    }

    fn read(
        &mut self,
        table: &str,
        shape: [usize; 2],
        update: Option<&LoraFactors>,
    ) -> Result<HostMatrix, WeightsError> {
        let name = format!("{table}.weight");
        let format = self.format(table, &self.tensors.get(&name)?.encoding);
        let mut matrix = HostMatrix::new(format, shape);
        self.tensors.read_rows(&name, shape, |rows| matrix.append(&rows, update))?;
        Ok(matrix)
    }

    /// Whether the merged adapter changes the linear layer `module`, not read so far.
    #[must_use]
    pub fn is_merged_into(&self, module: &str) -> bool {
        self.merged.as_ref().is_some_and(|adapter| adapter.changes(module))
    }

    /// The unmerged adapters' updates of the linear layer `module`, by index.
    ///
    /// # Errors
    /// [`WeightsError::Adapter`].
    pub fn factors(&mut self, module: &str, shape: [usize; 2]) -> Result<Vec<Option<LoraFactors>>, WeightsError> {
        let Self { unmerged, origin, .. } = self;
        let Some(origin) = origin else {
            return unmerged.iter_mut().map(|adapter| Ok(adapter.factors(module, shape)?)).collect();
        };
        let (module, order) = (origin.module(module), origin.order(module, shape[0]));
        let factors = unmerged.iter_mut().map(|adapter| match (adapter.factors(&module, shape)?, &order) {
            (Some(factors), Some(order)) => Ok(Some(factors.reordered(order)?)),
            (factors, _) => Ok(factors),
        });
        factors.collect()
    }

    /// The vector called `name`, of `len` elements.
    ///
    /// # Errors
    /// [`WeightsError`].
    pub fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, WeightsError> {
        let stored = self.tensors.read(name, &[len])?;
        stored.to_dtype(DType::F32).and_then(|vector| vector.to_vec1()).map_err(WeightsError::Convert)
    }

    /// Logs the tensors that are requantised because their blocks have no kernels.
    pub(crate) fn log_conversions(&self) {
        let mut conversions = BTreeMap::new();
        for (name, stored) in self.tensors.stored() {
            if let TensorEncoding::Blocks(dtype) = &stored.encoding
                && kept(*dtype).is_none()
            {
                let format = self.format(name.strip_suffix(".weight").unwrap_or(name), &stored.encoding);
                *conversions.entry((format!("{dtype:?}"), format!("{format:?}"))).or_insert(0) += 1;
            }
        }
        for ((stored, kept), matrices) in conversions {
            tracing::info!(stored, kept, matrices, "weights are quantised anew");
        }
    }

    /// Starts to show how much of the weights has been read.
    pub(crate) fn show_progress(&mut self) {
        let stored = self.tensors.stored().filter_map(|(_, stored)| stored.extent.as_ref().ok());
        let total_bytes = stored.map(|extent| extent.len() as u64).sum();
        self.tensors.show_progress(total_bytes);
    }

    /// Bytes of the loaded tensors, from the headers of the files.
    pub(crate) fn memory_bytes(&self, family: &ModelFamily) -> u64 {
        let tied = |module: &str| family.spec.tied && module == family.names.head;
        let bytes = self.tensors.stored().map(|(name, stored)| {
            let module = name.strip_suffix(".weight").unwrap_or(name);
            match (&*stored.shape, &stored.encoding) {
                (_, TensorEncoding::Other(_)) => 0,
                ([elements], _) => (*elements as u64).saturating_mul(size_of::<f32>() as u64),
                ([outputs, inputs], encoding) if !tied(module) => {
                    (*outputs as u64).saturating_mul(row_bytes(self.format(module, encoding), *inputs) as u64)
                }
                // Attention masks in older checkpoints.
                _ => 0,
            }
        });
        let unmerged = self.unmerged.iter().map(LoraAdapter::memory_bytes);
        bytes.chain(unmerged).fold(0, u64::saturating_add)
    }

    /// Format in memory of the matrix `module`, stored in `encoding`.
    ///
    /// Quantised tensors become at most Q8_0; learned positions are never quantised.
    fn format(&self, module: &str, encoding: &TensorEncoding) -> WeightFormat {
        let TensorNames { embedding, positions, head, .. } = self.names;
        match (encoding, self.quantize) {
            (TensorEncoding::Blocks(dtype), _) if kept(*dtype).is_some() => {
                kept(*dtype).unwrap_or(WeightFormat::Q8_0)
            }
            (TensorEncoding::Floats(dtype), None) => self.float_format(*dtype),
            (TensorEncoding::Floats(dtype), Some(_)) if positions == Some(module) => self.float_format(*dtype),
            (_, Some(QuantizedFormat::Q4K)) if module != embedding && module != head => WeightFormat::Q4K,
            _ => WeightFormat::Q8_0,
        }
    }

    /// Format in memory of the embedding, and of most matrices.
    pub(crate) fn main_format(&self) -> WeightFormat {
        let stored = self.tensors.get(&format!("{}.weight", self.names.embedding));
        stored.map_or(WeightFormat::F32, |stored| self.format(self.names.embedding, &stored.encoding))
    }

    fn float_format(&self, stored: DType) -> WeightFormat {
        match self.dtype {
            DtypeChoice::Auto => WeightFormat::of(stored),
            DtypeChoice::F32 => WeightFormat::F32,
            DtypeChoice::Bf16 => WeightFormat::Bf16,
            DtypeChoice::F16 => WeightFormat::F16,
        }
    }

    /// Digest of everything that determines the logits of a session without an adapter, and the meaning of its ids;
    /// `device_kind` is none on the CPU.
    pub(crate) fn fingerprint(
        &self,
        config: &JsonFile,
        tokenizer: &str,
        cache: CacheFormat,
        device_kind: Option<&str>,
    ) -> String {
        let mut formats = format!("{:?} {:?} {cache:?}", self.dtype, self.quantize);
        formats.push_str(device_kind.unwrap_or_default());
        let tensors = self.tensors.digest();
        let merged = self.merged.as_ref().map(|adapter| (adapter.config(), adapter.tensors_digest()));
        let mut parts = vec![config.bytes(), tokenizer.as_bytes(), &tensors, formats.as_bytes()];
        parts.extend(merged.iter().flat_map(|(config, tensors)| [*config, tensors]));
        digest(parts)
    }
}

/// SHA-256, in hex, over some contents with their lengths.
pub(crate) fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut digest = Sha256::new();
    for bytes in parts {
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    }
    format!("{:x}", digest.finalize())
}

/// The format of `dtype` if there are kernels for it.
fn kept(dtype: GgmlDType) -> Option<WeightFormat> {
    match dtype {
        GgmlDType::Q8_0 => Some(WeightFormat::Q8_0),
        GgmlDType::Q4K => Some(WeightFormat::Q4K),
        _ => None,
    }
}
