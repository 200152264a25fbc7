//! Somebody who reaches a worker and knows the names of tenants asks it what they have cached.

use cosec_proto::SessionId;
use cosec_proto::transport::{self, with_protocol_version};
use cosec_proto::wire::worker::step_request::Operation;
use cosec_proto::wire::worker::worker_client::WorkerClient;
use cosec_proto::wire::worker::{Extend, StepRequest};
use cosec_tests::fleet::{coordinator, worker};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::observation::report;

/// What alpha asks: a prompt that the attacker suspects.
const PROMPT: std::ops::Range<u32> = 100..290;

/// The number of a tenant if it came of the name alone.
fn number_of_name(name: &str) -> u64 {
    let digest = Sha256::digest(format!("cosec tenant\n{name}"));
    digest.iter().take(8).fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// Tokens that a worker has to feed for the prompt in the name of a tenant: few where the tenant has it cached.
async fn fed(address: &str, tenant: u64) -> u32 {
    let mut client = WorkerClient::new(transport::channel(address).unwrap());
    let session = SessionId::random().to_wire();
    let extend = Extend { session, tokens: PROMPT.collect(), tenant, ..Extend::default() };
    let request = StepRequest { op: 1, deadline_ms: 0, operation: Some(Operation::Extend(extend)) };
    let requests = with_protocol_version(tokio_stream::once(request));
    let mut responses = client.step(requests).await.unwrap().into_inner();
    responses.message().await.unwrap().unwrap().pass_tokens
}

#[tokio::test]
async fn nobody_can_ask_what_a_tenant_has_cached() {
    let logs = tempfile::TempDir::new().unwrap();
    let base = worker("base", "base", &[], logs.path()).await;
    let expert = worker("expert", "expert", &[], logs.path()).await;
    let (file, keys) = (logs.path().join("coordinator.toml"), logs.path().join("keys.toml"));
    let digest: String = Sha256::digest("key").iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::write(&keys, format!("[[keys]]\nname = \"alpha\"\nsha256 = \"{digest}\"\n")).unwrap();
    std::fs::write(&file, format!("[api]\nkeys_file = {keys:?}\n")).unwrap();
    let flags = ["--config", file.to_str().unwrap(), "--base", &base.address, "--expert", &expert.address];
    let coordinator = coordinator("coordinator", &flags, logs.path()).await;
    coordinator.ready().await;
    let body = json!({"model": "demo", "prompt": PROMPT.collect::<Vec<u32>>(), "max_tokens": 1});
    for key in [Some("key"), None] {
        let request = reqwest::Client::new().post(format!("{}/v1/completions", coordinator.http)).json(&body);
        let request = key.into_iter().fold(request, |request, key| request.bearer_auth(key));
        assert_eq!(request.send().await.unwrap().status(), 200);
    }
    let mut seen = Vec::new();
    for address in [&base.address, &expert.address] {
        for tenant in [number_of_name("alpha"), 0, 4711] {
            seen.push(fed(address, tenant).await);
        }
    }
    report("B9", "asked workers for alpha's prompt by its name, and as others", &format!("tokens fed: {seen:?}"));
    assert!(seen.iter().all(|&fed| fed as usize == PROMPT.len()), "{seen:?}");
}
