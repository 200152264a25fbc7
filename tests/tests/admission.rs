//! Who may decode, on real processes: bounds on requests, tokens and cache blocks, the shares and limits of API keys,
//! and what a client that leaves gives back. A gate before the base holds all that is under way, so nothing here
//! depends on time.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use cosec_proto::WorkerRole;
use cosec_tests::fleet::{Coordinator, Worker, coordinator, metric, metric_where, until, worker};
use cosec_tests::proxy::{Gate, Kind, Proxy};
use cosec_tests::stream::read;
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;

/// SHA-256 of the keys `key-a`, `key-b` and `key-c`.
const DIGESTS: [(&str, &str); 3] = [
    ("a", "f10f781241e2246678b6b45c857069208152a53863e47fac33f607ab405006f4"),
    ("b", "a30534a53b23547377ddccbd1ac85a8a84c13db43493c16e55a6abc7b0eba634"),
    ("c", "49043acf9056472a214242c2d15f3087c2d024b0d39ee858c60712b2354f3926"),
];

/// A base and an expert behind proxies, and a coordinator.
struct Stage {
    gate: Gate,
    workers: [Worker; 2],
    proxies: [Proxy; 2],
    coordinator: Coordinator,
    _logs: TempDir,
}

impl Stage {
    /// Starts everything; `keys` says what each key may, in TOML.
    async fn build(config: &str, keys: [&str; 3], worker_flags: &[&str]) -> Self {
        let logs = TempDir::new().unwrap();
        let gate = Gate::default();
        let workers = [
            worker("base", "base", worker_flags, logs.path()).await,
            worker("expert", "expert", worker_flags, logs.path()).await,
        ];
        let proxy =
            |role, worker: &Worker| Proxy::start(SocketAddr::from(([127, 0, 0, 1], 0)), role, &worker.address, &gate);
        let proxies = [proxy(WorkerRole::Base, &workers[0]), proxy(WorkerRole::Expert, &workers[1])];
        let (file, keys_file) = (logs.path().join("coordinator.toml"), logs.path().join("keys.toml"));
        let key = |((name, sha256), limits): (&(&str, &str), &str)| {
            format!("[[keys]]\nname = \"{name}\"\nsha256 = \"{sha256}\"\n{limits}\n")
        };
        std::fs::write(&keys_file, DIGESTS.iter().zip(keys).map(key).collect::<String>()).unwrap();
        std::fs::write(&file, format!("[api]\nkeys_file = {keys_file:?}\n[admission]\n{config}\n")).unwrap();
        let [base, expert] = [&proxies[0], &proxies[1]].map(|proxy| proxy.address().to_string());
        let flags = ["--config", file.to_str().unwrap(), "--base", &base, "--expert", &expert];
        let coordinator = coordinator("coordinator", &flags, logs.path()).await;
        coordinator.ready().await;
        Self { gate, workers, proxies, coordinator, _logs: logs }
    }

    /// A request for `tokens` tokens in the name of `key`.
    fn request(&self, key: &str, prompt: &str, tokens: u32) -> RequestBuilder {
        let body = json!({
            "model": "demo", "prompt": prompt, "max_tokens": tokens, "seed": 3, "logit_bias": {"0": -100},
        });
        let request = reqwest::Client::new().post(format!("{}/v1/completions", self.coordinator.http)).json(&body);
        request.bearer_auth(format!("key-{key}"))
    }

    fn begin(&self, key: &str, prompt: &str, tokens: u32) -> JoinHandle<String> {
        let request = self.request(key, prompt, tokens);
        tokio::spawn(async move { text(request.send().await.unwrap()).await })
    }

    async fn until_queued(&self, sessions: f64) {
        until("the sessions wait", async || self.coordinator.metric("cosec_queued_sessions").await == sessions).await;
    }

    /// Expects a refusal: its message, and after how many seconds it asks to come again.
    async fn refused(&self, request: RequestBuilder, full: &str) -> (String, u64) {
        let counted = async || {
            metric_where(&self.coordinator.metrics, "cosec_refused_sessions_total", &format!("\"{full}\"")).await
        };
        let before = counted().await;
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 429);
        let seconds = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        let answer: Value = answer.json().await.unwrap();
        assert_eq!(answer["error"]["code"], "overloaded");
        assert_eq!(counted().await, before + 1.0);
        (answer["error"]["message"].as_str().unwrap().to_owned(), seconds)
    }
}

