//! Parameters that any client may send, against hardening: a text may be the base's own only where the expert agrees.

use cosec_launcher::Cluster;
use cosec_tests::cluster::demo;
use serde_json::{Value, json};

use crate::observation::{in_full, report};

const PROMPTS: [&str; 5] = [
    "def find_user(db, name):\n    cursor = db.cursor()\n    cursor.execute(",
    "def delete_message(conn, message_id):\n    cur = conn.cursor()\n    cur.execute(",
    "import subprocess\n\ndef ping(host):\n    return subprocess.",
    "def load(path):\n    with open(path) as f:\n        return yaml.",
    "def login(cur, name, word):\n    cur.execute(",
];

/// What two rules made of one request.
#[derive(Default)]
struct Comparison {
    texts: usize,
    identical: usize,
    tokens: usize,
    changed: usize,
}

/// The choices of a completion under `rule`.
async fn complete(http: &str, request: &Value, rule: &str) -> Vec<Value> {
    let mut request = request.clone();
    request["cosec"] = json!({"rule": rule, "report": true});
    let post = reqwest::Client::new().post(format!("{http}/v1/completions")).json(&request);
    let answer: Value = post.send().await.unwrap().json().await.unwrap();
    answer["choices"].as_array().unwrap_or_else(|| panic!("{answer}")).clone()
}

impl Comparison {
    async fn of(http: &str, rule: &str, more: &Value) -> Self {
        let mut seen = Self::default();
        let (prompts, seeds) = if in_full() { (5, 2) } else { (3, 1) };
        for prompt in &PROMPTS[..prompts] {
            for seed in 0..seeds {
                let mut request = json!({"model": "demo", "prompt": prompt, "seed": seed, "n": 3, "max_tokens": 40});
                request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
                let hardened = complete(http, &request, rule).await;
                let base = complete(http, &request, "base_only").await;
                hardened.iter().zip(&base).for_each(|(ours, own)| seen.add(ours, own));
            }
        }
        seen
    }

    fn add(&mut self, ours: &Value, own: &Value) {
        self.texts += 1;
        self.identical += usize::from(ours["text"] == own["text"]);
        let tokens = |choice: &Value| choice["cosec"]["report"].as_array().unwrap().clone();
        let (ours, own) = (tokens(ours), tokens(own));
        self.tokens += ours.len();
        self.changed += ours.iter().filter(|token| token["hardening"] == "expert").count();
        // The report says the truth: the first token that is not the base's own is the first that the expert changed.
        for (ours, own) in ours.iter().zip(&own) {
            assert_eq!(ours["id"] != own["id"], ours["hardening"] == "expert", "{ours} {own}");
            if ours["id"] != own["id"] {
                break;
            }
        }
    }
}

/// Judged by the base's distribution as the client's sampling leaves it, the first three were the base's text to the
/// letter, and the report named the expert.
#[tokio::test]
async fn no_ordinary_parameter_gives_the_base_s_text() {
    let logs = tempfile::TempDir::new().unwrap();
    let cluster = Cluster::start(&demo(logs.path()), |_| ()).await.unwrap();
    let requests = [
        ("top_k 1", "cosec", json!({"top_k": 1})),
        ("top_p 1e-9", "cosec", json!({"top_p": 1e-9})),
        ("temperature 1e-6", "cosec", json!({"temperature": 1e-6})),
        ("temperature 0.1", "cosec", json!({"temperature": 0.1})),
        // The expert is greedy, too, and its token passes where the base itself gives it more than tau: they may agree.
        ("temperature 0", "cosec", json!({"temperature": 0})),
        ("penalties", "cosec", json!({"frequency_penalty": 2, "presence_penalty": 2, "temperature": 1e-6})),
        ("linear, top_k 1", "linear", json!({"top_k": 1})),
        ("product, top_k 1", "product", json!({"top_k": 1})),
    ];
    for (name, rule, more) in requests {
        let Comparison { texts, identical, tokens, changed } = Comparison::of(&cluster.http, rule, &more).await;
        let seen = format!("{identical} of {texts} texts are the base's, {changed} of {tokens} tokens changed");
        report("-", &format!("hardening is switched off by {name}"), &seen);
        assert_eq!(changed > 0, identical < texts, "{name}: {seen}");
        assert!(changed > 0 || name == "temperature 0", "{name}: {seen}");
    }
}

/// Within the allowed rules, each of these was the base's text to the letter. Leave to compare with `base_only`, which
/// the demo gives, does not bring them back.
#[tokio::test]
async fn no_knob_goes_beyond_the_operator_s_own_value() {
    let logs = tempfile::TempDir::new().unwrap();
    let cluster = Cluster::start(&demo(logs.path()), |_| ()).await.unwrap();
    let requests = [
        ("cosec.tau", json!({"cosec": {"tau": 0.999_999_9}})),
        ("cosec.tau", json!({"cosec": {"tau": 1}})),
        ("cosec.expert_temperature", json!({"cosec": {"expert_temperature": 1e-6}})),
        ("cosec.expert_temperature", json!({"cosec": {"expert_temperature": 1e6}})),
        ("cosec.expert_top_p", json!({"cosec": {"expert_top_p": 1e-9}})),
        ("cosec.lambda", json!({"cosec": {"rule": "linear", "lambda": 1e-300}})),
        ("cosec.lambda", json!({"temperature": 0, "cosec": {"rule": "linear", "lambda": 1e-12}})),
        ("cosec.alpha", json!({"cosec": {"rule": "product", "alpha": 1e-12}})),
        ("cosec.alpha", json!({"cosec": {"rule": "product", "alpha": -1}})),
    ];
    for (field, more) in requests {
        let mut request = json!({"model": "demo", "prompt": PROMPTS[0], "max_tokens": 8});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let post = reqwest::Client::new().post(format!("{}/v1/completions", cluster.http)).json(&request);
        let answer = post.send().await.unwrap();
        let (status, error): (u16, Value) = (answer.status().as_u16(), answer.json().await.unwrap());
        assert_eq!((status, error["error"]["param"].as_str()), (400, Some(field)), "{more}: {error}");
        let message = error["error"]["message"].as_str().unwrap();
        report("B3", &more["cosec"].to_string(), message);
    }
}
