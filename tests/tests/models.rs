//! Real processes: which models go together under one name, and what they then compute.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cosec_launcher::Process;
use cosec_tests::cluster::{binaries, root};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

const PROMPT: &str = "def remove(conn, key):\n    cur = conn.cursor()\n    cur.execute(";

fn demo(model: &str) -> PathBuf {
    root().join("deploy/demo-pair").join(model)
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Starts a worker, and says where it listens.
async fn worker(name: &'static str, role: &str, model: &Path, flags: &[String], logs: &Path) -> (Process, String) {
    let mut command = Command::new(binaries().join("cosec-worker"));
    command.args(["serve", "--role", role, "--listen", "127.0.0.1:0", "--dtype", "f32", "--threads", "1", "--model"]);
    let mut process = Process::start(name, command.arg(model).args(flags), logs).unwrap();
    let address = process.announced("listening on ", deadline()).await.unwrap();
    (process, address)
}

/// Starts a coordinator with this configuration, and gives the address of its API.
async fn coordinator(config: &str, logs: &Path) -> (Process, String) {
    let file = logs.join("coordinator.toml");
    fs::write(&file, config).unwrap();
    let mut command = Command::new(binaries().join("cosec-coordinator"));
    command.args(["--http-listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0", "--config"]).arg(file);
    let mut process = Process::start("coordinator", &mut command, logs).unwrap();
    let http = process.announced("http on ", deadline()).await.unwrap();
    (process, format!("http://{http}"))
}

/// Asks for readiness until the answer is as `wanted`, and returns it.
async fn readiness(http: &str, wanted: impl Fn(StatusCode, &str) -> bool) -> String {
    let until = deadline();
    loop {
        let answer = reqwest::get(format!("{http}/health/ready")).await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        if wanted(status, &text) {
            return text;
        }
        assert!(Instant::now() < until, "{status}: {text}");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn complete(http: &str, body: &Value) -> String {
    let answer = reqwest::Client::new().post(format!("{http}/v1/completions")).json(body).send().await.unwrap();
    let answer: Value = answer.json().await.unwrap();
    answer["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

fn model(name: &str, base: &str, expert: &str, more: &str) -> String {
    let tokenizer = demo("base").display().to_string();
    format!(
        "[[models]]\nname = {name:?}\ntokenizer = {tokenizer:?}\nbase = [{base:?}]\nexpert = [{expert:?}]\n{more}\n"
    )
}

/// Writes an adapter of rank 2 for two projections of the demo expert, with factors that `seed` decides.
fn adapter(directory: &Path, seed: u32) {
    fs::create_dir(directory).unwrap();
    let config = json!({"peft_type": "LORA", "bias": "none", "r": 2, "lora_alpha": 4});
    fs::write(directory.join("adapter_config.json"), config.to_string()).unwrap();
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (f64::from(state) / f64::from(u32::MAX) - 0.5) as f32 * 0.4
    };
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (module, inputs, outputs) in [("self_attn.o_proj", 256, 256), ("mlp.up_proj", 256, 640)] {
        for (factor, shape) in [("lora_A", [2, inputs]), ("lora_B", [outputs, 2])] {
            let begin = data.len();
            (0..shape[0] * shape[1]).for_each(|_| data.extend(next().to_le_bytes()));
            let tensor = json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]});
            header.insert(format!("base_model.model.model.layers.1.{module}.{factor}.weight"), tensor);
        }
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    fs::write(directory.join("adapter_model.safetensors"), file).unwrap();
}

/// One expert worker serves two experts; each gives what a worker gives that has the adapter in its weights.
#[tokio::test]
async fn adapters_of_one_worker_are_experts_of_several_models() {
    let folder = TempDir::new().unwrap();
    let logs = folder.path();
    let directories = ["sql", "c"].map(|name| logs.join(name));
    directories.iter().zip([7, 8]).for_each(|(directory, seed)| adapter(directory, seed));
    let [sql, c] = directories.map(|directory| directory.display().to_string());
    let flags = |flags: &[&str]| flags.iter().map(|&flag| flag.to_owned()).collect::<Vec<_>>();
    let beside = flags(&["--lora", &format!("sql={sql}"), "--lora", &format!("c={c}")]);
    let (_base, base) = worker("base", "base", &demo("base"), &[], logs).await;
    let (_shared, shared) = worker("shared", "expert", &demo("expert"), &beside, logs).await;
    let (_sql, sql) = worker("sql", "expert", &demo("expert"), &flags(&["--adapter", &sql]), logs).await;
    let (_c, c) = worker("c", "expert", &demo("expert"), &flags(&["--adapter", &c]), logs).await;
    let models = [
        model("shared", &base, &shared, ""),
        model("shared-sql", &base, &shared, "expert_adapter = \"sql\""),
        model("shared-c", &base, &shared, "expert_adapter = \"c\""),
        model("own-sql", &base, &sql, ""),
        model("own-c", &base, &c, ""),
    ];
    let (_coordinator, http) = coordinator(&models.concat(), logs).await;
    readiness(&http, |status, _| status.is_success()).await;
    for (rule, seed) in [("expert_only", 1), ("cosec", 2), ("cosec", 3), ("linear", 4)] {
        let of = async |model: &str| {
            let cosec = json!({"rule": rule});
            let body = json!({"model": model, "prompt": PROMPT, "seed": seed, "max_tokens": 24, "temperature": 0.8, "cosec": cosec});
            complete(&http, &body).await
        };
        // At the same time, so that all three share passes of the shared worker.
        let (plain, sql, c) = tokio::join!(of("shared"), of("shared-sql"), of("shared-c"));
        assert_eq!(sql, of("own-sql").await, "{rule}");
        assert_eq!(c, of("own-c").await, "{rule}");
        // Under the other rules the base may decide.
        if rule == "expert_only" {
            assert!(plain != sql && sql != c && c != plain, "{plain:?} {sql:?} {c:?}");
        }
    }
}

#[tokio::test]
async fn an_adapter_that_no_worker_has_is_named() {
    let folder = TempDir::new().unwrap();
    let logs = folder.path();
    adapter(&logs.join("sql"), 7);
    let flags = ["--lora".to_owned(), format!("sql={}", logs.join("sql").display())];
    let (_base, base) = worker("base", "base", &demo("base"), &[], logs).await;
    let (_expert, expert) = worker("expert", "expert", &demo("expert"), &flags, logs).await;
    let config = model("java", &base, &expert, "expert_adapter = \"java\"");
    let (_coordinator, http) = coordinator(&config, logs).await;
    let refused = readiness(&http, |_, text| text.contains("adapter")).await;
    assert!(refused.contains("it has no adapter \\\"java\\\"; it has sql"), "{refused}");
}

/// A copy of the demo expert with another tokenizer or more rows.
fn expert_copy(directory: &Path) {
    fs::create_dir(directory).unwrap();
    for file in ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(demo("expert").join(file), directory.join(file)).unwrap();
    }
}

fn edit_json(file: &Path, edit: impl FnOnce(&mut Value)) {
    let mut json: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    edit(&mut json);
    fs::write(file, json.to_string()).unwrap();
}

/// Adds rows to the vocabulary that are as probable as the first ones: a draft often stands beyond the base's row.
fn pad(directory: &Path, padding: usize) {
    edit_json(&directory.join("config.json"), |config| config["vocab_size"] = (VOCABULARY + padding).into());
    let file = directory.join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let data = &bytes[8 + length..];
    let (mut padded, mut out) = (serde_json::Map::new(), Vec::<u8>::new());
    for (name, tensor) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
        let offset = |index: usize| tensor["data_offsets"][index].as_u64().unwrap() as usize;
        let (begin, mut tensor) = (out.len(), tensor.clone());
        out.extend(&data[offset(0)..offset(1)]);
        if name.contains("embed_tokens") {
            let row = (offset(1) - offset(0)) / VOCABULARY;
            out.extend(&data[offset(0)..offset(0) + padding * row]);
            tensor["shape"][0] = (VOCABULARY + padding).into();
        }
        tensor["data_offsets"] = json!([begin, out.len()]);
        padded.insert(name, tensor);
    }
    let header = Value::Object(padded).to_string();
    let mut file_bytes = (header.len() as u64).to_le_bytes().to_vec();
    file_bytes.extend(header.as_bytes());
    file_bytes.extend(out);
    fs::write(file, file_bytes).unwrap();
}

