//! Workers that are not as the others of their role: they change nothing for requests that the others can serve.

use cosec_coordinator::merge::{Cosec, Product, SelectedRule};
use cosec_coordinator::request::GenerationSettings;
use cosec_coordinator::session::service::ServiceConfig;
use cosec_proto::ErrorCode;
use cosec_tests::mock_worker::{MockModel, MockWorker};

use crate::cluster::{Service, anti_expert, collect, config, prompt, request, settings, start, until};

const COSEC: SelectedRule = SelectedRule::Cosec(Cosec { tau: 0.3 });

/// What is said of the workers that are left out.
fn left_out(service: &Service) -> String {
    service.0.models().flat_map(|model| model.readiness.left_out.clone()).collect::<Vec<_>>().join("; ")
}

/// A service with these workers, once it is ready and says `part` of those that are left out.
async fn ready(config: ServiceConfig, part: &str) -> (Service, impl Drop) {
    let (service, _, shutdown) = start(config);
    until("the service is ready", || service.ready().is_ok() && left_out(&service).contains(part)).await;
    (service, shutdown.drop_guard())
}

#[tokio::test]
async fn a_worker_with_a_small_cache_serves_short_requests_only() {
    let small = MockWorker::start(MockModel { context_tokens: 64, ..MockModel::base() }).unwrap();
    let (base, expert) =
        (MockWorker::start(MockModel::base()).unwrap(), MockWorker::start(MockModel::expert()).unwrap());
    let (service, _shutdown) = ready(config(&[&small, &base], &[&expert]), "").await;
    let both_are_up =
        || service.0.models().all(|model| model.readiness.facts.as_ref().unwrap().context_tokens == 2048);
    until("the larger one is up", both_are_up).await;
    for seed in 0..20 {
        let long = GenerationSettings { seed, ..settings(COSEC) };
        let prompt: Vec<u32> = prompt(100).into_iter().map(|id| (id + seed as u32) % 60 + 1).collect();
        collect(&service, request(long, &prompt)).await.end.unwrap();
    }
    assert_eq!(small.operations(), 0);
}

#[tokio::test]
async fn a_worker_with_another_vocabulary_is_left_out_and_named() {
    let odd = MockWorker::start(MockModel { vocabulary: 1, context_tokens: 1, ..MockModel::base() }).unwrap();
    let (base, expert) =
        (MockWorker::start(MockModel::base()).unwrap(), MockWorker::start(MockModel::expert()).unwrap());
    let named = format!("base at {}: it hosts another model than most", odd.address());
    let (service, _shutdown) = ready(config(&[&odd, &base], &[&expert]), &named).await;
    for model in service.0.models() {
        let facts = model.readiness.facts.clone().unwrap();
        assert_eq!((facts.vocabulary, facts.context_tokens), (64, 2048));
    }
    collect(&service, request(settings(COSEC), &prompt(5))).await.end.unwrap();
}

#[tokio::test]
async fn a_worker_that_is_not_the_pinned_one_is_left_out_and_named() {
    let fakes = [(); 2].map(|()| {
        MockWorker::start(MockModel { fingerprint: "fake".to_owned(), salt: 9, ..MockModel::expert() }).unwrap()
    });
    let (base, expert) =
        (MockWorker::start(MockModel::base()).unwrap(), MockWorker::start(MockModel::expert()).unwrap());
    let mut pinned = config(&[&base], &[&fakes[0], &expert, &fakes[1]]);
    pinned.models[0].expert_fingerprint = Some("expert".to_owned());
    let named = format!("expert at {}: its fingerprint is fake; the configuration pins expert", fakes[0].address());
    let (service, _shutdown) = ready(pinned, &named).await;
    collect(&service, request(settings(COSEC), &prompt(5))).await.end.unwrap();
    assert!(fakes.iter().all(|fake| fake.operations() == 0));
}

#[tokio::test]
async fn no_model_is_compared_with_itself() {
    let same = |role| MockModel { fingerprint: "base".to_owned(), ..role };
    let (base, twin) =
        (MockWorker::start(MockModel::base()).unwrap(), MockWorker::start(same(MockModel::expert())).unwrap());
    let (service, _, _shutdown) = start(config(&[&base], &[&twin]));
    let refused = "it computes with the very model of the base";
    until("the twin is refused", || service.ready().is_err_and(|why| why.contains(refused))).await;
    let error = service.open(request(settings(COSEC), &prompt(5))).err().unwrap();
    assert_eq!(error.code, ErrorCode::ModelMismatch, "{error}");

    let expert = MockWorker::start(MockModel::expert()).unwrap();
    let mut compared = config(&[&base], &[&expert]);
    compared.models[0].anti_expert = vec![expert.address().to_string()];
    let (service, _, _shutdown) = start(compared);
    let refused = "it computes with the very model of the expert";
    until("the anti-expert is refused", || service.ready().is_err_and(|why| why.contains(refused))).await;
}

#[tokio::test]
async fn an_anti_expert_that_is_smaller_is_refused_and_shrinks_nothing() {
    let (base, expert) =
        (MockWorker::start(MockModel::base()).unwrap(), MockWorker::start(MockModel::expert()).unwrap());
    let small = MockWorker::start(MockModel { context_tokens: 1, ..anti_expert() }).unwrap();
    let mut compared = config(&[&base], &[&expert]);
    compared.models[0].anti_expert = vec![small.address().to_string()];
    let (service, _, _shutdown) = start(compared);
    until("it is refused", || service.ready().is_err_and(|why| why.contains("the anti-expert has"))).await;
    assert!(service.0.models().all(|model| model.readiness.hardened().is_ok()));
    collect(&service, request(settings(COSEC), &prompt(5))).await.end.unwrap();
    let product = SelectedRule::Product(Product { alpha: 1.0 });
    assert_eq!(service.open(request(settings(product), &prompt(5))).err().unwrap().code, ErrorCode::ModelMismatch);
}
