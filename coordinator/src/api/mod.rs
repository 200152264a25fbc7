//! The doors: HTTP as OpenAI's clients speak it, and gRPC.
//!
//! A door turns a message into a [`GenerateRequest`](crate::request::GenerateRequest) whose every field has been checked,
//! and events into messages. What lies between is the same for all doors: [`generation`].

pub mod openai;

pub mod grpc;

pub mod settings;

pub mod generation;

pub mod error;

pub mod metrics;

mod fields;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cosec_proto::ErrorCode;
use futures::Stream;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::error::ApiError;
use self::metrics::ApiMetrics;
use self::openai::ResumeKey;
use self::settings::{AllowedRules, DefaultSettings};
use crate::admission::QueuedPermit;
use crate::models::{ModelFacts, ModelInfo};
use crate::postprocess::detokenizer::{Decoder, UnsupportedDecoder};
use crate::preprocess::tokenizer::{LoadError, PromptEncoder};
use crate::request::{SessionError, SessionEvent, TokenizedRequest};
use crate::session::plan::DecodePlan;
use crate::session::service::{SessionService, SessionStream};
use crate::tenant::{Tenant, Tenants};

/// Bounds on what a client may send.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApiConfig {
    /// Longest body of a request, in bytes. Default 8 MiB.
    pub max_body_bytes: usize,
    /// Longest text of one prompt, in bytes; tokenizing takes time in proportion. Default 1 MiB.
    pub max_prompt_bytes: usize,
    /// Most choices of one request (prompts times n). Default 256.
    pub max_choices: usize,
    /// How long a body may take to arrive. Default 30.
    pub body_timeout_seconds: u64,
    /// How long a request may take in all. Default 600.
    pub request_timeout_seconds: u64,
    /// File with the key that coordinators share, at least 32 bytes: with it each continues the streams of the others.
    /// Default: a key of its own.
    pub resume_key_file: Option<PathBuf>,
    /// File with the API keys and their limits. Default: none are known.
    pub keys_file: Option<PathBuf>,
    /// Whether a request without a known key is refused. Default false.
    pub require_key: bool,
    /// Rules that clients may name. Default: all but `base_only`, under which unhardened code leaves.
    pub allowed_rules: AllowedRules,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            max_body_bytes: 8 << 20,
            max_prompt_bytes: 1 << 20,
            max_choices: 256,
            body_timeout_seconds: 30,
            request_timeout_seconds: 600,
            resume_key_file: None,
            keys_file: None,
            require_key: false,
            allowed_rules: AllowedRules::default(),
        }
    }
}

/// What the doors need of the rooms behind them.
pub trait Generator: Send + Sync + 'static {
    /// The models in the order of the configuration.
    fn models(&self) -> Vec<ModelInfo>;

    /// The model of this name.
    fn model(&self, name: &str) -> Option<ModelInfo>;

    /// Takes a place for a session of at most `tokens` tokens, before its prompt is tokenized.
    ///
    /// # Errors
    /// When it is not admitted.
    fn enter(
        &self,
        model: &ModelInfo,
        plan: &DecodePlan,
        tenant: &Arc<Tenant>,
        tokens: u64,
    ) -> Result<QueuedPermit, SessionError>;

    /// Starts a session; dropping its stream ends it.
    ///
    /// # Errors
    /// When its model cannot serve any more.
    fn open(
        &self,
        request: TokenizedRequest,
        plan: DecodePlan,
        permit: QueuedPermit,
    ) -> Result<SessionEvents, SessionError>;
}

/// Events of one session, in order.
pub trait Session: Stream<Item = SessionEvent> + Send + Unpin {
    /// Ends it as one whose text has come to its end; dropping it ends it as one that nobody wants.
    fn stop(self: Box<Self>);
}

/// A session as the doors hold it.
pub type SessionEvents = Box<dyn Session>;

impl Session for SessionStream {
    fn stop(self: Box<Self>) {
        SessionStream::stop(*self);
    }
}

impl Generator for SessionService {
    fn models(&self) -> Vec<ModelInfo> {
        self.models().collect()
    }

    fn model(&self, name: &str) -> Option<ModelInfo> {
        self.model(name)
    }

    fn enter(
        &self,
        model: &ModelInfo,
        plan: &DecodePlan,
        tenant: &Arc<Tenant>,
        tokens: u64,
    ) -> Result<QueuedPermit, SessionError> {
        self.enter(model, plan, tenant, tokens)
    }

    fn open(
        &self,
        request: TokenizedRequest,
        plan: DecodePlan,
        permit: QueuedPermit,
    ) -> Result<SessionEvents, SessionError> {
        Ok(Box::new(self.open(request, plan, permit)?))
    }
}

/// A model's text, both ways.
pub struct ModelText {
    encoder: PromptEncoder,
    decoder: Arc<Decoder>,
}

