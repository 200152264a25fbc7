//! GGUF files, written by candle from the golden checkpoints: the same model, and only an error from a broken one.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use cosec_worker::check::CheckArgs;
use cosec_worker::model::{LoadOptions, ModelRunner};
use rand::Rng;
use tempfile::TempDir;

use crate::agreement::{args, check};
use crate::reference::{BLOCKS, logits, plain_logits, relative};
use crate::{golden, options};

/// Names of the modules in llama.cpp's converter.
const MODULES: [(&str, &str); 13] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.c_fc", "ffn_up"),
    ("mlp.c_proj", "ffn_down"),
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
];

/// The tokenizer in a GGUF file is not read.
const TOKENIZER: &str = r#"{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": []}"#;

/// A GGUF file and a tokenizer in one folder.
pub(crate) struct Converted(TempDir);

impl Converted {
    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("model.gguf")
    }

    /// `name` with its matrices in the first of `dtypes` whose blocks divide their rows, or dequantised from it.
    pub(crate) fn of(name: &str, dtypes: &[GgmlDType], dequantised: bool) -> Self {
        let source = golden(name);
        let config: serde_json::Value =
            serde_json::from_slice(&std::fs::read(source.join("config.json")).unwrap()).unwrap();
        let stored = candle_core::safetensors::load(source.join("model.safetensors"), &Device::Cpu).unwrap();
        let tensors: Vec<(String, QTensor)> =
            stored.iter().map(|(name, tensor)| convert(&config, name, tensor, (dtypes, dequantised))).collect();
        let converted = Self(tempfile::tempdir().unwrap());
        let metadata = metadata(&config);
        let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        gguf_file::write(&mut File::create(converted.path()).unwrap(), &metadata, &tensors).unwrap();
        std::fs::write(converted.0.path().join("tokenizer.json"), TOKENIZER).unwrap();
        converted
    }

    fn refused(&self, bytes: &[u8], parts: &[&str]) {
        std::fs::write(self.path(), bytes).unwrap();
        refused(&self.path(), &options(4, 4), &[&["model.gguf"], parts].concat());
    }
}

fn refused(model: &Path, options: &LoadOptions, parts: &[&str]) {
    let error = ModelRunner::load(model, options).err().unwrap_or_else(|| panic!("loaded, not {parts:?}"));
    let message = error.to_string();
    assert!(parts.iter().all(|part| message.contains(part)), "{message:?} lacks one of {parts:?}");
}

fn convert(
    config: &serde_json::Value,
    name: &str,
    tensor: &Tensor,
    (dtypes, dequantised): (&[GgmlDType], bool),
) -> (String, QTensor) {
    let size = |field: &str| config[field].as_u64().unwrap() as usize;
    let mut renamed = name.replace("model.layers.", "blk.").replace("lm_head", "output");
    for (from, to) in MODULES {
        renamed = renamed.replace(from, to);
    }
    let tensor = tensor.to_dtype(candle_core::DType::F32).unwrap();
    let heads = match name {
        _ if config["model_type"] != "llama" => None,
        _ if name.contains("q_proj") => Some(size("num_attention_heads")),
        _ if name.contains("k_proj") => Some(size("num_key_value_heads")),
        _ => None,
    };
    // As llama.cpp's converter does, the halves of every head become neighbours.
    let tensor = match heads {
        None => tensor,
        Some(heads) => {
            let (outputs, inputs) = tensor.dims2().unwrap();
            let halves = tensor.reshape((heads, 2, outputs / heads / 2, inputs)).unwrap();
            halves.transpose(1, 2).unwrap().contiguous().unwrap().reshape((outputs, inputs)).unwrap()
        }
    };
    let width = *tensor.dims().last().unwrap();
    let matrix = tensor.dims().len() == 2;
    let dtype = dtypes.iter().find(|dtype| matrix && width.is_multiple_of(dtype.block_size()));
    let quantised = QTensor::quantize(&tensor, *dtype.unwrap_or(&GgmlDType::F32)).unwrap();
    if dequantised {
        let tensor = quantised.dequantize(&Device::Cpu).unwrap();
        return (renamed, QTensor::quantize(&tensor, GgmlDType::F32).unwrap());
    }
    (renamed, quantised)
}

