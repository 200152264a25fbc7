//! Peak memory of loading: the weights and little more, in every format.
#![expect(clippy::unwrap_used, reason = "a failed assumption in a test is a failed test")]

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Seek, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::json;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Memory of a process besides its weights: code, threads, the runtime, pieces of files, and what the allocator keeps
/// of them. A whole second copy of the largest matrix in f32, 64 MiB, does not fit in it, nor does the KV cache, which
/// takes no memory before it is used.
const ALLOWANCE_BYTES: usize = 48 << 20;

const VOCABULARY: usize = 16_384;
const HIDDEN: usize = 1024;
const INNER: usize = 4096;
const LAYERS: usize = 3;

/// A llama of some 300 MB in f32: names and shapes of its tensors.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("lm_head.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        add("input_layernorm", &[HIDDEN]);
        add("post_attention_layernorm", &[HIDDEN]);
        for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            add(&format!("self_attn.{name}"), &[HIDDEN, HIDDEN]);
        }
        add("mlp.gate_proj", &[INNER, HIDDEN]);
        add("mlp.up_proj", &[INNER, HIDDEN]);
        add("mlp.down_proj", &[HIDDEN, INNER]);
    }
    tensors
}

fn bytes(shape: &[usize]) -> usize {
    4 * shape.iter().product::<usize>()
}

fn write_config(directory: &Path) {
    let config = json!({
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": 16, "max_position_embeddings": 256,
    });
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
}

/// Writes `count` numbers other than zero, because pages of zeros might not count.
fn write_numbers(output: &mut impl Write, count: usize) {
    let piece: Vec<u8> = (0..1024u32).flat_map(|i| (0.01 + i as f32 * 1e-6).to_le_bytes()).collect();
    for _ in 0..count / 1024 {
        output.write_all(&piece).unwrap();
    }
    assert!(count.is_multiple_of(1024));
}

fn write_safetensors(directory: &Path) {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in tensors() {
        let start = end;
        end += bytes(&shape);
        header.insert(name, json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] }));
    }
    let header = serde_json::Value::from(header).to_string();
    let mut file = BufWriter::new(File::create(directory.join("model.safetensors")).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    write_numbers(&mut file, end / 4);
    file.into_inner().unwrap();
}

/// As `torch.save` writes it, one storage a tensor.
fn write_bin(directory: &Path) {
    let text = |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let integer = |value: usize| [b"J", &(value as i32).to_le_bytes()[..]].concat();
    let tuple = |parts: &[Vec<u8>]| [b"(", &parts.concat()[..], b"t"].concat();
    let integers = |values: &[usize]| tuple(&values.iter().map(|&value| integer(value)).collect::<Vec<_>>());
    let rebuilt = |key: usize, shape: &[usize]| {
        let strides = if shape.len() == 2 { vec![shape[1], 1] } else { vec![1] };
        let storage = [text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text(&key.to_string()), text("cpu")];
        let storage = [tuple(&[storage.concat(), integer(bytes(shape) / 4)]), b"Q".to_vec()].concat();
        let flags = [vec![0x89], b"}".to_vec()].concat();
        let arguments = tuple(&[storage, integer(0), integers(shape), integers(&strides), flags]);
        [b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec(), arguments, b"R".to_vec()].concat()
    };
    let items: Vec<u8> = tensors()
        .iter()
        .enumerate()
        .flat_map(|(key, (name, shape))| [text(name), rebuilt(key, shape)].concat())
        .collect();
    let mut zip = ZipWriter::new(File::create(directory.join("pytorch_model.bin")).unwrap());
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    zip.start_file("x/data.pkl", stored).unwrap();
    zip.write_all(&[b"\x80\x02}(", &items[..], b"u."].concat()).unwrap();
    for (key, (_, shape)) in tensors().iter().enumerate() {
        zip.start_file(format!("x/data/{key}"), stored).unwrap();
        write_numbers(&mut zip, bytes(shape) / 4);
    }
    zip.finish().unwrap().rewind().unwrap();
}

struct Worker(Child);

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Peak resident bytes of a real worker until it is ready to serve the model.
fn peak_bytes(directory: &Path, flags: &[&str]) -> usize {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cosec-worker"));
    command.args([
        "serve",
        "--role",
        "base",
        "--listen",
        "127.0.0.1:0",
        "--kv-memory-mib",
        "512",
        "--threads",
        "2",
        "--model",
    ]);
    command.arg(directory).args(flags).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut worker = Worker(command.spawn().unwrap());
    let lines = BufReader::new(worker.0.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut log = Vec::new();
    // The log ends when the worker does.
    let ready = lines.inspect(|line| log.push(line.clone())).any(|line| line.contains(" ready "));
    assert!(ready, "{log:#?}");
    assert!(log.iter().any(|line| line.contains("loading") && line.contains("percent=50")), "{log:#?}");
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.0.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")).unwrap();
    peak.parse::<usize>().unwrap() * 1024
}

fn check(directory: &Path, flags: &[&str], weight_bytes: usize) {
    let (peak, allowed) = (peak_bytes(directory, flags), weight_bytes + weight_bytes / 10 + ALLOWANCE_BYTES);
    println!("{flags:?}: {} MiB at the peak, {} MiB of weights", peak >> 20, weight_bytes >> 20);
    assert!(peak <= allowed, "{flags:?}: {peak} bytes resident at the peak; {allowed} allowed");
}

#[test]
fn loading_takes_little_more_than_the_weights() {
    let directory = tempfile::tempdir().unwrap();
    write_config(directory.path());
    let weight_bytes = tensors().iter().map(|(_, shape)| bytes(shape)).sum();
    write_safetensors(directory.path());
    check(directory.path(), &[], weight_bytes);
    check(directory.path(), &["--dtype", "bf16", "--kv-dtype", "bf16"], weight_bytes / 2);
    check(directory.path(), &["--quantize", "q8_0", "--kv-dtype", "f16"], weight_bytes / 128 * 34);
    // Embedding and head are in q8_0.
    let tables = 2 * bytes(&[VOCABULARY, HIDDEN]);
    let quantised = tables / 128 * 34 + (weight_bytes - tables) / 1024 * 144;
    check(directory.path(), &["--quantize", "q4_k", "--kv-dtype", "f16"], quantised);
    std::fs::remove_file(directory.path().join("model.safetensors")).unwrap();
    write_bin(directory.path());
    check(directory.path(), &[], weight_bytes);
}
