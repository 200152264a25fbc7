//! Models and adapters by hub id, from a hub on loopback: which files are requested, with which token, and when none
//! is.
#![expect(clippy::unwrap_used, reason = "a failed assumption in a test is a failed test")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use parking_lot::Mutex;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpListener;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_of_the_test";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/checkpoints").join(name)
}

/// A hub with repositories under any name, all at one commit with the branch `main` and the tag `v1`.
struct Hub {
    /// Files by `OWNER/NAME/FILE`.
    files: BTreeMap<String, Bytes>,
    /// Whether it requires [`TOKEN`].
    gated: bool,
    /// A file whose download breaks off after this many bytes.
    broken: Mutex<Option<(String, usize)>>,
    /// Server of the weights, which gets no token, as on the public hub.
    storage: Option<SocketAddr>,
    /// Requested paths.
    requests: Mutex<Vec<String>>,
}

impl Hub {
    fn new(repositories: &[(&str, &Path)]) -> Self {
        let mut files = BTreeMap::new();
        for (name, directory) in repositories {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let file = path.file_name().unwrap().to_str().unwrap();
                files.insert(format!("{name}/{file}"), std::fs::read(&path).unwrap().into());
            }
        }
        Self { files, gated: false, broken: Mutex::default(), storage: None, requests: Mutex::default() }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().clone()
    }

    /// Requested files, without repetitions.
    fn downloaded(&self) -> Vec<String> {
        let requests = self.requests();
        let mut files: Vec<String> = requests
            .iter()
            .filter_map(|path| Some(path.split_once("/resolve/")?.1.split_once('/')?.1.into()))
            .collect();
        files.sort();
        files.dedup();
        files
    }

    async fn answer(State(hub): State<Arc<Self>>, request: Request) -> Response {
        let path = request.uri().path().to_owned();
        hub.requests.lock().push(path.clone());
        let token = request.headers().get(header::AUTHORIZATION).map(|value| value.to_str().unwrap());
        if hub.gated && token != Some(&format!("Bearer {TOKEN}")) {
            return status(StatusCode::UNAUTHORIZED);
        }
        let known = |revision: &str| ["main", "v1", COMMIT].contains(&revision);
        if let Some((name, revision)) =
            path.strip_prefix("/api/models/").and_then(|rest| rest.split_once("/revision/"))
        {
            let prefix = format!("{name}/");
            let files: Vec<_> = hub.files.keys().filter_map(|file| file.strip_prefix(&prefix)).collect();
            if files.is_empty() || !known(revision) {
                return status(StatusCode::NOT_FOUND);
            }
            let siblings: Vec<_> = files.iter().map(|file| json!({ "rfilename": file })).collect();
            return Response::new(Body::from(json!({ "sha": COMMIT, "siblings": siblings }).to_string()));
        }
        let asked = path[1..].split_once("/resolve/").and_then(|(name, rest)| Some((name, rest.split_once('/')?)));
        let Some((name, (revision, file))) = asked.filter(|(_, (revision, _))| known(revision)) else {
            return status(StatusCode::NOT_FOUND);
        };
        assert_eq!(revision, COMMIT, "files are not pinned to the commit");
        let Some(content) = hub.files.get(&format!("{name}/{file}")) else { return status(StatusCode::NOT_FOUND) };
        match hub.storage {
            Some(address) if file.ends_with("safetensors") => Response::builder()
                .status(StatusCode::FOUND)
                .header("x-repo-commit", COMMIT)
                .header("x-linked-etag", format!("\"{}\"", file.replace('.', "-")))
                .header(header::LOCATION, format!("http://{address}{path}"))
                .body(Body::empty())
                .unwrap(),
            _ => hub.part(file, content, request.headers()),
        }
    }

    fn part(&self, file: &str, content: &Bytes, headers: &HeaderMap) -> Response {
        let range = headers[header::RANGE].to_str().unwrap().strip_prefix("bytes=").unwrap();
        let (first, last) = range.split_once('-').unwrap();
        let (first, last) = (first.parse::<usize>().unwrap(), last.parse::<usize>().unwrap().min(content.len() - 1));
        let part = content.slice(first..=last);
        let response = Response::builder()
            .status(StatusCode::PARTIAL_CONTENT)
            .header("x-repo-commit", COMMIT)
            .header(header::ETAG, format!("\"{}\"", file.replace('.', "-")))
            .header(header::CONTENT_LENGTH, part.len())
            .header(header::CONTENT_RANGE, format!("bytes {first}-{last}/{}", content.len()));
        let broken = self.broken.lock().clone().filter(|(name, at)| name == file && *at < part.len());
        let body = match broken {
            None => Body::from(part),
            Some((_, at)) => {
                let begun = Ok(part.slice(..at));
                Body::from_stream(futures::stream::iter([begun, Err(std::io::Error::other("cut"))]))
            }
        };
        response.body(body).unwrap()
    }
}

fn status(status: StatusCode) -> Response {
    Response::builder().status(status).body(Body::empty()).unwrap()
}

/// Serves `hub` until the test ends.
async fn serve(hub: Hub) -> (Arc<Hub>, SocketAddr) {
    let hub = Arc::new(hub);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().fallback(Hub::answer).with_state(Arc::clone(&hub));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (hub, address)
}

/// An environment with the hub at `address` and a cache of its own.
struct Machine {
    home: TempDir,
    address: SocketAddr,
}

impl Machine {
    fn new(address: SocketAddr) -> Self {
        Self { home: TempDir::new().unwrap(), address }
    }