impl ModelText {
    /// Reads tokenizer and chat template from a Hugging Face directory.
    ///
    /// # Errors
    /// [`ModelTextError`] names the file.
    pub fn load(directory: &Path) -> Result<Self, ModelTextError> {
        let encoder = PromptEncoder::load(directory)?;
        let decoder = Arc::new(Decoder::of(encoder.tokenizer().clone())?);
        Ok(Self { encoder, decoder })
    }

    /// Of tokenizer.json.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        self.encoder.fingerprint()
    }
}

/// A directory that does not give a model's text.
#[derive(Debug, thiserror::Error)]
pub enum ModelTextError {
    /// A file is missing or wrong.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The tokenizer is of a kind that cannot be streamed.
    #[error("tokenizer.json: {0}")]
    Decoder(#[from] UnsupportedDecoder),
}

/// What the handlers of all doors share.
pub struct Doors {
    generator: Arc<dyn Generator>,
    texts: HashMap<String, Arc<ModelText>>,
    config: ApiConfig,
    defaults: DefaultSettings,
    resume_key: ResumeKey,
    tenants: Tenants,
    metrics: Arc<ApiMetrics>,
    /// Prompts that are being tokenized; more would only share the same cores.
    tokenizing: Arc<Semaphore>,
    started: u64,
    /// Set when no new request is taken.
    draining: CancellationToken,
    /// Set when requests in flight end with an error.
    halted: CancellationToken,
    /// One token per request in flight.
    in_flight: TaskTracker,
}

/// A model that a request names.
struct Model {
    info: ModelInfo,
    text: Arc<ModelText>,
    facts: ModelFacts,
}

impl Doors {
    /// Puts doors before `generator`; `texts` has every one of its models.
    #[must_use]
    pub fn new(
        generator: Arc<dyn Generator>,
        texts: HashMap<String, Arc<ModelText>>,
        config: ApiConfig,
        defaults: DefaultSettings,
        metrics: Arc<ApiMetrics>,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            generator,
            texts,
            config,
            defaults,
            resume_key: ResumeKey::random(),
            tenants: Tenants::default(),
            metrics,
            tokenizing: Arc::new(Semaphore::new(cores)),
            started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            draining: CancellationToken::new(),
            halted: CancellationToken::new(),
            in_flight: TaskTracker::new(),
        }
    }

    /// Continues the streams of all coordinators that have `key`.
    #[must_use]
    pub fn sharing(self, key: ResumeKey) -> Self {
        Self { resume_key: key, ..self }
    }

    /// Knows the keys of `tenants`.
    #[must_use]
    pub fn knowing(self, tenants: Tenants) -> Self {
        Self { tenants, ..self }
    }

    /// Whose a request with this `Authorization` is.
    fn tenant(&self, authorization: Option<&str>) -> Result<Arc<Tenant>, ApiError> {
        let key = authorization.and_then(|value| value.strip_prefix("Bearer ")).map(str::trim);
        match key.and_then(|key| self.tenants.of(key)) {
            Some(tenant) => Ok(tenant),
            None if self.config.require_key => {
                let message = "a known API key is needed: send Authorization: Bearer KEY";
                Err(ApiError::new(ErrorCode::Unauthenticated, message))
            }
            None => Ok(self.tenants.nobody()),
        }
    }

    /// Refuses new requests, waits `grace` for those in flight, and ends the rest with an error.
    pub async fn drain(&self, grace: Duration) {
        self.draining.cancel();
        self.in_flight.close();
        if tokio::time::timeout(grace, self.in_flight.wait()).await.is_err() {
            tracing::warn!(requests = self.in_flight.len(), "the grace period is over; requests in flight end now");
        }
        self.halted.cancel();
    }

    /// Whether a new request can be served.
    ///
    /// # Errors
    /// Says why not.
    pub fn ready(&self) -> Result<(), ApiError> {
        self.refuse_while_draining()?;
        let models = self.generator.models();
        let unready = models.iter().find_map(|model| model.readiness.hardened().err());
        unready.map_or(Ok(()), |error| Err(ApiError::new(ErrorCode::Unavailable, error.message.clone())))
    }

    fn refuse_while_draining(&self) -> Result<(), ApiError> {
        if self.draining.is_cancelled() {
            return Err(ApiError::new(ErrorCode::Unavailable, "this coordinator is shutting down; try another"));
        }
        Ok(())
    }

    fn model(&self, name: &str) -> Result<Model, ApiError> {
        let unknown = || ApiError::new(ErrorCode::NotFound, format!("there is no model {name:.100?}")).of("model");
        let info = self.generator.model(name).ok_or_else(unknown)?;
        let text = self.texts.get(name).ok_or_else(unknown)?.clone();
        match info.readiness.facts.clone() {
            Ok(facts) => Ok(Model { info, text, facts }),
            Err(reason) => {
                Err(ApiError::new(ErrorCode::Unavailable, format!("model {name} cannot serve now: {reason}")))
            }
        }
    }
}