/// Rows of the demo pair.
const VOCABULARY: usize = 4096;

/// As 151,936 and 152,064 rows of one family: the same tokenizer, rows of different lengths.
#[tokio::test]
async fn padded_vocabularies_pair() {
    let folder = TempDir::new().unwrap();
    let logs = folder.path();
    let padded = logs.join("padded");
    expert_copy(&padded);
    pad(&padded, 1000);
    let (_base, base) = worker("base", "base", &demo("base"), &[], logs).await;
    let (_expert, expert) = worker("expert", "expert", &padded, &[], logs).await;
    let config = format!("[sessions]\nspeculation = \"off\"\n{}", model("padded", &base, &expert, ""));
    let (_coordinator, http) = coordinator(&config, logs).await;
    readiness(&http, |status, _| status.is_success()).await;
    let mut refused_drafts = 0;
    for seed in 0..4 {
        for transport in ["auto", "nucleus", "full"] {
            let cosec = json!({"report": true, "transport": transport});
            let body = json!({"model": "padded", "prompt": PROMPT, "seed": seed, "max_tokens": 24, "temperature": 1, "cosec": cosec});
            let answer = reqwest::Client::new().post(format!("{http}/v1/completions")).json(&body).send().await;
            let answer: Value = answer.unwrap().json().await.unwrap();
            assert!(answer["choices"][0]["text"].as_str().is_some_and(|text| !text.is_empty()), "{answer}");
            let tokens = answer["choices"][0]["cosec"]["report"].as_array();
            for token in tokens.unwrap_or_else(|| panic!("{answer}")) {
                assert!(token["id"].as_u64().unwrap() < VOCABULARY as u64, "{token}");
                refused_drafts +=
                    u32::from(token["rejected"]["id"].as_u64().is_some_and(|id| id >= VOCABULARY as u64));
            }
        }
    }
    assert!(refused_drafts > 0, "no draft stood beyond the shorter row");
}

