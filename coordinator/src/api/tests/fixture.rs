//! A served coordinator whose sessions are scripts.

use std::collections::HashMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use std::task::{Context, Poll};
use std::time::Duration;

use cosec_proto::ErrorCode;
use cosec_proto::metrics::MetricRegistry;
use cosec_proto::serving::ConnectionLimits;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, stream};
use reqwest::{Response, StatusCode};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::{Admission, AdmissionLimits, AdmissionMetrics, QueuedPermit};
use crate::api::auth::RequestAuth;
use crate::api::config::ApiConfig;
use crate::api::metrics::ApiMetrics;
use crate::api::openai::resume::ResumeKey;
use crate::api::state::{ApiState, seconds_now};
use crate::config::Config;
use crate::generation::GenerationService;
use crate::generation::model_text::ModelText;
use crate::generation::sessions::{BoxedSession, EventStream, SessionSource};
use crate::merge::{Decision, Hardening, RejectedProposal, RuleParameters, SelectedRule, TokenScore};
use crate::models::{ModelFacts, ModelInfo, ModelReadiness};
use crate::policy::{DefaultSettings, OperatorPolicy, PolicyBounds, PolicyConfig};
use crate::postprocess::samples;
use crate::request::{FinishReason, SessionError, SessionEvent, TokenEvent, TokenizedRequest};
use crate::server::{BoundPort, Ports, serve};
use crate::session::plan::DecodePlan;
use crate::shared_key::SharedKey;
use crate::tasks::TaskSpawner;
use crate::tenant::Tenant;
use crate::tenant::metrics::TenantMetrics;

/// What one session does.
#[derive(Clone)]
pub(super) enum Script {
    /// Reports these events and ends.
    Events(Vec<SessionEvent>),
    /// Reports these events and then nothing, for ever.
    Hang(Vec<SessionEvent>),
    /// Is not admitted.
    Refuse(SessionError),
}

type ScriptFor = Box<dyn Fn(&TokenizedRequest) -> Script + Send + Sync>;

/// Runs a script per session and keeps the requests.
pub(super) struct ScriptedGenerator {
    script: ScriptFor,
    seen: Mutex<Vec<TokenizedRequest>>,
    live: Arc<AtomicUsize>,
    /// Why it is not ready; also takes the models' facts away.
    trouble: Mutex<Option<String>>,
    admission: Admission,
}

/// Counts a session until its stream is dropped.
struct LiveSession(Arc<AtomicUsize>);

impl Drop for LiveSession {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The events of a script.
struct ScriptedSession(BoxStream<'static, SessionEvent>);

impl Stream for ScriptedSession {
    type Item = SessionEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<SessionEvent>> {
        self.0.poll_next_unpin(context)
    }
}

impl EventStream for ScriptedSession {
    fn stop(self: Box<Self>) {}
}

impl SessionSource for ScriptedGenerator {
    fn models(&self) -> Vec<ModelInfo> {
        let trouble = self.trouble.lock().as_ref().map(|reason| SessionError::new(ErrorCode::Unavailable, reason));
        let model = |name: &str, vocabulary: u32, context_tokens: u32| ModelInfo {
            name: name.to_owned(),
            readiness: Arc::new(ModelReadiness {
                facts: match &trouble {
                    Some(error) => Err(error.clone()),
                    None => Ok(ModelFacts { vocabulary, context_tokens, end_token_ids: vec![50256] }),
                },
                expert: Ok(()),
                anti_expert: None,
                left_out: Vec::new(),
            }),
        };
        vec![model("demo", 51_200, 2048), model("org/chat", 300, 512)]
    }

    fn model(&self, name: &str) -> Option<ModelInfo> {
        self.models().into_iter().find(|model| model.name == name)
    }

    fn most_sessions(&self, tenant: &Tenant) -> usize {
        self.admission.most_sessions(tenant)
    }

    fn enter(
        &self,
        model: &ModelInfo,
        _: &DecodePlan,
        tenant: &Arc<Tenant>,
        tokens: u64,
    ) -> Result<QueuedPermit, SessionError> {
        self.admission.enter(tenant, &model.name, tokens)
    }

    fn open(&self, request: TokenizedRequest, _: DecodePlan, _: QueuedPermit) -> Result<BoxedSession, SessionError> {
        let script = (self.script)(&request);
        self.seen.lock().push(request);
        self.live.fetch_add(1, Ordering::SeqCst);
        let live = LiveSession(self.live.clone());
        let watched = |events: BoxStream<'static, SessionEvent>| -> BoxedSession {
            let counted = events.map(move |event| {
                let _ = &live;
                event
            });
            Box::new(ScriptedSession(counted.boxed()))
        };
        match script {
            Script::Events(events) => Ok(watched(stream::iter(events).boxed())),
            Script::Hang(events) => Ok(watched(stream::iter(events).chain(stream::pending()).boxed())),
            Script::Refuse(error) => Err(error),
        }
    }
}

/// A coordinator whose sessions are scripts, over real sockets.
pub(super) struct TestServer {
    pub(super) http: String,
    pub(super) grpc: String,
    pub(super) health: String,
    pub(super) metrics: String,
    pub(super) generator: Arc<ScriptedGenerator>,
    pub(super) shutdown: CancellationToken,
    served: JoinHandle<()>,
}

impl TestServer {
    /// Starts with default limits, every rule allowed and nothing bounded.
    pub(super) async fn open(script: impl Fn(&TokenizedRequest) -> Script + Send + Sync + 'static) -> Self {
        let unbounded = [("tau", f64::MAX), ("lambda", 0.0), ("alpha", -1000.0)];
        let policy = PolicyConfig {
            allowed_rules: Some(SelectedRule::names().map(str::to_owned).collect()),
            bounds: PolicyBounds {
                expert_temperature: Some([0.0, f64::MAX]),
                expert_top_p: Some([f64::MIN_POSITIVE, 1.0]),
                rule_parameters: RuleParameters(unbounded.map(|(name, bound)| (name.to_owned(), bound)).into()),
            },
            ..PolicyConfig::default()
        };
        Self::under(policy, ApiConfig::default(), Duration::from_secs(5), script).await
    }

