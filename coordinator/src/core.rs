//! The door of sessions: which models there are, whether they can serve, and one stream of events per choice.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::request::{SessionError, SessionEvent, TokenizedRequest};
use crate::session::metrics::SessionMetrics;

/// Settings of sessions and of the workers behind them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CoreConfig {
    /// Models to serve. None by default.
    pub models: Vec<ModelConfig>,
    /// Most sessions (choices) that decode at the same time. Default 64.
    pub max_sessions: usize,
    /// Most sessions that wait for their turn; one more is refused as overloaded. Default 256.
    pub max_queued_sessions: usize,
    /// Time for one operation of a worker before it counts as hung. Default 30,000.
    pub step_deadline_ms: u64,
    /// Pause between two looks at a worker's state. Default 5,000.
    pub describe_interval_ms: u64,
    /// What to do while no expert can serve. Default `fail_closed`.
    pub expert_absent: ExpertAbsent,
}

impl Default for CoreConfig {
    fn default() -> Self {
        Self {
            models: Vec::new(),
            max_sessions: 64,
            max_queued_sessions: 256,
            step_deadline_ms: 30_000,
            describe_interval_ms: 5_000,
            expert_absent: ExpertAbsent::FailClosed,
        }
    }
}

/// One model that clients can name: a base and its expert.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// As listed by `/v1/models`.
    pub name: String,
    /// Directory with tokenizer.json (and the chat template).
    pub tokenizer: PathBuf,
    /// Addresses (`host:port`) of the workers that host the base; at least one.
    pub base: Vec<String>,
    /// Addresses of the workers that host the expert. Default none.
    #[serde(default)]
    pub expert: Vec<String>,
    /// Addresses of the workers that host the anti-expert of the rule `product`. Default none.
    #[serde(default)]
    pub anti_expert: Vec<String>,
}

/// What to do with a rule that needs the expert while no expert can serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpertAbsent {
    /// The request fails with `expert_unavailable`.
    #[default]
    FailClosed,
    /// The request waits until its deadline.
    Wait,
    /// The base decodes alone; the stream says so by [`SessionEvent::Degraded`].
    Degrade,
}

/// A model as it stands now.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// As listed by `/v1/models`.
    pub name: String,
    /// Directory with tokenizer.json.
    pub tokenizer: PathBuf,
    /// Why the model cannot serve hardened completions now.
    pub ready: Result<(), String>,
    /// What its workers said; absent until base (and expert, where there is one) were reached and match.
    pub facts: Option<ModelFacts>,
}

/// What the workers of a model agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFacts {
    /// Token ids below this are valid: the shortest row of the workers.
    pub vocabulary: u32,
    /// Longest sequence: the shortest context of the workers.
    pub context_tokens: u32,
    /// Ids that end a generation, by the base.
    pub end_token_ids: Vec<u32>,
}

/// Settings that make no core.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// A field has a value that is not allowed.
    #[error("{0}")]
    Config(String),
}

/// Owns the workers' connections and the sessions; cheap to clone.
#[derive(Clone)]
pub struct Core {
    shared: Arc<Shared>,
}

struct Shared {
    config: CoreConfig,
}

impl Core {
    /// Connects to the workers of all models in the background and begins to take sessions.
    ///
    /// Tasks are spawned through `tracker` and end after `shutdown`.
    ///
    /// # Errors
    /// [`StartError`] names the field that makes no sense.
    pub fn start(
        config: CoreConfig,
        metrics: Arc<SessionMetrics>,
        tracker: TaskTracker,
        shutdown: CancellationToken,
    ) -> Result<Self, StartError> {
        let _ = (metrics, tracker, shutdown);
        Ok(Self { shared: Arc::new(Shared { config }) })
    }

    /// The models in the order of the configuration.
    #[must_use]
    pub fn models(&self) -> Vec<ModelInfo> {
        let info = |model: &ModelConfig| ModelInfo {
            name: model.name.clone(),
            tokenizer: model.tokenizer.clone(),
            ready: Err("stub".to_owned()),
            facts: None,
        };
        self.shared.config.models.iter().map(info).collect()
    }

    /// Whether every model can serve hardened completions.
    ///
    /// # Errors
    /// Says which model cannot and why.
    pub fn ready(&self) -> Result<(), String> {
        Err("stub".to_owned())
    }

    /// Admits a session and returns its events at once; it may still wait for its turn.
    ///
    /// # Errors
    /// `Overloaded` when the queue is full, `InvalidArgument` when the settings contradict each other (such as a
    /// transport that the rule cannot use), `NotFound` for an unknown model.
    pub async fn open(&self, request: TokenizedRequest) -> Result<SessionStream, SessionError> {
        Err(SessionError {
            code: cosec_proto::ErrorCode::Unavailable,
            message: format!("model {} has no workers", request.model),
        })
    }
}

/// Events of one session, in order; ends after `Finished` or `Failed`.
///
/// Dropping it cancels the session, which then releases its cache on all workers.
pub struct SessionStream {
    events: mpsc::Receiver<SessionEvent>,
    _cancel: DropGuard,
}

impl Stream for SessionStream {
    type Item = SessionEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<SessionEvent>> {
        self.events.poll_recv(context)
    }
}
