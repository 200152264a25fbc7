//! PyTorch checkpoints: the same model as from safetensors, and only an error from a broken or hostile one.

use std::collections::HashMap;
use std::io::{Cursor, Write};
use std::path::Path;

use candle_core::{Device, Tensor};
use cosec_worker::check::CheckArgs;
use cosec_worker::model::{LoadOptions, ModelRunner};
use rand::Rng;
use serde_json::json;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::agreement::{args, check};
use crate::malformed::Copy;
use crate::{golden, options};

const FILE: &str = "pytorch_model.bin";

/// An archive in PyTorch's layout.
fn archive(pickle: &[u8], storages: &[Vec<u8>]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    zip.start_file("x/data.pkl", stored).unwrap();
    zip.write_all(pickle).unwrap();
    for (key, bytes) in storages.iter().enumerate() {
        zip.start_file(format!("x/data/{key}"), stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

fn integer(value: usize) -> Vec<u8> {
    [b"J", &(value as i32).to_le_bytes()[..]].concat()
}

fn tuple(parts: &[Vec<u8>]) -> Vec<u8> {
    [b"(", &parts.concat()[..], b"t"].concat()
}

/// The pickled call that makes a float tensor of storage `key`.
fn rebuilt(key: usize, elements: usize, offset: usize, shape: &[usize], strides: &[usize]) -> Vec<u8> {
    let integers = |values: &[usize]| tuple(&values.iter().map(|&value| integer(value)).collect::<Vec<_>>());
    let storage = [text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text(&key.to_string()), text("cpu")];
    let storage = [tuple(&[storage.concat(), integer(elements)]), b"Q".to_vec()].concat();
    let arguments = tuple(&[storage, integer(offset), integers(shape), integers(strides), vec![0x89], b"}".to_vec()]);
    [b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec(), arguments, b"R".to_vec()].concat()
}

/// A pickled dictionary of names and `values`.
fn dictionary(values: impl IntoIterator<Item = (String, Vec<u8>)>) -> Vec<u8> {
    let items: Vec<u8> = values.into_iter().flat_map(|(name, value)| [text(&name), value].concat()).collect();
    [b"\x80\x02}(", &items[..], b"u."].concat()
}

/// A file as `torch.save` writes it; every second tensor begins within its storage.
fn torch_save(tensors: &HashMap<String, Tensor>) -> Vec<u8> {
    let mut storages = Vec::new();
    let pickle = dictionary(tensors.iter().enumerate().map(|(key, (name, tensor))| {
        let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        let offset = key % 2 * 3;
        let padded = [vec![f32::NAN; offset], values].concat();
        storages.push(padded.iter().flat_map(|value| value.to_le_bytes()).collect());
        (name.clone(), rebuilt(key, padded.len(), offset, tensor.dims(), tensor.stride()))
    }));
    archive(&pickle, &storages)
}

fn tensors(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

#[test]
fn a_checkpoint_of_pytorch_agrees() {
    check(&args("codegen-bin", None));
}

#[test]
fn the_format_is_no_part_of_a_model() {
    let expected = ModelRunner::load(&golden("codegen"), &options(4, 4)).unwrap().description().clone();
    let copy = Copy::of("codegen");
    let all = tensors(&copy.path().join("model.safetensors"));
    std::fs::remove_file(copy.path().join("model.safetensors")).unwrap();

    std::fs::write(copy.path().join(FILE), torch_save(&all)).unwrap();
    assert_eq!(ModelRunner::load(copy.path(), &options(4, 4)).unwrap().description(), &expected);

    std::fs::remove_file(copy.path().join(FILE)).unwrap();
    let mut shards = [HashMap::new(), HashMap::new()];
    let mut map = serde_json::Map::new();
    for (index, (name, tensor)) in all.into_iter().enumerate() {
        map.insert(name.clone(), json!(format!("pytorch_model-{}.bin", index % 2)));
        shards[index % 2].insert(name, tensor);
    }
    for (index, shard) in shards.iter().enumerate() {
        std::fs::write(copy.path().join(format!("pytorch_model-{index}.bin")), torch_save(shard)).unwrap();
    }
    let index = json!({ "weight_map": map }).to_string();
    std::fs::write(copy.path().join("pytorch_model.bin.index.json"), index).unwrap();
    assert_eq!(ModelRunner::load(copy.path(), &options(4, 4)).unwrap().description(), &expected);
    check(&CheckArgs { model: copy.path().to_owned(), ..args("codegen", None) });
}

#[test]
fn safetensors_are_preferred() {
    let copy = Copy::of("codegen");
    std::fs::write(copy.path().join(FILE), "broken").unwrap();
    assert!(ModelRunner::load(copy.path(), &options(4, 4)).is_ok());
}

#[test]
fn adapters_may_be_pickled() {
    let adapter = Copy::of("codegen-lora");
    let weights = adapter.path().join("adapter_model.safetensors");
    let pickled = torch_save(&tensors(&weights));
    std::fs::write(adapter.path().join("adapter_model.bin"), pickled).unwrap();
    std::fs::remove_file(weights).unwrap();
    check(&CheckArgs { adapter: Some(adapter.path().to_owned()), ..args("codegen", Some("codegen-lora")) });
    std::fs::remove_file(adapter.path().join("adapter_model.bin")).unwrap();
    let options = LoadOptions { adapter: Some(adapter.path().to_owned()), ..options(4, 4) };
    Copy::of("codegen").refused(&options, &["adapter_model.safetensors", "adapter_model.bin"]);
}

fn refused(bytes: &[u8], parts: &[&str]) {
    let copy = Copy::of("codegen-bin");
    std::fs::write(copy.path().join(FILE), bytes).unwrap();
    copy.refused(&options(4, 4), &[&[FILE], parts].concat());
}

/// Refuses one tensor in place of the first that is read, of shape `[320, 64]`.
fn refused_tensor(value: Vec<u8>, parts: &[&str]) {
    let name = "transformer.wte.weight";
    refused(&archive(&dictionary([(name.to_owned(), value)]), &[vec![0; 4 * 320 * 64]]), &[&[name], parts].concat());
}

#[test]
fn tensors_are_checked() {
    refused(&archive(&dictionary([]), &[]), &["tensor transformer.wte.weight is missing"]);
    refused_tensor(rebuilt(0, 20480, 0, &[320, 63], &[63, 1]), &["[320, 63]", "[320, 64]"]);
    refused_tensor(rebuilt(0, 20480, 1, &[320, 64], &[64, 1]), &["from element 1", "81920 bytes"]);
    refused_tensor(rebuilt(0, 20480, usize::MAX, &[320, 64], &[64, 1]), &["is missing"]);
    refused_tensor(rebuilt(0, 20480, 0, &[320, 64], &[1, 320]), &["strides [1, 320]"]);
    refused_tensor(rebuilt(0, 20480, 0, &[320, 64], &[64]), &["strides [64]"]);
    refused_tensor(rebuilt(7, 20480, 0, &[320, 64], &[64, 1]), &["storage \"7\""]);
    let mut doubled = rebuilt(0, 20480, 0, &[320, 64], &[64, 1]);
    let at = doubled.windows(12).position(|window| window == b"FloatStorage").unwrap();
    doubled.splice(at..at + 5, *b"Bool");
    refused_tensor(doubled, &["BoolStorage", "expected F32"]);
}

#[test]
fn hostile_pickles_are_refused() {
    let check = |pickle: &[u8], parts: &[&str]| refused(&archive(pickle, &[]), parts);
    check(&[b"\x80\x02)", &[0x85; 1 << 20][..], b"."].concat(), &["nested too deeply"]);
    // Each step memorises a pair of what was memorised before.
    let pairs: Vec<u8> = (0..=99).flat_map(|slot| [b'h', slot, b'h', slot, 0x86, b'q', slot + 1]).collect();
    check(&[b"\x80\x02)q\x00", &pairs[..], b"."].concat(), &["too many copies"]);
    let wide: Vec<u8> =
        (0..=9).flat_map(|slot| [&[b'('][..], &[b'h', slot].repeat(99), &[b't', b'q', slot + 1]].concat()).collect();
    check(&[b"\x80\x02)q\x00", &wide[..], b"."].concat(), &["too many copies"]);
    check(b"\x80\x02X\xff\xff\xff\xffabc.", &["longer than the file"]);
    check(&[&b"\x80\x02\x8a\xff"[..], &[1; 255], b"."].concat(), &["64 bits"]);
    check(b"\x80\x02}", &["data.pkl"]);
    check(b".", &["data.pkl"]);
    check(b"\x80\x02i.", &["op-code"]);
    check(b"\x80\x02].", &["no dictionary"]);
    check(&vec![b'N'; (4 << 20) + 1], &["4194305 bytes"]);
}

/// A call is no tensor and is not executed.
#[test]
fn nothing_is_called() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let call = |command: &str| [b"cposix\nsystem\n".to_vec(), tuple(&[text(command)]), b"R".to_vec()].concat();
    let command = format!("rm {}", file.path().display());
    refused_tensor(call(&command), &["is missing"]);
    refused(&archive(&[call(&command), b".".to_vec()].concat(), &[]), &["no dictionary"]);
    assert!(file.path().exists());
    for callable in ["_rebuild_tensor_v2", "_rebuild_parameter"] {
        for arguments in [vec![], vec![b"N".to_vec()], vec![b"]".to_vec(); 6]] {
            let callable = format!("ctorch._utils\n{callable}\n").into_bytes();
            refused_tensor([callable, tuple(&arguments), b"R".to_vec()].concat(), &["is missing"]);
        }
    }
}

/// Truncations and random bytes give an error, or by luck a model, but no panic.
#[test]
fn garbage_does_not_panic() {
    let mut rng = rand::rng();
    let good = std::fs::read(golden("codegen-bin").join(FILE)).unwrap();
    for length in [0, 1, 22, 100, good.len() / 2, good.len() - 1000, good.len() - 1] {
        refused(&good[..length], &[]);
    }
    let noise: Vec<u8> = (0..1000).map(|_| rng.random()).collect();
    refused(&noise, &[]);
    let copy = Copy::of("codegen-bin");
    // The pickle, and the directory of the archive.
    for region in [0..2300, good.len() - 3000..good.len()] {
        for _ in 0..300 {
            let mut bad = good.clone();
            for _ in 0..rng.random_range(1..4) {
                bad[rng.random_range(region.clone())] = rng.random();
            }
            std::fs::write(copy.path().join(FILE), &bad).unwrap();
            drop(ModelRunner::load(copy.path(), &options(4, 4)));
        }
    }
}