    /// Starts with the default policy.
    pub(super) async fn with(
        config: ApiConfig,
        grace: Duration,
        script: impl Fn(&TokenizedRequest) -> Script + Send + Sync + 'static,
    ) -> Self {
        Self::under(PolicyConfig::default(), config, grace, script).await
    }

    pub(super) async fn under(
        policy: PolicyConfig,
        config: ApiConfig,
        grace: Duration,
        script: impl Fn(&TokenizedRequest) -> Script + Send + Sync + 'static,
    ) -> Self {
        let generator = Arc::new(ScriptedGenerator {
            script: Box::new(script),
            seen: Mutex::default(),
            live: Arc::default(),
            trouble: Mutex::default(),
            admission: Admission::new(
                AdmissionLimits::default(),
                Arc::new(|_: &str| u64::MAX),
                AdmissionMetrics::register(&MetricRegistry::default()).unwrap(),
            ),
        });
        let texts = HashMap::from([
            ("demo".to_owned(), Arc::new(ModelText::load(&samples::codegen_directory()).unwrap())),
            ("org/chat".to_owned(), Arc::new(chat_model())),
        ]);
        let registry = MetricRegistry::default();
        let metrics = Arc::new(ApiMetrics::register(&registry).unwrap());
        let models = texts.keys().map(|name: &String| (name.clone(), PolicyConfig::default()));
        let policy = Arc::new(OperatorPolicy::new(DefaultSettings::default(), policy, models).unwrap());
        let secret = SharedKey::random();
        let tenant_metrics = TenantMetrics::register(&registry).unwrap();
        let tasks = TaskSpawner::new(TaskTracker::new(), CancellationToken::new());
        let auth = RequestAuth::start(&config, &secret, Arc::clone(&policy), &tenant_metrics, &tasks).unwrap();
        let state = Arc::new(ApiState {
            generation: GenerationService::new(generator.clone(), texts, config.clone(), policy),
            auth,
            resume_key: ResumeKey::new(&secret),
            config,
            metrics,
            started: seconds_now(),
        });
        let any = || "127.0.0.1:0".to_owned();
        let (health_listen, metrics_listen) = (Some(any()), Some(any()));
        let ports =
            Config { http_listen: any(), grpc_listen: any(), health_listen, metrics_listen, ..Config::default() };
        let ports = Ports::bind(&ports).await.unwrap();
        let url = |port: &BoundPort| format!("http://{}", port.listener.local_addr().unwrap());
        let [http, grpc] = [&ports.http, &ports.grpc].map(url);
        let [health, metrics] = [&ports.health, &ports.metrics].map(|port| url(port.as_ref().unwrap()));
        let shutdown = CancellationToken::new();
        let limits = ConnectionLimits::default();
        let served = tokio::spawn(serve(ports, limits, state, registry, grace, shutdown.clone()));
        Self { http, grpc, health, metrics, generator, shutdown, served }
    }

    /// POSTs JSON.
    pub(super) async fn post(&self, path: &str, body: &Value) -> Response {
        let url = format!("{}{path}", self.http);
        let request = reqwest::Client::new().post(url).header("content-type", "application/json");
        request.body(body.to_string()).send().await.unwrap()
    }

    /// POSTs and reads the answer, without what differs each time.
    pub(super) async fn answer(&self, path: &str, body: &Value) -> Value {
        let response = self.post(path, body).await;
        let status = response.status();
        let mut answer: Value = response.json().await.unwrap();
        assert_eq!(status, StatusCode::OK, "{answer}");
        unmark(&mut answer);
        answer
    }

