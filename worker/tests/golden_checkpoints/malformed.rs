//! A broken checkpoint or adapter is one clear error.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use cosec_worker::model::{LoadOptions, ModelRunner, NamedAdapter};
use rand::Rng;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{golden, options};

/// A copy of a golden directory that can be broken.
pub(crate) struct Copy(TempDir);

impl Copy {
    pub(crate) fn of(name: &str) -> Self {
        let copy = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(golden(name)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::write(copy.path().join(path.file_name().unwrap()), std::fs::read(&path).unwrap()).unwrap();
        }
        Self(copy)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    fn edit_json(&self, file: &str, edit: impl FnOnce(&mut Value)) {
        let path = self.path().join(file);
        let mut value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        edit(&mut value);
        std::fs::write(path, value.to_string()).unwrap();
    }

    fn edit_tensors(&self, file: &str, edit: impl FnOnce(&mut HashMap<String, Tensor>)) {
        let path = self.path().join(file);
        let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        edit(&mut tensors);
        candle_core::safetensors::save(&tensors, path).unwrap();
    }

    /// Loading fails with a message that has all `parts`.
    pub(crate) fn refused(&self, options: &LoadOptions, parts: &[&str]) {
        let error = ModelRunner::load(self.path(), options).err().unwrap_or_else(|| panic!("loaded, not {parts:?}"));
        let message = error.to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message:?} lacks one of {parts:?}");
    }
}

fn check_config(name: &str, field: &str, value: Value, parts: &[&str]) {
    let copy = Copy::of(name);
    copy.edit_json("config.json", |config| config[field] = value);
    copy.refused(&options(4, 4), &[&["config.json"], parts].concat());
}

