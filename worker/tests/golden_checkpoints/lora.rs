//! Unmerged adapters: their results, and that they do not affect other rows of the batch.

use std::collections::HashMap;
use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::{Device, Tensor, safetensors};
use cosec_worker::check::CheckArgs;
use cosec_worker::model::{BatchItem, LoadOptions, ModelRunner, NamedAdapter, QuantizedFormat};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tempfile::TempDir;

use crate::agreement::{args, check};
use crate::gguf::{self, Converted};
use crate::reference::{Numbers, logits, relative};
use crate::{ALL, golden, options};

/// Lookup tables, which adapters leave unchanged.
const TABLES: [&str; 4] = ["embed_tokens", "embed_in", "wte", "wpe"];

pub(crate) fn named(name: &str, directory: &Path) -> NamedAdapter {
    NamedAdapter { name: name.to_owned(), directory: directory.to_owned() }
}

#[test]
fn beside_the_weights_adapters_give_what_peft_gives() {
    for (model, adapter) in [("llama-linear-rope", "llama-lora"), ("codegen", "codegen-lora")] {
        let lora = Some(named("golden", &golden(adapter)));
        check(&CheckArgs { adapter: None, lora, ..args(model, Some(adapter)) });
    }
}

/// A random adapter for every linear layer of a checkpoint.
struct Drawn {
    directory: TempDir,
    /// `scale · B · A` by module, in f64, row-major.
    deltas: HashMap<String, Vec<f64>>,
}

/// Every linear layer with its outputs and inputs; a tied head too.
fn modules(weights: &HashMap<String, Tensor>) -> Vec<(String, usize, usize)> {
    let mut modules = Vec::new();
    for (name, tensor) in weights {
        let (Some(module), Ok((outputs, inputs))) = (name.strip_suffix(".weight"), tensor.dims2()) else { continue };
        match module.rsplit('.').next() {
            Some("wpe") => {}
            Some(last) if TABLES.contains(&last) => {
                if !weights.contains_key("lm_head.weight") && !weights.contains_key("embed_out.weight") {
                    modules.push(("lm_head".to_owned(), outputs, inputs));
                }
            }
            _ => modules.push((module.to_owned(), outputs, inputs)),
        }
    }
    modules.sort();
    modules
}

fn draw(modules: &[(String, usize, usize)], rng: &mut StdRng) -> Drawn {
    let rslora = rng.random::<bool>();
    let (mut ranks, mut alphas) = (serde_json::Map::new(), serde_json::Map::new());
    let (mut tensors, mut deltas) = (HashMap::new(), HashMap::new());
    for (module, outputs, inputs) in modules {
        let rank = rng.random_range(1..=11);
        ranks.insert(module.clone(), rank.into());
        let alpha = if rng.random() { rng.random_range(1.0..20.0) } else { 6.0 };
        if alpha != 6.0 {
            // A pattern may match the end of a name.
            let (_, end) = module.split_once('.').unwrap_or(("", module));
            alphas.insert(if rng.random() { module.clone() } else { end.to_owned() }, alpha.into());
        }
        let mut factor = |rows: usize, columns: usize, name: &str| {
            let values: Vec<f32> = (0..rows * columns).map(|_| rng.random_range(-0.15..0.15)).collect();
            let tensor = Tensor::from_slice(&values, (rows, columns), &Device::Cpu).unwrap();
            tensors.insert(format!("base_model.model.{module}.{name}.weight"), tensor);
            values
        };
        let (a, b) = (factor(rank, *inputs, "lora_A"), factor(*outputs, rank, "lora_B"));
        let scale = alpha / if rslora { (rank as f64).sqrt() } else { rank as f64 };
        let element = |o: usize, i: usize| {
            scale * (0..rank).map(|r| f64::from(b[o * rank + r]) * f64::from(a[r * inputs + i])).sum::<f64>()
        };
        let elements = (0..outputs * inputs).map(|index| element(index / inputs, index % inputs));
        deltas.insert(module.clone(), elements.collect());
    }
    let directory = tempfile::tempdir().unwrap();
    let config = json!({
        "peft_type": "LORA", "bias": "none", "r": 6, "lora_alpha": 6, "rank_pattern": ranks, "alpha_pattern": alphas,
        "use_rslora": rslora, "fan_in_fan_out": rng.random::<bool>(), "init_lora_weights": true,
    });
    std::fs::write(directory.path().join("adapter_config.json"), config.to_string()).unwrap();
    safetensors::save(&tensors, directory.path().join("adapter_model.safetensors")).unwrap();
    Drawn { directory, deltas }
}

