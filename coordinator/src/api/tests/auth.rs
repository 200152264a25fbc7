//! Who is let in, and as whom.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cosec_proto::wire::coordinator as wire;
use cosec_proto::wire::coordinator::coordinator_client::CoordinatorClient;
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::fixture::{TestServer, says};
use crate::api::config::ApiConfig;
use crate::tenant::ShareKey;

/// SHA-256 of "abc" (FIPS 180-2, appendix B.1).
const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

/// SHA-256 of "def".
const DEF: &str = "cb8379ac2098aa165029e3938a51da0bcecfc008fd6795f401178647f96c5b34";

fn write_keys(file: &Path, keys: &[(&str, &str)]) {
    let entry = |(name, digest): &(&str, &str)| format!("[[keys]]\nname = \"{name}\"\nsha256 = \"{digest}\"\n");
    std::fs::write(file, keys.iter().map(entry).collect::<String>()).unwrap();
}

/// A server whose file of keys has that of "abc" for the tenant `team`.
async fn server(config: ApiConfig) -> (TestServer, PathBuf, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    write_keys(&file, &[("team", ABC)]);
    let config = ApiConfig { keys_file: Some(file.clone()), ..config };
    (TestServer::with(config, Duration::from_secs(5), |_| says("b")).await, file, folder)
}

fn strict() -> ApiConfig {
    ApiConfig { require_key: true, ..ApiConfig::default() }
}

async fn ask(server: &TestServer, headers: &[(&str, &str)]) -> Response {
    let body = json!({"model": "demo", "prompt": "a"});
    let request = Client::new().post(format!("{}/v1/completions", server.http)).json(&body);
    headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).send().await.unwrap()
}

async fn get(server: &TestServer, path: &str, key: Option<&str>) -> Response {
    let request = Client::new().get(format!("{}{path}", server.http));
    key.into_iter().fold(request, |request, key| request.bearer_auth(key)).send().await.unwrap()
}

#[tokio::test]
async fn a_key_names_its_tenant_and_none_is_refused_where_one_is_needed() {
    let (server, ..) = server(strict()).await;
    let good: [(&str, &str); 3] =
        [("authorization", "Bearer abc"), ("authorization", "bearer abc"), ("x-api-key", "abc")];
    for header in good {
        assert_eq!(ask(&server, &[header]).await.status(), 200, "{header:?}");
    }
    let bad: [&[(&str, &str)]; 4] = [
        &[],
        &[("authorization", "Bearer abd")],
        &[("authorization", "Basic abc")],
        &[("authorization", "Bearer abc"), ("authorization", "Bearer abc")],
    ];
    for headers in bad {
        let answer = ask(&server, headers).await;
        assert_eq!(answer.status(), 401, "{headers:?}");
        assert_eq!(answer.headers()["www-authenticate"], "Bearer realm=\"cosec\"");
    }
    assert!(server.seen().iter().all(|request| request.tenant.name == "team"));
    assert_eq!(server.seen().len(), good.len());
}

#[tokio::test]
async fn an_unknown_key_is_as_good_as_none_where_none_is_needed() {
    let (server, ..) = server(ApiConfig::default()).await;
    for header in [("x-api-key", "abc"), ("x-api-key", "EMPTY"), ("x-other", "")] {
        assert_eq!(ask(&server, &[header]).await.status(), 200);
    }
    let names: Vec<String> = server.seen().iter().map(|request| request.tenant.name.clone()).collect();
    assert_eq!(names, ["team", "", ""]);
}

#[tokio::test]
async fn outsiders_learn_whether_it_is_well_and_nothing_more() {
    let (server, ..) = server(strict()).await;
    for path in ["/v1/models", "/v1/models/demo"] {
        assert_eq!(get(&server, path, None).await.status(), 401, "{path}");
        assert_eq!(get(&server, path, Some("abc")).await.status(), 200, "{path}");
    }
    for path in ["/health/live", "/health/ready"] {
        assert_eq!(get(&server, path, None).await.status(), 200, "{path}");
    }
    server.trouble("10.0.0.7:9001: the connection broke");
    let reason = async |key: Option<&str>| {
        let answer = get(&server, "/health/ready", key).await;
        assert_eq!(answer.status(), 503);
        answer.text().await.unwrap()
    };
    assert!(!reason(None).await.contains("10.0.0.7"));
    assert!(reason(Some("abc")).await.contains("10.0.0.7"));
}

