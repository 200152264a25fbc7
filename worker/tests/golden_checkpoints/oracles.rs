//! Other implementations of the same models: the decoder over the f64 kernels, and candle's Llama.

use std::collections::HashMap;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama;
use cosec_worker::model::{BatchItem, LoadOptions, ModelRunner, QuantizedFormat};
use serde_json::json;

use crate::reference::{BLOCKS, Numbers, logits, plain_logits, relative};
use crate::{ALL, golden, options};

#[test]
fn fast_kernels_agree_with_plain_ones() {
    for name in ALL {
        let tokens: Vec<u32> = (0..40).map(|i| i * 31 % 300).collect();
        let options = options(BLOCKS.len(), 4);
        let mut fast = ModelRunner::load(&golden(name), &options).unwrap();
        let found = logits(&mut fast, &tokens, None);
        let expected = plain_logits(&golden(name), &options, &tokens);
        for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert!((found - expected).abs() < 5e-5, "{name}, logit {index}: {found}, not {expected}");
        }
    }
}

/// Whatever quantising loses, the loaded model computes with the rounded weights, except for the
/// rounding of activations: to 16 bits, for Q4_K to 8, which costs up to 4 % where attention is sharpest.
#[test]
fn quantised_weights_are_their_rounded_numbers() {
    let tokens: Vec<u32> = (0..40).map(|i| i * 31 % 300).collect();
    for name in ALL {
        for (quantize, tolerance) in [(QuantizedFormat::Q8_0, 5e-4), (QuantizedFormat::Q4K, 5e-2)] {
            let rounded = Numbers::of(name).rounded(|tensor, _| format(quantize, tensor)).logits(&tokens);
            let options = LoadOptions { quantize: Some(quantize), ..options(BLOCKS.len(), 4) };
            let plain = plain_logits(&golden(name), &options, &tokens);
            let loading = relative(&plain, &rounded);
            let mut fast = ModelRunner::load(&golden(name), &options).unwrap();
            let computing = relative(&logits(&mut fast, &tokens, None), &plain);
            println!(
                "{name} in {quantize:?}: relative difference {loading:.2e} of loading, {computing:.2e} of computing"
            );
            assert!(loading < 1e-6 && computing < tolerance, "{name} in {quantize:?}: {loading}, {computing}");
        }
    }
}

/// A tensor quantised as `--quantize` does it.
fn format(quantize: QuantizedFormat, tensor: &str) -> Option<GgmlDType> {
    let is = |names: &[&str]| names.iter().any(|name| tensor.ends_with(&format!("{name}.weight")));
    match quantize {
        _ if is(&["wpe"]) => None,
        QuantizedFormat::Q4K if !is(&["embed_tokens", "embed_in", "wte", "lm_head", "embed_out"]) => {
            Some(GgmlDType::Q4K)
        }
        QuantizedFormat::Q8_0 | QuantizedFormat::Q4K => Some(GgmlDType::Q8_0),
    }
}

/// A larger shape than the golden ones: several layers, grouped queries, Llama 3's scaled frequencies.
#[test]
fn llama_agrees_with_candle() {
    let directory = tempfile::tempdir().unwrap();
    let config = json!({
        "model_type": "llama", "vocab_size": 1000, "hidden_size": 256, "intermediate_size": 688,
        "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512, "rope_theta": 500000.0, "tie_word_embeddings": false,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    });
    std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    let tensors = random_weights();
    candle_core::safetensors::save(&tensors, directory.path().join("model.safetensors")).unwrap();
    let tokens: Vec<u32> = (0..200).map(|i| i * 7919 % 1000).collect();

    let parsed: llama::LlamaConfig = serde_json::from_value(config).unwrap();
    let parsed = parsed.into_config(false);
    let mut cache = llama::Cache::new(false, DType::F32, &parsed, &Device::Cpu).unwrap();
    let oracle = llama::Llama::load(VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu), &parsed).unwrap();
    let input = Tensor::new(tokens.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let expected: Vec<f32> = oracle.forward(&input, 0, &mut cache).unwrap().squeeze(0).unwrap().to_vec1().unwrap();

    let mut model = ModelRunner::load(directory.path(), &options(16, 16)).unwrap();
    let blocks: Vec<u32> = (0..16).collect();
    let logits = model
        .forward(&[BatchItem { tokens: &tokens, start: 0, blocks: &blocks, rows: 199..200, adapter: None }])
        .unwrap();
    let scale = expected.iter().fold(0.0f32, |max, logit| max.max(logit.abs()));
    for (found, expected) in logits.row(0).iter().zip(&expected) {
        // Both sum in f32, in different orders, over six layers.
        assert!((found - expected).abs() < 1e-4 * scale, "{found}, not {expected} (largest {scale})");
    }
}

fn random_weights() -> HashMap<String, Tensor> {
    let mut tensors = HashMap::new();
    let mut insert = |name: String, mean: f32, dims: &[usize]| {
        let tensor = Tensor::randn(mean, 0.1, dims, &Device::Cpu).unwrap();
        tensors.insert(format!("{name}.weight"), tensor);
    };
    for name in ["model.embed_tokens", "lm_head"] {
        insert(name.to_owned(), 0.0, &[1000, 256]);
    }
    insert("model.norm".to_owned(), 1.0, &[256]);
    for layer in 0..6 {
        for (name, mean, dims) in [
            ("input_layernorm", 1.0, &[256][..]),
            ("post_attention_layernorm", 1.0, &[256]),
            ("self_attn.q_proj", 0.0, &[256, 256]),
            ("self_attn.k_proj", 0.0, &[64, 256]),
            ("self_attn.v_proj", 0.0, &[64, 256]),
            ("self_attn.o_proj", 0.0, &[256, 256]),
            ("mlp.gate_proj", 0.0, &[688, 256]),
            ("mlp.up_proj", 0.0, &[688, 256]),
            ("mlp.down_proj", 0.0, &[256, 688]),
        ] {
            insert(format!("model.layers.{layer}.{name}"), mean, dims);
        }
    }
    tensors
}
