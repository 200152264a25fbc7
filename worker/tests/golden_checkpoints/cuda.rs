//! The same checkpoints on a GPU: within the same tolerance, with rows independent of their batch.
//!
//! `tests/run` runs them on the stand-in, `tests/gpu` compares the same checkpoints on a GPU.

use cosec_worker::check::{CheckArgs, ErrorMeasure};
use cosec_worker::model::{BatchItem, DeviceChoice, DtypeChoice, LoadOptions, ModelRunner, QuantizedFormat};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::agreement::{args, check};
use crate::batches::{BLOCKS, ragged, random_sequences, whole};
use crate::lora::named;
use crate::{ALL, FAMILIES, golden, options};

fn on_gpu(model: &str, adapter: Option<&str>) -> CheckArgs {
    CheckArgs { device: DeviceChoice::Cuda(0), dtype: DtypeChoice::F32, ..args(model, adapter) }
}

fn load(name: &str, dtype: DtypeChoice, block_tokens: usize) -> ModelRunner {
    let device = DeviceChoice::Cuda(0);
    let options = LoadOptions { device, dtype, ..options(BLOCKS, block_tokens) };
    ModelRunner::load(&golden(name), &options).unwrap()
}

#[test]
#[ignore = "needs a GPU, or the stand-in that tests/run gives it"]
fn every_family_agrees() {
    for name in ALL {
        let report = check(&on_gpu(name, None));
        assert_eq!((report.measure, report.tolerance), (ErrorMeasure::Absolute, 1e-4));
    }
}

#[test]
#[ignore = "needs a GPU, or the stand-in that tests/run gives it"]
fn adapters() {
    check(&on_gpu("llama-linear-rope", Some("llama-lora")));
    check(&on_gpu("codegen", Some("codegen-lora")));
    for (model, adapter) in [("llama-linear-rope", "llama-lora"), ("codegen", "codegen-lora")] {
        let lora = Some(named("beside", &golden(adapter)));
        check(&CheckArgs { adapter: None, lora, ..on_gpu(model, Some(adapter)) });
    }
}

#[test]
#[ignore = "needs a GPU, or the stand-in that tests/run gives it"]
fn rounded_weights_stay_close() {
    for name in ALL.into_iter().take(FAMILIES) {
        for (dtype, tolerance) in [(DtypeChoice::Bf16, 3e-2), (DtypeChoice::F16, 5e-3)] {
            check(&CheckArgs { dtype, tolerance: Some(tolerance), ..on_gpu(name, None) });
        }
    }
}

/// Separate and tied embeddings. As for the CPU's kernels, the bounds are for tiny random models.
#[test]
#[ignore = "needs a GPU, or the stand-in that tests/run gives it"]
fn quantised_weights_stay_close() {
    for name in ["codegen", "llama-gqa-tied"] {
        for (quantize, tolerance) in [(QuantizedFormat::Q8_0, 0.1), (QuantizedFormat::Q4K, 0.7)] {
            check(&CheckArgs { quantize: Some(quantize), tolerance: Some(tolerance), ..on_gpu(name, None) });
        }
    }
}

#[test]
#[ignore = "needs a GPU, or the stand-in that tests/run gives it"]
fn chunks_company_and_blocks_change_nothing() {
    for name in ALL {
        for dtype in [DtypeChoice::F32, DtypeChoice::Bf16] {
            let seed: u64 = rand::random();
            let rng = &mut StdRng::seed_from_u64(seed);
            let (mut model, mut other) = (load(name, dtype, 16), load(name, dtype, 3));
            let sequences = random_sequences(&model, rng);
            for ((tokens, _), found) in sequences.iter().zip(ragged(&mut other, &sequences, rng)) {
                let expected = whole(&mut model, tokens, &[3, 2, 1, 0]);
                assert!(found == expected, "{name}, {dtype:?}, seed {seed}");
            }
        }
    }
}

/// Adapted rows without logits, rows without logits, and no rows at all.
#[test]
#[ignore = "needs a GPU, or the stand-in that tests/run gives it"]
fn rows_may_be_left_out() {
    let lora = vec![named("a", &golden("llama-lora"))];
    let options = LoadOptions { device: DeviceChoice::Cuda(0), lora, ..options(4, 4) };
    let mut model = ModelRunner::load(&golden("llama-linear-rope"), &options).unwrap();
    let item = |block, rows, adapter| BatchItem { tokens: &[1, 2, 3], start: 0, blocks: block, rows, adapter };
    assert!(model.forward(&[]).unwrap().is_empty());
    assert!(model.forward(&[item(&[0], 0..0, Some(0))]).unwrap().is_empty());
    let plain = model.forward(&[item(&[1], 2..3, None)]).unwrap().row(0).to_vec();
    let together = model.forward(&[item(&[2], 0..0, Some(0)), item(&[3], 2..3, None)]).unwrap();
    let worst = together.row(0).iter().zip(&plain).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(together.len() == 1 && worst < 1e-4, "{worst}");
}

#[test]
#[ignore = "needs a GPU, or the stand-in that tests/run gives it"]
fn kinds_of_devices_have_fingerprints_of_their_own() {
    let fingerprint = |device| {
        let options = LoadOptions { device, ..options(4, 4) };
        ModelRunner::load(&golden("qwen2"), &options).unwrap().description().fingerprint.clone()
    };
    assert_ne!(fingerprint(DeviceChoice::Cpu), fingerprint(DeviceChoice::Cuda(0)));
}