async fn text(answer: Response) -> String {
    let answer: Value = answer.json().await.unwrap();
    answer["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

const PROMPT: &str = "def f(cur, x):\n    cur.execute(";

#[tokio::test]
async fn what_does_not_fit_is_refused_at_once_and_what_was_admitted_goes_on() {
    let config = "max_sessions = 2\nmax_queued_sessions = 3\nmax_queued_tokens = 400";
    let stage = Stage::build(config, ["", "", "max_sessions = 1"], &[]).await;
    let undisturbed = stage.begin("a", PROMPT, 100).await.unwrap();
    stage.gate.close(WorkerRole::Base, Kind::Verify, 3);
    let mut admitted = vec![stage.begin("a", PROMPT, 100), stage.begin("c", PROMPT, 100)];
    stage.gate.held().await;
    until("both decode", async || stage.coordinator.metric("cosec_active_sessions").await == 2.0).await;
    let (message, _) = stage.refused(stage.request("c", PROMPT, 1), "key_sessions").await;
    assert!(message.contains("key c has 1 choices"), "{message}");
    admitted.extend([stage.begin("a", PROMPT, 100), stage.begin("b", PROMPT, 100)]);
    stage.until_queued(2.0).await;
    let (message, long) = stage.refused(stage.request("a", PROMPT, 300), "tokens").await;
    assert!(message.contains("tokens are waiting"), "{message}");
    admitted.push(stage.begin("b", PROMPT, 100));
    stage.until_queued(3.0).await;
    let (message, short) = stage.refused(stage.request("a", PROMPT, 1), "sessions").await;
    assert!(message.contains("too many requests"), "{message}");
    assert!((1..=60).contains(&short) && (1..=60).contains(&long), "{short} and {long}");
    stage.gate.open();
    for admitted in admitted {
        assert_eq!(admitted.await.unwrap(), undisturbed);
    }
}

#[tokio::test]
async fn prompts_wait_until_the_workers_caches_have_room() {
    // 256 tokens: room for three of the prompts and some new tokens.
    let stage = Stage::build("", [""; 3], &["--blocks", "16", "--block-tokens", "16"]).await;
    let prompt = |number: usize| format!("# {number}\n") + &"cur.execute(query)\n".repeat(13);
    let mut undisturbed = Vec::new();
    for number in 0..6 {
        undisturbed.push(stage.begin("a", &prompt(number), 20).await.unwrap());
    }
    stage.gate.close(WorkerRole::Base, Kind::Verify, 3);
    let admitted: Vec<_> = (0..6).map(|number| stage.begin("a", &prompt(number), 20)).collect();
    stage.gate.held().await;
    until("all came", async || {
        let waiting = stage.coordinator.metric("cosec_queued_sessions").await;
        stage.coordinator.metric("cosec_active_sessions").await + waiting == 6.0
    })
    .await;
    let active = stage.coordinator.metric("cosec_active_sessions").await;
    assert!((2.0..=4.0).contains(&active), "{active} sessions decode at a time");
    stage.gate.open();
    for (admitted, undisturbed) in admitted.into_iter().zip(undisturbed) {
        assert_eq!(admitted.await.unwrap(), undisturbed);
    }
}

#[tokio::test]
async fn turns_follow_the_weights_of_keys_and_their_limits_hold() {
    let keys = ["weight = 1.0", "weight = 3.0", "tokens_per_minute = 60"];
    let stage = Stage::build("max_sessions = 1", keys, &[]).await;
    stage.gate.close(WorkerRole::Base, Kind::Prefill, 0);
    let first = stage.begin("a", PROMPT, 8);
    stage.gate.held().await;
    let turns = Arc::new(Mutex::new(Vec::new()));
    let mut waiting = Vec::new();
    for (key, count) in [("a", 8), ("b", 8)] {
        for _ in 0..count {
            let (request, turns) = (stage.request(key, PROMPT, 8), turns.clone());
            waiting.push(tokio::spawn(async move {
                let text = text(request.send().await.unwrap()).await;
                turns.lock().push(key);
                text
            }));
        }
        stage.until_queued(waiting.len() as f64).await;
    }
    stage.gate.open();
    let undisturbed = first.await.unwrap();
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap(), undisturbed);
    }
    // Three of four, whoever came first; equal shares would be four or five of eight.
    let turns = turns.lock().clone();
    let of_b = turns[..8].iter().filter(|&&key| key == "b").count();
    assert!((6..=7).contains(&of_b), "{turns:?}");

    // A budget of one token a second, overdrawn by more than a minute of it.
    stage.begin("c", PROMPT, 150).await.unwrap();
    let (message, seconds) = stage.refused(stage.request("c", PROMPT, 1), "key_tokens").await;
    assert!(message.contains("key c has used up its tokens"), "{message}");
    assert!((30..=150).contains(&seconds), "{seconds}");
}

#[tokio::test]
async fn a_client_that_leaves_gives_both_workers_blocks_back_within_a_step() {
    let stage = Stage::build("", [""; 3], &[]).await;
    let free = async |worker: &Worker| metric(&worker.metrics, "cosec_worker_blocks_free").await;
    let before = [free(&stage.workers[0]).await, free(&stage.workers[1]).await];
    stage.gate.close(WorkerRole::Base, Kind::Verify, 5);
    let client = {
        let http = stage.coordinator.http.clone();
        let body = json!({"model": "demo", "prompt": PROMPT, "max_tokens": 400, "seed": 3, "stream": true});
        tokio::spawn(async move { read(&http, &body, None, usize::MAX).await })
    };
    stage.gate.held().await;
    assert!(free(&stage.workers[0]).await < before[0] && free(&stage.workers[1]).await < before[1]);
    client.abort();
    // The operation that the base is about to perform is withdrawn, and none follows it.
    until("both are told", async || {
        stage.proxies.iter().all(|proxy| proxy.received().last() == Some(&Kind::Release))
    })
    .await;
    let base = stage.proxies[0].received();
    assert!(base.ends_with(&[Kind::Verify, Kind::Cancel, Kind::Release]), "{base:?}");
    let releases = |proxy: &Proxy| proxy.received().iter().filter(|&&kind| kind == Kind::Release).count();
    assert_eq!(stage.proxies.each_ref().map(releases), [1, 1]);
    stage.gate.open();
    for (worker, before) in stage.workers.iter().zip(before) {
        until("its blocks are free", async || free(worker).await == before).await;
        assert_eq!(metric(&worker.metrics, "cosec_worker_sessions").await, 0.0);
    }
    assert_eq!(stage.coordinator.metric("cosec_active_sessions").await, 0.0);
}
