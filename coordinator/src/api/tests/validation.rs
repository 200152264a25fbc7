//! Every parameter of a completion: what is taken, and what is refused under its name.

use std::time::Duration;

use cosec_proto::sampling::SamplingParams;
use serde_json::{Value, json};

use super::fixture::{TestServer, says};
use crate::api::config::ApiConfig;
use crate::merge::{
    BaseOnly, Cosec, ExpertOnly, Judge, Linear, LogitsTransport, Product, RuleParameters, SelectedRule,
};
use crate::policy::{PolicyBounds, PolicyConfig};
use crate::request::GenerationSettings;

const PATH: &str = "/v1/completions";

fn body(more: &Value) -> Value {
    let mut body = json!({"model": "demo", "prompt": "a"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn good_values_become_settings() {
    let server = TestServer::open(|_| says("x")).await;
    let check = async |more: Value, holds: fn(&GenerationSettings) -> bool| {
        server.answer(PATH, &body(&more)).await;
        let settings = server.seen().last().unwrap().settings.clone();
        assert!(holds(&settings), "{more}: {settings:?}");
    };
    check(json!({}), |s| {
        s.n == 1
            && s.max_tokens == Some(16)
            && s.min_tokens == 0
            && s.base == SamplingParams::RAW
            && s.expert == SamplingParams::new(0.4, 0.95, 0).unwrap()
            && s.rule == SelectedRule::Cosec(Cosec { tau: 0.3 })
            && s.logprobs.is_none()
            && s.transport == LogitsTransport::Auto
            && s.judge == Judge::Raw
            && !(s.echo || s.report || s.reference_code)
    })
    .await;
    check(json!({"n": 2, "best_of": 2}), |s| s.n == 2).await;
    check(json!({"n": null, "stop": null, "cosec": null, "logit_bias": null}), |s| s.n == 1).await;
    check(json!({"seed": 0}), |s| s.seed == 0).await;
    check(json!({"seed": -1}), |s| s.seed == u64::MAX).await;
    check(json!({"seed": u64::MAX}), |s| s.seed == u64::MAX).await;
    check(json!({"max_tokens": 2047, "min_tokens": 2047}), |s| (s.max_tokens, s.min_tokens) == (Some(2047), 2047))
        .await;
    check(json!({"temperature": 0.7, "top_p": 0.5, "top_k": 3}), |s| {
        s.base == SamplingParams::new(0.7, 0.5, 3).unwrap() && s.expert == SamplingParams::new(0.4, 0.95, 0).unwrap()
    })
    .await;
    check(json!({"temperature": 0}), |s| s.base == SamplingParams::GREEDY && s.expert.temperature() == 0.0).await;
    check(json!({"temperature": 0, "cosec": {"expert_temperature": 0.4}}), |s| s.expert.temperature() == 0.4).await;
    check(json!({"stop": "a"}), |s| s.stop == ["a"]).await;
    check(json!({"stop": []}), |s| s.stop.is_empty()).await;
    check(json!({"logprobs": 20}), |s| s.logprobs == Some(20)).await;
    check(json!({"logit_bias": {"0": 100, "51199": -100.0}}), |s| {
        s.adjustments.logit_bias.iter().eq([(&0, &100.0), (&51_199, &-100.0)])
    })
    .await;
    check(json!({"frequency_penalty": -2, "presence_penalty": 2}), |s| {
        (s.adjustments.frequency_penalty, s.adjustments.presence_penalty) == (-2.0, 2.0)
    })
    .await;
    check(json!({"user": "me", "stream": false, "suffix": null}), |s| s.n == 1).await;
}

#[tokio::test]
async fn the_cosec_object_chooses_the_rule() {
    let server = TestServer::open(|_| says("x")).await;
    let check = async |more: Value, holds: fn(&GenerationSettings) -> bool| {
        server.answer(PATH, &body(&more)).await;
        let settings = server.seen().last().unwrap().settings.clone();
        assert!(holds(&settings), "{more}: {settings:?}");
    };
    check(json!({"cosec": {"tau": 0}}), |s| s.rule == SelectedRule::Cosec(Cosec { tau: 0.0 })).await;
    check(json!({"cosec": {"rule": "linear"}}), |s| s.rule == SelectedRule::Linear(Linear { lambda: 0.5 })).await;
    check(json!({"cosec": {"rule": "linear", "lambda": 1}}), |s| {
        s.rule == SelectedRule::Linear(Linear { lambda: 1.0 })
    })
    .await;
    check(json!({"cosec": {"rule": "product", "alpha": -2}}), |s| {
        s.rule == SelectedRule::Product(Product { alpha: -2.0 })
    })
    .await;
    check(json!({"cosec": {"rule": "base_only"}}), |s| s.rule == SelectedRule::BaseOnly(BaseOnly)).await;
    check(json!({"cosec": {"rule": "expert_only"}}), |s| {
        s.rule == SelectedRule::ExpertOnly(ExpertOnly) && s.expert == SamplingParams::new(0.4, 0.95, 0).unwrap()
    })
    .await;
    check(json!({"cosec": {"rule": "expert_only"}, "temperature": 0.7, "top_p": 0.5, "top_k": 3}), |s| {
        s.expert == SamplingParams::new(0.7, 0.5, 3).unwrap()
    })
    .await;
    for transport in ["auto", "gather", "nucleus", "sample", "full"] {
        server.answer(PATH, &body(&json!({"cosec": {"transport": transport, "report": true}}))).await;
    }
}

#[tokio::test]
async fn bad_values_are_refused_by_name() {
    let server = TestServer::open(|_| says("x")).await;
    // What is sent, the parameter that is named, and a part of the message.
    let cases = [
        (json!({"model": 1}), "model", "a string"),
        (json!({"model": null}), "model", "missing"),
        (json!({"prompt": null}), "prompt", "missing"),
        (json!({"prompt": ""}), "prompt", "empty"),
        (json!({"prompt": []}), "prompt", "empty"),
        (json!({"prompt": [[]]}), "prompt", "empty"),
        (json!({"prompt": ["a", ""]}), "prompt", "empty"),
        (json!({"prompt": 1}), "prompt", "a string"),
        (json!({"prompt": {"a": 1}}), "prompt", "a string"),
        (json!({"prompt": ["a", 1]}), "prompt", "prompt[1]"),
        (json!({"prompt": [1, "a"]}), "prompt", "prompt[1]"),
        (json!({"prompt": [1, -1]}), "prompt", "prompt[1]"),
        (json!({"prompt": [[1], 2]}), "prompt", "prompt[1]"),
        (json!({"prompt": [1, 51_200]}), "prompt", "51200 at 1"),
        (json!({"prompt": [10_000_000_000_u64]}), "prompt", "prompt[0]"),
        (json!({"suffix": 1}), "suffix", "a string"),
        (json!({"n": 0}), "n", "n is 0; it must be from 1 to 128"),
        (json!({"n": 129}), "n", "129"),
        (json!({"n": 1.5}), "n", "whole number"),
        (json!({"n": -1}), "n", "-1"),
        (json!({"n": "1"}), "n", "\"1\""),
        (json!({"n": true}), "n", "true"),
        (json!({"prompt": ["a", "b", "c"], "n": 100}), "n", "300 choices"),
        (json!({"best_of": 2}), "best_of", "equal to n"),
        (json!({"seed": 1.5}), "seed", "64 bits"),
        (json!({"max_tokens": 0}), "max_tokens", "at least 1"),
        (json!({"max_tokens": -1}), "max_tokens", "-1"),
        (json!({"max_tokens": 2048}), "max_tokens", "2049"),
        (json!({"max_tokens": 4_294_967_295_u32}), "max_tokens", "2048"),
        (json!({"prompt": vec![1; 2048]}), "prompt", "2048"),
        (json!({"min_tokens": 17}), "min_tokens", "16"),
        (json!({"temperature": -0.1}), "temperature", "-0.1"),
        (json!({"temperature": "hot"}), "temperature", "\"hot\""),
        (json!({"temperature": [1]}), "temperature", "[1]"),
        (json!({"top_p": 0}), "top_p", "greater than 0"),
        (json!({"top_p": 1.1}), "top_p", "1.1"),
        (json!({"top_k": -1}), "top_k", "0 keeps every token"),
        (json!({"stop": ""}), "stop", "0 bytes"),
        (json!({"stop": ["a", ""]}), "stop", "stop string 1"),
        (json!({"stop": "a".repeat(257)}), "stop", "257"),
        (json!({"stop": vec!["a"; 17]}), "stop", "17"),
        (json!({"stop": 1}), "stop", "list of strings"),
        (json!({"stream": "yes"}), "stream", "true or false"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options", "stream"),
        (json!({"stream": true, "stream_options": {"x": true}}), "stream_options.x", "not a parameter"),
        (json!({"stream": true, "stream_options": 1}), "stream_options", "an object"),
        (json!({"logprobs": 21}), "logprobs", "21"),
        (json!({"logprobs": true}), "logprobs", "true"),
        (json!({"echo": 1}), "echo", "true or false"),
        (json!({"echo": true, "suffix": "a"}), "echo", "suffix"),
        (json!({"logit_bias": {"51200": 1}}), "logit_bias", "below 51200"),
        (json!({"logit_bias": {"a": 1}}), "logit_bias", "token id"),
        (json!({"logit_bias": {"01": 1}}), "logit_bias", "token id"),
        (json!({"logit_bias": {"-1": 1}}), "logit_bias", "token id"),
        (json!({"logit_bias": {"5": 101}}), "logit_bias", "101"),
        (json!({"logit_bias": {"5": "x"}}), "logit_bias", "logit_bias.5"),
        (json!({"logit_bias": [1]}), "logit_bias", "an object"),
        (json!({"frequency_penalty": 2.1}), "frequency_penalty", "from -2 to 2"),
        (json!({"presence_penalty": -2.1}), "presence_penalty", "from -2 to 2"),
        (json!({"presence_penalty": "a"}), "presence_penalty", "a number"),
        (json!({"user": 1}), "user", "a string"),
        (json!({"foo": 1}), "foo", "not a parameter"),
        (json!({"foo": null}), "foo", "not a parameter"),
        (json!({"messages": []}), "messages", "not a parameter"),
        (json!({"cosec": 1}), "cosec", "an object"),
        (json!({"cosec": {"colour": 1}}), "cosec.colour", "not a parameter"),
        (json!({"cosec": {"rule": "magic"}}), "cosec.rule", "expert_only"),
        (json!({"cosec": {"rule": 1}}), "cosec.rule", "a string"),
        (json!({"cosec": {"tau": -0.1}}), "cosec.tau", "-0.1"),
        (json!({"cosec": {"tau": "a"}}), "cosec.tau", "a number"),
        (json!({"cosec": {"expert_temperature": -1}}), "cosec.expert_temperature", "-1"),
        (json!({"cosec": {"expert_top_p": 0}}), "cosec.expert_top_p", "0"),
        (json!({"cosec": {"reference_code": true}}), "cosec.reference_code", "not a parameter"),
        (json!({"cosec": {"lambda": 0.5}}), "cosec.lambda", "linear"),
        (json!({"cosec": {"alpha": 0.5}}), "cosec.alpha", "product"),
        (json!({"cosec": {"rule": "linear", "lambda": 1.1}}), "cosec.lambda", "1.1"),
        (json!({"cosec": {"rule": "linear", "tau": 0.3}}), "cosec.tau", "no effect"),
        (json!({"cosec": {"rule": "base_only", "expert_top_p": 0.5}}), "cosec.expert_top_p", "no effect"),
        (json!({"cosec": {"rule": "product", "alpha": 1001}}), "cosec.alpha", "from -1000 to 1000"),
        (json!({"cosec": {"transport": "pigeon"}}), "cosec.transport", "nucleus"),
        (json!({"cosec": {"report": "yes"}}), "cosec.report", "true or false"),
    ];
    for (more, parameter, part) in cases {
        let (status, error) = server.refusal(PATH, &body(&more)).await;
        assert_eq!((status, error["param"].as_str()), (400, Some(parameter)), "{more}: {error}");
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].as_str().unwrap().contains(part), "{more}: {error} does not say {part}");
    }
    let many: serde_json::Map<String, Value> = (0..1025).map(|id| (id.to_string(), json!(1))).collect();
    let (status, error) = server.refusal(PATH, &body(&json!({"logit_bias": many}))).await;
    assert_eq!((status, error["param"].as_str()), (400, Some("logit_bias")));
    let (status, error) = server.refusal(PATH, &body(&json!({"model": "nobody"}))).await;
    assert_eq!((status, error["param"].as_str(), error["code"].as_str()), (404, Some("model"), Some("not_found")));
    assert!(server.seen().is_empty(), "nothing of this reached a session");
    server.answer(PATH, &body(&json!({}))).await;
}

/// What a server under `policy` refuses, by the parameter and a part of the message, and what it serves.
async fn under(policy: PolicyConfig, refused: &[(Value, &str, &str)], served: &[Value]) {
    let server = TestServer::under(policy, ApiConfig::default(), Duration::from_secs(5), |_| says("x")).await;
    for (more, parameter, part) in refused {
        let (status, error) = server.refusal(PATH, &body(more)).await;
        assert_eq!((status, error["param"].as_str()), (400, Some(*parameter)), "{more}: {error}");
        assert!(error["message"].as_str().unwrap().contains(part), "{more}: {error}");
    }
    assert!(server.seen().is_empty());
    for more in served {
        server.answer(PATH, &body(more)).await;
    }
}

#[tokio::test]
async fn what_weakens_hardening_is_bounded_by_the_operator_s_own_values() {
    let cosec = |more: Value| json!({ "cosec": more });
    let refused = [
        (cosec(json!({"rule": "base_only"})), "cosec.rule", "cosec, linear, product, expert_only"),
        (cosec(json!({"tau": 1})), "cosec.tau", "cosec.tau is 1.0; it must be at most 0.3, the operator's bound"),
        (cosec(json!({"tau": 0.300_000_1})), "cosec.tau", "at most 0.3"),
        (cosec(json!({"rule": "linear", "lambda": 0})), "cosec.lambda", "at least 0.5"),
        (cosec(json!({"rule": "linear", "lambda": 1e-300})), "cosec.lambda", "1e-300"),
        (cosec(json!({"rule": "product", "alpha": 1e-12})), "cosec.alpha", "at least 1.0"),
        (cosec(json!({"rule": "product", "alpha": -1})), "cosec.alpha", "at least 1.0"),
        (cosec(json!({"expert_temperature": 1e-6})), "cosec.expert_temperature", "0.4"),
        (cosec(json!({"expert_temperature": 0.5})), "cosec.expert_temperature", "keeps fixed"),
        (cosec(json!({"expert_top_p": 1e-9})), "cosec.expert_top_p", "0.95"),
        (json!({"temperature": 0, "cosec": {"expert_temperature": 1}}), "cosec.expert_temperature", "0.4"),
    ];
    let served = [
        cosec(json!({"tau": 0.3})),
        cosec(json!({"tau": 0})),
        cosec(json!({"rule": "linear", "lambda": 0.5})),
        cosec(json!({"rule": "linear", "lambda": 1})),
        cosec(json!({"rule": "product", "alpha": 3})),
        cosec(json!({"expert_temperature": 0.4, "expert_top_p": 0.95})),
        json!({"temperature": 0, "cosec": {"expert_temperature": 0}}),
        json!({"temperature": 0, "cosec": {"expert_temperature": 0.4}}),
        // No base is there that could be preferred.
        json!({"temperature": 0.1, "cosec": {"rule": "expert_only", "expert_top_p": 0.5}}),
        json!({"logprobs": 1, "logit_bias": {"0": -100}}),
    ];
    under(PolicyConfig::default(), &refused, &served).await;
    // Leave to compare with the base alone lifts no other bound.
    let names = ["cosec", "base_only"];
    let comparing = PolicyConfig { allowed_rules: Some(names.map(str::to_owned).into()), ..PolicyConfig::default() };
    let refused = [
        (cosec(json!({"rule": "linear"})), "cosec.rule", "cosec, base_only"),
        (cosec(json!({"tau": 0.5})), "cosec.tau", "at most 0.3"),
    ];
    under(comparing, &refused, &[cosec(json!({"rule": "base_only"}))]).await;
}

#[tokio::test]
async fn the_operator_frees_and_forbids() {
    let bounds = PolicyBounds {
        expert_temperature: Some([0.2, 1.0]),
        expert_top_p: None,
        rule_parameters: RuleParameters([("tau".to_owned(), 2.0), ("lambda".to_owned(), 0.6)].into()),
    };
    let policy = PolicyConfig {
        base_logprobs: Some(false),
        logit_bias: Some(false),
        judge: Some(Judge::Warped),
        bounds,
        ..PolicyConfig::default()
    };
    let refused = [
        (json!({"logprobs": 0}), "logprobs", "does not allow log-probabilities"),
        (json!({"logit_bias": {"1": 1}}), "logit_bias", "a map of 1 entries"),
        (json!({"cosec": {"tau": 1.0}}), "cosec.tau", "less than 1"),
        (json!({"cosec": {"rule": "linear", "lambda": 0.5}}), "cosec.lambda", "at least 0.6"),
        (json!({"cosec": {"expert_temperature": 0.1}}), "cosec.expert_temperature", "from 0.2 to 1.0"),
    ];
    let served = [
        json!({"cosec": {"tau": 0.9, "expert_temperature": 1.0}}),
        // The bound takes the place of a default that it excludes.
        json!({"cosec": {"rule": "linear"}}),
        json!({"logit_bias": {}}),
    ];
    under(policy, &refused, &served).await;
}

#[tokio::test]
async fn a_context_that_is_too_small_is_told_in_figures() {
    let server = TestServer::open(|_| says("x")).await;
    let (status, error) = server.refusal(PATH, &body(&json!({"prompt": vec![1; 2000], "max_tokens": 49}))).await;
    assert_eq!((status, error["code"].as_str()), (400, Some("context_length_exceeded")));
    let message = error["message"].as_str().unwrap();
    assert!(["2000", "49", "2049", "2048"].iter().all(|figure| message.contains(figure)), "{message}");
    server.answer(PATH, &body(&json!({"prompt": vec![1; 2000], "max_tokens": 48}))).await;
}