#[tokio::test]
async fn grpc_asks_for_the_same_keys() {
    let (server, ..) = server(strict()).await;
    let mut client = CoordinatorClient::connect(server.grpc.clone()).await.unwrap();
    let prompt = Some(wire::generate_request::Prompt::Text("a".to_owned()));
    let message = wire::GenerateRequest { model: "demo".to_owned(), prompt, ..wire::GenerateRequest::default() };
    for (key, known) in [("Bearer abc", true), ("bearer abc", true), ("Bearer abd", false)] {
        let mut request = tonic::Request::new(message.clone());
        request.metadata_mut().insert("authorization", key.parse().unwrap());
        let answer = client.generate(request).await;
        assert_eq!(
            answer.err().map(|status| status.code()),
            (!known).then_some(tonic::Code::Unauthenticated),
            "{key}"
        );
    }
}

#[tokio::test]
async fn a_changed_file_is_taken_and_a_broken_one_is_not() {
    let (server, file, _folder) = server(strict()).await;
    let until = async |key: &str, expected: u16| {
        while ask(&server, &[("x-api-key", key)]).await.status() != expected {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let broken = async |expected: bool| {
        let line = format!("cosec_keys_file_broken {}", u8::from(expected));
        let metrics = format!("{}/metrics", server.metrics);
        while !reqwest::get(&metrics).await.unwrap().text().await.unwrap().contains(&line) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    write_keys(&file, &[("team", ABC), ("other", DEF)]);
    until("def", 200).await;
    std::fs::write(&file, "[[keys").unwrap();
    broken(true).await;
    until("def", 200).await;
    write_keys(&file, &[("team", ABC)]);
    until("def", 401).await;
    broken(false).await;
}

#[tokio::test]
async fn clients_without_a_key_are_told_apart_by_address() {
    let shares = async |config: ApiConfig| {
        let server = TestServer::with(config, Duration::from_secs(5), |_| says("b")).await;
        for client in ["192.0.2.1", "192.0.2.2", "192.0.2.1"] {
            assert_eq!(ask(&server, &[("x-forwarded-for", client)]).await.status(), 200);
        }
        let tenants = server.seen().into_iter().map(|request| request.tenant);
        let (shares, ids): (Vec<ShareKey>, Vec<u64>) =
            tenants.map(|tenant| (tenant.share.clone(), tenant.id)).unzip();
        assert_eq!(shares[0] == shares[1], ids[0] == ids[1]);
        assert_eq!((&shares[0], ids[0]), (&shares[2], ids[2]));
        shares
    };
    let believed = ApiConfig { trusted_proxies: vec!["127.0.0.0/8".parse().unwrap()], ..ApiConfig::default() };
    let apart = shares(believed).await;
    assert_ne!(apart[0], apart[1]);
    // Whoever is not trusted cannot choose whom it is counted with.
    let together = shares(ApiConfig::default()).await;
    assert_eq!(together[0], together[1]);
}

#[tokio::test]
async fn a_tenant_has_its_own_models_and_bounds() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    let entry = format!("[[keys]]\nname = 'team'\nsha256 = '{ABC}'\nmodels = ['org/chat']\n");
    std::fs::write(&file, format!("{entry}[keys.policy]\nbounds = {{ tau = 0.1 }}\n")).unwrap();
    let config = ApiConfig { keys_file: Some(file), ..ApiConfig::default() };
    let server = TestServer::with(config, Duration::from_secs(5), |_| says("b")).await;
    let list: Value = get(&server, "/v1/models", Some("abc")).await.json().await.unwrap();
    let ids: Vec<&str> = list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["org/chat"]);
    let ask = async |key: Option<&str>, model: &str, tau: f64| {
        let body = json!({"model": model, "prompt": "a", "cosec": {"tau": tau}});
        let request = Client::new().post(format!("{}/v1/completions", server.http)).json(&body);
        let answer = key.into_iter().fold(request, |request, key| request.bearer_auth(key)).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap()["error"]["message"].take())
    };
    // A model of others is as unknown as one that there is not.
    for name in ["demo", "nobody"] {
        let unknown = json!(format!("there is no model {name:?}"));
        assert_eq!(ask(Some("abc"), name, 0.1).await, (404, unknown.clone()));
        let answer = get(&server, &format!("/v1/models/{name}"), Some("abc")).await;
        assert_eq!(answer.status(), 404);
        assert_eq!(answer.json::<Value>().await.unwrap()["error"]["message"], unknown);
    }
    assert_eq!(ask(Some("abc"), "org/chat", 0.1).await.0, 200);
    let beyond = json!("cosec.tau is 0.2; it must be at most 0.1, the operator's bound");
    assert_eq!(ask(Some("abc"), "org/chat", 0.2).await, (400, beyond));
    assert_eq!(ask(None, "demo", 0.2).await.0, 200);
}
