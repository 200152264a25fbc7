//! The decoder over the f64 reference kernels, for checkpoints with changed weights.

use std::collections::HashMap;
use std::path::Path;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor, safetensors};
use cosec_worker::decoder::DecoderBatch;
use cosec_worker::kernels::TokenPlace;
use cosec_worker::kernels::reference::ReferenceKernels;
use cosec_worker::model::{self, BatchItem, LoadOptions, ModelRunner};
use serde_json::Value;

use crate::{golden, options};

/// Blocks of 4 tokens, in an order that must not matter.
pub(crate) const BLOCKS: [u32; 10] = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0];

/// All rows of one sequence of up to 40 tokens, alone in its batch.
pub(crate) fn logits(model: &mut ModelRunner, tokens: &[u32], adapter: Option<usize>) -> Vec<f32> {
    let item = BatchItem { tokens, start: 0, blocks: &BLOCKS, rows: 0..tokens.len(), adapter };
    let logits = model.forward(&[item]).unwrap();
    (0..logits.len()).flat_map(|row| logits.row(row).to_vec()).collect()
}

/// The same, over the reference kernels.
pub(crate) fn plain_logits(checkpoint: &Path, options: &LoadOptions, tokens: &[u32]) -> Vec<f32> {
    let (mut plain, _) = model::load(checkpoint, options, ReferenceKernels).unwrap();
    let places = (0..tokens.len()).map(|position| TokenPlace { position, blocks: &BLOCKS }).collect();
    let batch = DecoderBatch {
        tokens: tokens.to_vec(),
        places,
        wanted: (0..tokens.len()).collect(),
        ..DecoderBatch::default()
    };
    let mut logits = Vec::new();
    plain.forward(&batch, &mut logits).unwrap();
    logits
}

/// Norm of the difference divided by the norm of the expected values.
pub(crate) fn relative(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm =
        |values: &mut dyn Iterator<Item = f32>| values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt();
    norm(&mut found.iter().zip(expected).map(|(found, expected)| found - expected))
        / norm(&mut expected.iter().copied())
}

/// The weights of a golden checkpoint.
pub(crate) struct Numbers {
    pub(crate) weights: HashMap<String, Tensor>,
    config: Value,
}

impl Numbers {
    pub(crate) fn of(name: &str) -> Self {
        let weights = safetensors::load(golden(name).join("model.safetensors"), &Device::Cpu).unwrap();
        let config = serde_json::from_slice(&std::fs::read(golden(name).join("config.json")).unwrap()).unwrap();
        Self { weights, config }
    }

    /// Adds an adapter's updates, in f64, row-major.
    pub(crate) fn adapted(mut self, deltas: &HashMap<String, Vec<f64>>) -> Self {
        if deltas.contains_key("lm_head") && !self.weights.contains_key("lm_head.weight") {
            self.config["tie_word_embeddings"] = false.into();
            let table =
                self.weights.keys().find(|name| name.contains("embed_tokens") || name.contains("wte")).unwrap();
            self.weights.insert("lm_head.weight".to_owned(), self.weights[table].clone());
        }
        for (module, delta) in deltas {
            let weight = self.weights.get_mut(&format!("{module}.weight")).unwrap();
            let delta = Tensor::from_slice(delta, weight.shape(), &Device::Cpu).unwrap();
            *weight = (weight.to_dtype(DType::F64).unwrap() + delta).unwrap();
        }
        self
    }

    /// With every matrix `[outputs, inputs]` through the blocks that `format(name, inputs)` names; a last block of a
    /// row is padded with zeros.
    pub(crate) fn rounded(mut self, format: impl Fn(&str, usize) -> Option<GgmlDType>) -> Self {
        for (name, weight) in &mut self.weights {
            let Ok((_, inputs)) = weight.dims2() else { continue };
            let Some(dtype) = format(name, inputs) else { continue };
            let missing = inputs.next_multiple_of(dtype.block_size()) - inputs;
            let padded = weight.to_dtype(DType::F32).unwrap().pad_with_zeros(1, 0, missing).unwrap();
            let numbers = QTensor::quantize(&padded, dtype).unwrap().dequantize(&Device::Cpu).unwrap();
            *weight = numbers.narrow(1, 0, inputs).unwrap().contiguous().unwrap();
        }
        self
    }

    /// All rows of one sequence over the reference kernels.
    pub(crate) fn logits(&self, tokens: &[u32]) -> Vec<f32> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("config.json"), self.config.to_string()).unwrap();
        safetensors::save(&self.weights, directory.path().join("model.safetensors")).unwrap();
        plain_logits(directory.path(), &options(BLOCKS.len(), 4), tokens)
    }
}