fn tokens(count: usize, rng: &mut StdRng) -> Vec<u32> {
    (0..count).map(|_| rng.random_range(0..300)).collect()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn every_layer_of_every_family_takes_an_adapter() {
    for name in ALL.into_iter().filter(|name| !name.ends_with("bf16")) {
        let seed: u64 = rand::random();
        let rng = &mut StdRng::seed_from_u64(seed);
        let drawn = draw(&modules(&Numbers::of(name).weights), rng);
        let tokens = tokens(20, rng);
        let expected = Numbers::of(name).adapted(&drawn.deltas).logits(&tokens);
        let directory = drawn.directory.path();
        let merged = LoadOptions { adapter: Some(directory.to_owned()), ..options(10, 4) };
        let beside = LoadOptions { lora: vec![named("drawn", directory)], ..options(10, 4) };
        let file = gguf::MODELS.contains(&name).then(|| Converted::of(name, &[GgmlDType::F32], false));
        let mut ways = vec![("merged", golden(name), &merged, None), ("beside", golden(name), &beside, Some(0))];
        ways.extend(file.iter().map(|file| ("beside GGUF", file.path(), &beside, Some(0))));
        for (way, path, options, adapter) in ways {
            let mut model = ModelRunner::load(&path, options).unwrap();
            let found = logits(&mut model, &tokens, adapter);
            let scale = expected.iter().fold(1.0f32, |max, logit| max.max(logit.abs()));
            let worst = largest_difference(&found, &expected);
            assert!(worst < 1e-4 * scale, "{name}, {way}, seed {seed}: {worst} of {scale}");
            if let Some(index) = adapter {
                assert_eq!(model.description().adapters[index], "drawn");
                let without = logits(&mut model, &tokens, None);
                assert!(largest_difference(&without, &expected) > 0.05, "{name}: the adapter changes nothing");
            }
        }
    }
}

/// Only the weights are rounded, not the adapters' updates.
#[test]
fn adapters_stand_beside_quantised_files() {
    for name in gguf::MODELS {
        let rng = &mut StdRng::seed_from_u64(2);
        let drawn = draw(&modules(&Numbers::of(name).weights), rng);
        let tokens = tokens(20, rng);
        let whole_blocks = |_: &str, inputs: usize| inputs.is_multiple_of(32).then_some(GgmlDType::Q8_0);
        let expected = Numbers::of(name).rounded(whole_blocks).adapted(&drawn.deltas).logits(&tokens);
        let file = Converted::of(name, &[GgmlDType::Q8_0, GgmlDType::F32], false);
        let beside = LoadOptions { lora: vec![named("drawn", drawn.directory.path())], ..options(10, 4) };
        let mut model = ModelRunner::load(&file.path(), &beside).unwrap();
        let difference = relative(&logits(&mut model, &tokens, Some(0)), &expected);
        println!("{name}: relative difference {difference:.2e}");
        assert!(difference < 5e-4, "{name}: {difference}");
    }
}

/// Two adapters and no adapter in one ragged batch, chunk by chunk.
#[test]
fn company_under_other_adapters_changes_no_bit() {
    let cases = ALL.into_iter().map(|name| (name, None));
    for (name, quantize) in
        cases.chain([("llama-linear-rope", Some(QuantizedFormat::Q8_0)), ("codegen", Some(QuantizedFormat::Q8_0))])
    {
        let seed: u64 = rand::random();
        let rng = &mut StdRng::seed_from_u64(seed);
        let modules = modules(&Numbers::of(name).weights);
        let drawn = [draw(&modules, rng), draw(&modules[..modules.len() / 2], rng)];
        let lora = drawn.iter().zip(["a", "b"]).map(|(drawn, name)| named(name, drawn.directory.path())).collect();
        let options = LoadOptions { quantize, ..options(60, 4) };
        let beside = LoadOptions { lora, ..options.clone() };
        let mut model = ModelRunner::load(&golden(name), &beside).unwrap();
        let mut plain = ModelRunner::load(&golden(name), &options).unwrap();
        let sequences: Vec<(Vec<u32>, Option<usize>)> = [None, Some(1), Some(0), None, Some(1), Some(0)]
            .into_iter()
            .map(|adapter| (tokens(rng.random_range(9..30), rng), adapter))
            .collect();
        let blocks: Vec<Vec<u32>> = (0..6).map(|index| (index * 10..(index + 1) * 10).collect()).collect();
        let mut found: Vec<Vec<f32>> = vec![Vec::new(); sequences.len()];
        let mut fed = vec![0; sequences.len()];
        while fed.iter().zip(&sequences).any(|(fed, (tokens, _))| *fed < tokens.len()) {
            let (mut batch, mut owners) = (Vec::new(), Vec::new());
            for (index, (tokens, adapter)) in sequences.iter().enumerate() {
                let start = fed[index];
                let count = rng.random_range(0..=(tokens.len() - start).min(7));
                if count > 0 {
                    let tokens = &tokens[start..start + count];
                    let blocks = &blocks[index];
                    batch.push(BatchItem { tokens, start, blocks, rows: 0..count, adapter: *adapter });
                    owners.extend(std::iter::repeat_n(index, count));
                    fed[index] += count;
                }
            }
            let logits = model.forward(&batch).unwrap();
            owners.into_iter().enumerate().for_each(|(row, owner)| found[owner].extend(logits.row(row)));
        }
        for ((tokens, adapter), found) in sequences.iter().zip(&found) {
            let model = if adapter.is_some() { &mut model } else { &mut plain };
            assert!(
                *found == logits(model, tokens, *adapter),
                "{name}, {quantize:?}, {adapter:?}, seed {seed}: bits differ"
            );
        }
    }
}

#[test]
fn fingerprints_tell_adapters_apart_by_content() {
    let rng = &mut StdRng::seed_from_u64(1);
    let modules = modules(&Numbers::of("llama-gqa-tied").weights);
    let (one, other) = (draw(&modules, rng), draw(&modules, rng));
    let describe = |lora: Vec<NamedAdapter>| {
        let options = LoadOptions { lora, ..options(2, 4) };
        ModelRunner::load(&golden("llama-gqa-tied"), &options).unwrap().description().clone()
    };
    let none = describe(Vec::new());
    let two = describe(vec![named("sql", one.directory.path()), named("c", other.directory.path())]);
    let renamed = describe(vec![named("c", one.directory.path())]);
    assert_eq!(two.adapters, ["sql", "c"]);
    assert!([&two.fingerprint, &renamed.fingerprint].iter().all(|fingerprint| **fingerprint == none.fingerprint));
    assert_eq!(two.adapter_fingerprints[0], renamed.adapter_fingerprints[0]);
    assert_ne!(two.adapter_fingerprints[0], two.adapter_fingerprints[1]);
    assert_ne!(two.adapter_fingerprints[0], none.fingerprint);
}