fn metadata(config: &serde_json::Value) -> HashMap<String, Value> {
    let name = config["model_type"].as_str().unwrap().to_owned();
    let mut metadata = HashMap::from([
        ("general.architecture".to_owned(), Value::String(name.clone())),
        ("tokenizer.ggml.eos_token_id".to_owned(), Value::U32(2)),
        ("tokenizer.ggml.tokens".to_owned(), Value::Array(vec![Value::String("a".to_owned()); 3])),
        ("tokenizer.ggml.scores".to_owned(), Value::Array(vec![Value::F32(0.5); 3])),
    ]);
    let mut add = |key: &str, value: Value| metadata.insert(format!("{name}.{key}"), value);
    for (key, field) in [
        ("block_count", "num_hidden_layers"),
        ("context_length", "max_position_embeddings"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("attention.sliding_window", "sliding_window"),
    ] {
        if let Some(size) = config[field].as_u64().filter(|_| field != "sliding_window" || name == "starcoder2") {
            add(key, Value::U32(size as u32));
        }
    }
    for (key, field) in [
        ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
        ("attention.layer_norm_epsilon", "norm_epsilon"),
        ("rope.freq_base", "rope_theta"),
    ] {
        if let Some(number) = config[field].as_f64() {
            add(key, Value::F32(number as f32));
        }
    }
    if let Some(factor) = config["rope_scaling"]["factor"].as_f64() {
        add("rope.scaling.type", Value::String("linear".to_owned()));
        add("rope.scaling.factor", Value::F32(factor as f32));
    }
    metadata
}

pub(crate) const MODELS: [&str; 4] = ["llama-linear-rope", "llama-gqa-tied", "qwen2", "starcoder2"];

#[test]
fn every_architecture_agrees() {
    for name in MODELS {
        let converted = Converted::of(name, &[GgmlDType::F32], false);
        check(&CheckArgs { model: converted.path(), ..args(name, None) });
        // A directory with one GGUF file is that file.
        check(&CheckArgs { model: converted.0.path().to_owned(), ..args(name, None) });
    }
}

/// Q8_0 is kept; formats without kernels become Q8_0. Either way the model has the
/// numbers in the file, except for the rounding of Q8_0.
#[test]
fn quantised_files_are_what_their_numbers_say() {
    let tokens: Vec<u32> = (3..16).collect();
    for name in MODELS {
        for dtype in [GgmlDType::Q8_0, GgmlDType::Q5_1, GgmlDType::Q4_0] {
            let [quantised, expected] = [false, true].map(|dequantised| {
                let file = Converted::of(name, &[dtype, GgmlDType::F16], dequantised);
                let mut model = ModelRunner::load(&file.path(), &options(BLOCKS.len(), 4)).unwrap();
                logits(&mut model, &tokens, None)
            });
            let relative = relative(&quantised, &expected);
            println!("{name} in {dtype:?}: relative difference {relative:.2e}");
            assert!(relative < 0.15, "{name} in {dtype:?}: {relative}");
        }
    }
}

/// Files that llama.cpp wrote, against llama.cpp's logits. It rounds activations to 16 bits, and to 8 for
/// quantised weights, which is nearly all of the difference.
#[test]
fn files_of_llama_cpp_agree_with_it() {
    for (name, tolerance) in [("starcoder2-f16", 5e-3), ("qwen2-q8_0", 4e-2), ("llama-q4_k", 4e-2)] {
        let folder = golden("../gguf").join(name);
        let (model, expected) = (folder.join("model.gguf"), folder.join("expected.json"));
        let tolerance = Some(tolerance);
        check(&CheckArgs { model: model.clone(), expected, tolerance, ..args("llama-gqa-tied", None) });
        let tokens: Vec<u32> = (3..40).collect();
        let options = options(BLOCKS.len(), 4);
        let mut fast = ModelRunner::load(&model, &options).unwrap();
        let difference = relative(&logits(&mut fast, &tokens, None), &plain_logits(&model, &options, &tokens));
        println!("{name}: relative difference {difference:.2e}");
        assert!(
            difference < if name.ends_with("q4_k") { 3e-2 } else { 5e-4 },
            "{name}: {difference} from its own numbers"
        );
    }
}

#[test]
fn a_tokenizer_is_asked_for() {
    let converted = Converted::of("qwen2", &[GgmlDType::F32], false);
    let tokenizer = converted.0.path().join("tokenizer.json");
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::rename(&tokenizer, elsewhere.path().join("tokenizer.json")).unwrap();
    refused(&converted.path(), &options(4, 4), &["tokenizer.json", "--tokenizer"]);
    let named = LoadOptions { tokenizer: Some(elsewhere.path().to_owned()), ..options(4, 4) };
    let model = ModelRunner::load(&converted.path(), &named).unwrap();
    assert_eq!(model.description().end_token_ids, [2]);
    assert!(model.description().tokenizer.is_some());
    let adapter = LoadOptions { adapter: Some(golden("llama-lora")), ..named };
    refused(&converted.path(), &adapter, &["model.gguf", "--adapter", "--lora NAME=DIR"]);
}

#[test]
fn broken_files_are_refused() {
    let converted = Converted::of("llama-gqa-tied", &[GgmlDType::Q8_0, GgmlDType::F16], false);
    let good = std::fs::read(converted.path()).unwrap();
    for length in [0, 3, 4, 8, 24, 100, 700, good.len() / 2, good.len() - 1] {
        converted.refused(&good[..length], &[]);
    }
    let with = |from: &[u8], to: &[u8]| {
        let at = good.windows(from.len()).position(|window| window == from).unwrap();
        let mut bad = good.clone();
        bad[at..at + to.len()].copy_from_slice(to);
        bad
    };
    converted.refused(&with(b"GGUF", b"GGML"), &["GGUF"]);
    converted.refused(&with(b"GGUF\x02", b"GGUF\x01"), &["version 1"]);
    converted.refused(&with(b"blk.1.ffn_up", b"blk.7.ffn_up"), &["blk.1.ffn_up.weight is missing"]);
    converted.refused(&with(b"llama.block_count", b"llama.block_rount"), &["llama.block_count is absent"]);
    converted.refused(&with(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lliam"), &["\"lliam\"", "starcoder2"]);
    converted.refused(&with(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\x7fllama"), &["header wants"]);
    // The count of tensors, after the version.
    let mut endless = good.clone();
    endless[8..16].fill(0xff);
    converted.refused(&endless, &["header wants"]);
    let mut rng = rand::rng();
    for _ in 0..400 {
        let mut bad = good.clone();
        for _ in 0..rng.random_range(1..4) {
            bad[rng.random_range(0..3000)] = rng.random();
        }
        std::fs::write(converted.path(), &bad).unwrap();
        drop(ModelRunner::load(&converted.path(), &options(4, 4)));
    }
}