#[tokio::test]
async fn what_differs_in_two_tokenizers_is_named() {
    let folder = TempDir::new().unwrap();
    let logs = folder.path();
    let other = logs.join("other");
    expert_copy(&other);
    edit_json(&other.join("tokenizer.json"), |tokenizer| {
        let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        let token = |id: u64| vocabulary.iter().find(|(_, value)| value.as_u64() == Some(id)).unwrap().0.clone();
        let [one, two] = [token(300), token(301)];
        vocabulary.insert(one, 301.into());
        vocabulary.insert(two, 300.into());
        tokenizer["model"]["merges"].as_array_mut().unwrap().pop();
    });
    let (_base, base) = worker("base", "base", &demo("base"), &[], logs).await;
    let (_expert, expert) = worker("expert", "expert", &other, &[], logs).await;
    let (_coordinator, http) = coordinator(&model("odd", &base, &expert, ""), logs).await;
    let refused = readiness(&http, |_, text| text.contains("differ")).await;
    for part in
        ["2 token ids differ: 300 is", "301 is", "1 merges differ", "absent in its own", "coordinator's tokenizer"]
    {
        assert!(refused.contains(part), "{refused}");
    }
    // The request is refused with the same words.
    let body = json!({"model": "odd", "prompt": PROMPT, "max_tokens": 1});
    let answer = reqwest::Client::new().post(format!("{http}/v1/completions")).json(&body).send().await.unwrap();
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    assert!(!status.is_success() && text.contains("2 token ids differ"), "{status}: {text}");
}