    /// Runs `cosec-worker check` against the logits of golden checkpoint `expected`.
    async fn check(&self, arguments: &[&str], environment: &[(&str, &str)], expected: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cosec-worker"));
        command.arg("check").args(arguments).arg("--expected").arg(golden(expected).join("expected.json"));
        command.env_clear().env("HF_HOME", self.home.path()).env("HF_ENDPOINT", format!("http://{}", self.address));
        command.current_dir(self.home.path()).envs(environment.iter().copied());
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    async fn passes(&self, arguments: &[&str], environment: &[(&str, &str)], expected: &str) {
        let output = self.check(arguments, environment, expected).await;
        assert!(output.status.success(), "{output:?}");
    }

    async fn fails(&self, arguments: &[&str], environment: &[(&str, &str)], parts: &[&str]) {
        let output = self.check(arguments, environment, "llama-gqa-tied").await;
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && !message.contains("panicked"), "{message}");
        assert!(parts.iter().all(|part| message.contains(part)), "{message:?} lacks one of {parts:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_is_downloaded_once() {
    let (storage, storage_address) = serve(Hub::new(&[("tiny/llama", &golden("llama-gqa-tied-sharded"))])).await;
    let (hub, address) = serve(Hub {
        gated: true,
        storage: Some(storage_address),
        ..Hub::new(&[("tiny/llama", &golden("llama-gqa-tied-sharded"))])
    })
    .await;
    let machine = Machine::new(address);
    let model = ["--model", "tiny/llama", "--revision", "v1"];
    machine.passes(&model, &[("HF_TOKEN", TOKEN)], "llama-gqa-tied").await;
    let shards = (1..=4).map(|shard| format!("model-0000{shard}-of-00004.safetensors"));
    let files = ["config.json".to_owned()].into_iter().chain(shards.clone());
    assert_eq!(hub.downloaded(), files.chain(["model.safetensors.index.json".to_owned()]).collect::<Vec<_>>());
    assert_eq!(storage.downloaded(), shards.collect::<Vec<_>>());

    // No more requests: by tag or commit, without a token, offline or not.
    let asked = hub.requests().len();
    machine.passes(&model, &[], "llama-gqa-tied").await;
    machine.passes(&["--model", &format!("tiny/llama@{COMMIT}")], &[("HF_HUB_OFFLINE", "1")], "llama-gqa-tied").await;
    let local = golden("llama-gqa-tied");
    machine.passes(&["--model", local.to_str().unwrap()], &[], "llama-gqa-tied").await;
    let cache = machine.home.path().join("hub");
    let elsewhere = [("HF_HOME", "/nowhere"), ("HF_HUB_CACHE", cache.to_str().unwrap())];
    machine.passes(&model, &elsewhere, "llama-gqa-tied").await;
    assert_eq!(hub.requests().len(), asked);

    // Another revision needs a request.
    machine.fails(&["--model", "tiny/llama"], &[], &["tiny/llama@main", "HF_TOKEN"]).await;
    assert!(hub.requests().len() > asked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adapter_is_downloaded() {
    let repositories: &[(&str, &Path)] = &[("a/base", &golden("codegen-bin")), ("a/lora", &golden("codegen-lora"))];
    let (hub, address) = serve(Hub::new(repositories)).await;
    let machine = Machine::new(address);
    let arguments = ["--model", "a/base", "--adapter", "a/lora@v1"];
    machine.passes(&arguments, &[], "codegen-lora").await;
    let files = ["adapter_config.json", "adapter_model.safetensors", "config.json", "pytorch_model.bin"];
    assert_eq!(hub.downloaded(), files);
    let asked = hub.requests().len();
    machine.passes(&arguments, &[("HF_HUB_OFFLINE", "true")], "codegen-lora").await;
    machine.passes(&["--model", "a/base", "--lora", "one=a/lora@v1"], &[], "codegen-lora").await;
    assert_eq!(hub.requests().len(), asked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_had_is_said() {
    let model = ["--model", "tiny/llama"];
    let (hub, address) = serve(Hub {
        gated: true,
        broken: Mutex::new(Some(("model.safetensors".to_owned(), 1000))),
        ..Hub::new(&[("tiny/llama", &golden("llama-gqa-tied")), ("tiny/empty", &golden("llama-lora"))])
    })
    .await;
    let machine = Machine::new(address);
    machine.fails(&model, &[("HF_HUB_OFFLINE", "1")], &["tiny/llama@main", "HF_HUB_OFFLINE", "cache"]).await;
    assert_eq!(hub.requests(), Vec::<String>::new());
    machine.fails(&model, &[], &["tiny/llama@main", "set HF_TOKEN"]).await;
    machine.fails(&model, &[("HF_TOKEN", "wrong")], &["tiny/llama@main", "refuses", "HF_TOKEN"]).await;
    let known = [("HF_TOKEN", TOKEN)];
    machine.fails(&["--model", "tiny/none"], &known, &["tiny/none@main", "no such model"]).await;
    machine.fails(&["--model", "tiny/llama@v9"], &known, &["tiny/llama@v9", "no such model or revision"]).await;
    machine.fails(&["--model", "tiny/empty"], &known, &["tiny/empty@main", "lacks config.json"]).await;
    machine.fails(&["--model", "no-such-thing"], &known, &["no-such-thing", "OWNER/NAME"]).await;

    // An interrupted download is no model, and continues at the next start.
    machine.fails(&model, &known, &["tiny/llama@main", "model.safetensors was interrupted"]).await;
    machine.fails(&model, &[("HF_HUB_OFFLINE", "1")], &["not whole in the cache"]).await;
    *hub.broken.lock() = None;
    machine.passes(&model, &known, "llama-gqa-tied").await;

    let unreachable = Machine::new(TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap());
    unreachable.fails(&model, &[], &["tiny/llama@main", "cannot be reached"]).await;
}