#[test]
fn config_fields_are_checked() {
    check_config("llama-gqa-tied", "hidden_size", Value::Null, &["hidden_size is missing", "expected an integer"]);
    check_config("llama-gqa-tied", "hidden_size", json!(0), &["hidden_size is 0", "from 1"]);
    check_config("llama-gqa-tied", "num_attention_heads", json!(u64::MAX), &["num_attention_heads", "from 1"]);
    check_config("llama-gqa-tied", "num_attention_heads", json!(7), &["num_attention_heads", "divisor"]);
    check_config("llama-gqa-tied", "num_key_value_heads", json!(3), &["num_key_value_heads is 3", "divisor"]);
    check_config("llama-gqa-tied", "num_key_value_heads", json!("2"), &["num_key_value_heads is \"2\""]);
    check_config("llama-gqa-tied", "hidden_act", json!("relu6"), &["hidden_act", "silu"]);
    check_config("llama-gqa-tied", "model_type", json!("gpt5"), &["model_type is \"gpt5\"", "codegen", "llama"]);
    check_config("llama-gqa-tied", "model_type", Value::Null, &["model_type is missing"]);
    check_config("llama-gqa-tied", "rope_theta", json!(-1), &["rope_theta is -1", "above 0"]);
    check_config("llama-gqa-tied", "eos_token_id", json!([2, -1]), &["eos_token_id", "token id"]);
    check_config("llama-linear-rope", "rope_scaling", json!({"type": "longrope"}), &["rope_scaling.type", "linear"]);
    let yarn = |field: &str, value: Value, part: &str| {
        let mut scaling = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
        scaling[field] = value;
        check_config("llama-linear-rope", "rope_scaling", scaling, &[&format!("rope_scaling.{field}"), part]);
    };
    yarn("factor", json!(0), "above 0");
    yarn("beta_fast", json!(0.5), "at least beta_slow");
    yarn("attention_factor", json!(-1), "above 0");
    yarn("original_max_position_embeddings", json!("long"), "an integer");
    let dynamic = json!({"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 64});
    check_config(
        "llama-linear-rope",
        "rope_scaling",
        dynamic,
        &["original_max_position_embeddings is 64", "dynamic"],
    );
    check_config("llama-linear-rope", "rope_scaling", json!({"type": "linear"}), &["rope_scaling.factor is missing"]);
    check_config("codegen", "n_head", json!(2), &["n_head is 2", "multiple of 4"]);
    check_config("codegen", "rotary_dim", json!(3), &["rotary_dim is 3", "even"]);
    check_config("qwen2-window", "max_window_layers", json!(-1), &["max_window_layers is -1", "from 0"]);
    check_config("qwen2-window", "layer_types", json!(["full_attention"]), &["layer_types", "each of 3 layers"]);
    check_config("qwen2", "layer_types", json!(["full_attention", "sliding_attention"]), &["layer_types"]);
}

#[test]
fn sizes_that_the_tensors_do_not_have_are_refused() {
    let check = |name: &str, field: &str, value: u64, parts: &[&str]| {
        let copy = Copy::of(name);
        copy.edit_json("config.json", |config| config[field] = json!(value));
        // The smallest cache, because a large one would be refused first.
        copy.refused(&options(1, 1), parts);
    };
    check("llama-gqa-tied", "num_hidden_layers", 1 << 20, &["model.layers.3.", "is missing"]);
    check("llama-gqa-tied", "hidden_size", 1 << 20, &["embed_tokens", "[384, 64]", "[384, 1048576]"]);
    check("llama-gqa-tied", "vocab_size", 385, &["embed_tokens", "[384, 64]", "[385, 64]"]);
    check("llama-gqa-tied", "head_dim", 1 << 20, &["q_proj", "[64, 64]"]);
    check("llama-gqa-tied", "intermediate_size", 1 << 20, &["gate_proj", "[112, 64]"]);
    check("gpt_bigcode-mqa", "n_positions", 1 << 20, &["wpe", "[128, 48]"]);
    check("gpt_neox", "hidden_size", 1 << 20, &["embed_in"]);
}

#[test]
fn broken_tensors_are_refused() {
    let missing = Copy::of("llama-gqa-tied");
    missing.edit_tensors("model.safetensors", |tensors| drop(tensors.remove("model.layers.1.mlp.up_proj.weight")));
    missing.refused(&options(4, 4), &["model.safetensors", "model.layers.1.mlp.up_proj.weight is missing"]);

    let wrong = Copy::of("codegen");
    let shape = |tensor: &Tensor| tensor.reshape((320, 4, 16)).unwrap();
    wrong.edit_tensors("model.safetensors", |tensors| {
        let reshaped = shape(&tensors["lm_head.weight"]);
        tensors.insert("lm_head.weight".to_owned(), reshaped);
    });
    wrong.refused(&options(4, 4), &["lm_head.weight", "[320, 4, 16]", "[320, 64]"]);

    let integers = Copy::of("codegen");
    integers.edit_tensors("model.safetensors", |tensors| {
        let changed = tensors["lm_head.weight"].to_dtype(DType::I64).unwrap();
        tensors.insert("lm_head.weight".to_owned(), changed);
    });
    integers.refused(&options(4, 4), &["lm_head.weight", "I64"]);

    let absent = Copy::of("codegen");
    std::fs::remove_file(absent.path().join("model.safetensors")).unwrap();
    let cut = Copy::of("codegen");
    let path = cut.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 4]).unwrap();
    cut.refused(&options(4, 4), &[&format!("has {} bytes", whole.len() - 4), &format!("tells of {}", whole.len())]);

    let names =
        ["model.safetensors,", "model.safetensors.index.json", "pytorch_model.bin,", "pytorch_model.bin.index.json"];
    absent.refused(&options(4, 4), &names);
}

#[test]
fn shards_must_lie_beside_their_index() {
    for file in ["../model-00001-of-00004.safetensors", "/etc/passwd", "", ".."] {
        let copy = Copy::of("llama-gqa-tied-sharded");
        copy.edit_json("model.safetensors.index.json", |index| {
            index["weight_map"]["model.norm.weight"] = json!(file);
        });
        copy.refused(&options(4, 4), &["index.json", "weight_map.model.norm.weight"]);
    }
    let copy = Copy::of("llama-gqa-tied-sharded");
    std::fs::remove_file(copy.path().join("model-00003-of-00004.safetensors")).unwrap();
    copy.refused(&options(4, 4), &["model-00003-of-00004.safetensors"]);
}

/// Truncations and random bytes in any file give an error, or by luck a model, but no panic.
#[test]
fn garbage_does_not_panic() {
    let mut rng = rand::rng();
    for file in ["config.json", "model.safetensors"] {
        let copy = Copy::of("llama-linear-rope");
        let path = copy.path().join(file);
        let good = std::fs::read(&path).unwrap();
        for length in [0, 1, 7, 8, 9, 100, good.len() / 2, good.len() - 1] {
            std::fs::write(&path, &good[..length]).unwrap();
            copy.refused(&options(4, 4), &[file]);
        }
        for _ in 0..200 {
            let mut bad = good.clone();
            // The structure is at the beginning.
            let end = bad.len().min(2500);
            for _ in 0..rng.random_range(1..4) {
                bad[rng.random_range(0..end)] = rng.random();
            }
            std::fs::write(&path, &bad).unwrap();
            drop(ModelRunner::load(copy.path(), &options(4, 4)));
        }
        let noise: Vec<u8> = (0..1000).map(|_| rng.random()).collect();
        std::fs::write(&path, noise).unwrap();
        copy.refused(&options(4, 4), &[file]);
    }
}