    /// POSTs and reads the error object.
    pub(super) async fn refusal(&self, path: &str, body: &Value) -> (u16, Value) {
        let response = self.post(path, body).await;
        let status = response.status().as_u16();
        let mut answer: Value = response.json().await.unwrap();
        (status, answer["error"].take())
    }

    /// POSTs and reads the stream's frames.
    pub(super) async fn frames(&self, path: &str, body: &Value) -> Vec<String> {
        let response = self.post(path, body).await;
        events(response).await.into_iter().map(|(_, data)| data).collect()
    }

    /// POSTs again with the id of the last event that was seen.
    pub(super) async fn resume(&self, path: &str, body: &Value, last_event_id: &str) -> Response {
        let request = reqwest::Client::new().post(format!("{}{path}", self.http)).json(body);
        request.header("Last-Event-ID", last_event_id).send().await.unwrap()
    }

    /// The frames as chunks, without what differs each time; the last must be `[DONE]`.
    pub(super) async fn chunks(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut frames = self.frames(path, body).await;
        assert_eq!(frames.pop().as_deref(), Some("[DONE]"));
        let chunk = |frame: &String| {
            let mut chunk = serde_json::from_str(frame).unwrap();
            unmark(&mut chunk);
            chunk
        };
        frames.iter().map(chunk).collect()
    }

    pub(super) fn seen(&self) -> Vec<TokenizedRequest> {
        self.generator.seen.lock().clone()
    }

    pub(super) fn trouble(&self, reason: &str) {
        *self.generator.trouble.lock() = Some(reason.to_owned());
    }

    /// Waits until so many sessions are alive.
    pub(super) async fn until_live(&self, sessions: usize) {
        for _ in 0..1000 {
            if self.generator.live.load(Ordering::SeqCst) == sessions {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} sessions are alive, not {sessions}", self.generator.live.load(Ordering::SeqCst));
    }

    /// Waits for the end of serving.
    pub(super) async fn ended(self) {
        self.served.await.unwrap();
    }
}

/// Ids and data of a stream's events.
pub(super) async fn events(response: Response) -> Vec<(Option<String>, String)> {
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.text().await.unwrap();
    assert!(text.ends_with("\n\n"), "{text:?}");
    let event = |frame: &str| {
        let (head, data) = frame.split_once("data: ").unwrap();
        (head.strip_prefix("id: ").map(|id| id.trim_end().to_owned()), data.to_owned())
    };
    text.trim_end().split("\n\n").map(event).collect()
}

/// Checks and removes what differs each time.
fn unmark(answer: &mut Value) {
    let object = answer.as_object_mut().unwrap();
    let id = object.remove("id").unwrap();
    assert!(id.as_str().unwrap().len() > 32, "{id}");
    assert!(object.remove("created").unwrap().as_u64().unwrap() > 1_500_000_000);
}

/// A byte-level model with fill-in-the-middle tokens and a chat template.
fn chat_model() -> ModelText {
    let directory = tempfile::tempdir().unwrap();
    let tokenizer = samples::byte_level(&["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<eos>"]);
    tokenizer.save(directory.path().join("tokenizer.json"), false).unwrap();
    let template = "{% for m in messages %}{% if m.role == 'system' and not loop.first %}\
        {{ raise_exception('system comes first') }}{% endif %}{{ m.role[0] }}:{{ m.content }}<eos>{% endfor %}a:";
    std::fs::write(directory.path().join("chat_template.jinja"), template).unwrap();
    ModelText::load(directory.path() as &Path).unwrap()
}

/// Tokens of `text` by CodeGen's tokenizer.
pub(super) fn ids(text: &str) -> Vec<u32> {
    samples::codegen().encode(text, false).unwrap().get_ids().to_vec()
}

/// The events of a session that says `text`, with scores and probabilities.
pub(super) fn saying(text: &str) -> Vec<SessionEvent> {
    let token = |(at, id): (usize, u32)| {
        let log_probability = if at == 1 { f64::NEG_INFINITY } else { -0.5 };
        let decision = Decision {
            id,
            hardening: Some(if at == 0 { Hardening::Expert } else { Hardening::Base }),
            p: Some(0.25),
            q: (at == 0).then_some(0.5),
            law: (at == 0).then_some(0.375),
            rejected: (at > 0).then_some(RejectedProposal { id: 87, p: 0.125, q: 0.75 }),
        };
        let score = Some(TokenScore { log_probability, alternatives: vec![(0, -0.25), (id, log_probability)] });
        SessionEvent::Token(TokenEvent { decision, score })
    };
    ids(text).into_iter().enumerate().map(token).collect()
}

/// A session that says `text` and ends.
pub(super) fn says(text: &str) -> Script {
    let mut events = saying(text);
    events.push(SessionEvent::Finished(FinishReason::Stop));
    Script::Events(events)
}