#[test]
fn a_cache_that_no_memory_holds_is_refused() {
    Copy::of("codegen").refused(&options(usize::MAX, 4), &["blocks is"]);
    Copy::of("codegen").refused(&options(0, 4), &["blocks is 0"]);
    Copy::of("codegen").refused(&options(4, 0), &["block_tokens is 0"]);
    Copy::of("codegen").refused(&options(u32::MAX as usize, u32::MAX as usize), &["MiB", "--blocks to at most"]);
}

#[test]
fn a_broken_tokenizer_is_refused() {
    let copy = Copy::of("codegen");
    std::fs::write(copy.path().join("tokenizer.json"), r#"{"model": 3}"#).unwrap();
    copy.refused(&options(4, 4), &["tokenizer.json"]);
}

#[test]
fn a_missing_adapter_is_named_with_its_flag() {
    let nowhere = PathBuf::from("/no/such/adapter");
    let merged = LoadOptions { adapter: Some(nowhere.clone()), ..options(4, 4) };
    Copy::of("llama-linear-rope").refused(&merged, &["--adapter", "/no/such/adapter"]);
    let lora = vec![NamedAdapter { name: "sql".to_owned(), directory: nowhere }];
    let beside = LoadOptions { lora, ..options(4, 4) };
    Copy::of("llama-linear-rope").refused(&beside, &["--lora sql", "/no/such/adapter"]);
}

fn check_adapter(edit: impl FnOnce(&Copy), parts: &[&str]) {
    let adapter = Copy::of("llama-lora");
    edit(&adapter);
    let merged = LoadOptions { adapter: Some(adapter.path().to_owned()), ..options(4, 4) };
    let lora = vec![NamedAdapter { name: "a".to_owned(), directory: adapter.path().to_owned() }];
    for options in [merged, LoadOptions { lora, ..options(4, 4) }] {
        Copy::of("llama-linear-rope").refused(&options, parts);
    }
}

#[test]
fn unsupported_adapters_are_refused() {
    for (field, value) in [
        ("peft_type", json!("IA3")),
        ("bias", json!("all")),
        ("use_dora", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("lora_alpha", Value::Null),
        ("alpha_pattern", json!({"(": 1})),
        ("alpha_pattern", json!({"q_proj": "x"})),
        ("alpha_pattern", json!({"q_proj": 1, "layers.0.self_attn.q_proj": 2})),
        ("init_lora_weights", json!("pissa_niter_4")),
    ] {
        let edit = |copy: &Copy| copy.edit_json("adapter_config.json", |config| config[field] = value);
        check_adapter(edit, &["adapter_config.json", field]);
    }
    let module = "base_model.model.model.layers.0.self_attn.q_proj";
    let rename = |from: &'static str, to: &'static str| {
        move |copy: &Copy| {
            copy.edit_tensors("adapter_model.safetensors", |tensors| {
                let tensor = tensors.remove(&format!("{module}.{from}")).unwrap();
                tensors.insert(format!("{module}.{to}"), tensor);
            });
        }
    };
    check_adapter(rename("lora_A.weight", "lora_magnitude_vector"), &["lora_magnitude_vector", "not supported"]);
    check_adapter(rename("lora_A.weight", "x.lora_A.weight"), &["q_proj.lora_A.weight is missing"]);
    let elsewhere = |copy: &Copy| {
        copy.edit_tensors("adapter_model.safetensors", |tensors| {
            let tensors_of_head =
                ["lora_A", "lora_B"].map(|part| tensors[&format!("{module}.{part}.weight")].clone());
            for (part, tensor) in ["lora_A", "lora_B"].into_iter().zip(tensors_of_head) {
                tensors.insert(format!("base_model.model.model.layers.9.x.{part}.weight"), tensor);
            }
        });
    };
    check_adapter(elsewhere, &["no linear layer model.layers.9.x"]);
}
