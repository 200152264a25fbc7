//! A request's way: check, take a place in the queue by size, tokenize, open sessions that wait for their turn by
//! tokens.
//!
//! What is refused for the queue's sake is refused before its prompt costs anything.

mod check;

mod choices;

mod drain;

pub mod model_text;

pub mod sessions;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cosec_proto::{ErrorCode, SequenceName};
use tokio::sync::Semaphore;
use tokio::time::timeout_at;

pub(crate) use self::choices::{ChoiceEvent, RunningGeneration, TokenUsage};
use self::drain::RequestTracker;
use self::model_text::ModelText;
use self::sessions::SessionSource;
use crate::admission::QueuedPermit;
use crate::api::config::ApiConfig;
use crate::api::error::ApiError;
use crate::api::parameters::RequestedSettings;
use crate::continuation::{ChoiceReceipt, Continuation};
use crate::models::{ModelFacts, ModelInfo};
use crate::policy::{OperatorPolicy, TenantPolicy};
use crate::request::{CheckedRequest, Prompt, TokenizedRequest};
use crate::session::plan::DecodePlan;
use crate::tenant::Tenant;

/// A request whose fields have the right types and nothing more.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GenerateRequest {
    pub(crate) model: String,
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) suffix: Option<String>,
    pub(crate) settings: RequestedSettings,
}

impl GenerateRequest {
    /// The same request with the random numbers of another.
    pub(crate) fn with_seed(mut self, seed: u64) -> Self {
        self.settings.general.seed = Some(seed);
        self
    }
}

/// Takes requests through all rooms.
pub struct GenerationService {
    sessions: Arc<dyn SessionSource>,
    texts: HashMap<String, Arc<ModelText>>,
    limits: ApiConfig,
    policy: Arc<OperatorPolicy>,
    /// Prompts that are being tokenized; more would only share the same cores.
    tokenizing: Arc<Semaphore>,
    requests: RequestTracker,
}

/// A model that a request names.
struct RequestedModel {
    info: ModelInfo,
    text: Arc<ModelText>,
    facts: ModelFacts,
}

impl GenerationService {
    /// Serves the models of `sessions`; `texts` has every one of them.
    #[must_use]
    pub fn new(
        sessions: Arc<dyn SessionSource>,
        texts: HashMap<String, Arc<ModelText>>,
        limits: ApiConfig,
        policy: Arc<OperatorPolicy>,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let tokenizing = Arc::new(Semaphore::new(cores));
        Self { sessions, texts, limits, policy, tokenizing, requests: RequestTracker::default() }
    }

    /// What the operator allows.
    #[must_use]
    pub fn policy(&self) -> &OperatorPolicy {
        &self.policy
    }

    /// The models that a tenant may use, in the order of the configuration.
    #[must_use]
    pub fn models(&self, tenant: &TenantPolicy) -> Vec<ModelInfo> {
        let mut models = self.sessions.models();
        models.retain(|model| tenant.may_use(&model.name));
        models
    }

    /// Whether a new request can be served.
    ///
    /// # Errors
    /// Says why it cannot.
    pub fn ready(&self) -> Result<(), ApiError> {
        self.requests.refuse_while_draining()?;
        let models = self.sessions.models();
        let unready = models.iter().find_map(|model| model.readiness.hardened().err());
        unready.map_or(Ok(()), |error| Err(ApiError::new(ErrorCode::Unavailable, error.message.clone())))
    }

    /// Refuses new requests, waits `grace` for those in flight, and ends the rest with an error.
    pub async fn drain(&self, grace: Duration) {
        self.requests.drain(grace).await;
    }

    /// Takes a request to where its first tokens are being computed, or those behind what the client has.
    ///
    /// # Errors
    /// [`ApiError`] with the field that is wrong, or why the request cannot be served now.
    pub(crate) async fn generate(
        &self,
        request: GenerateRequest,
        tenant: &Arc<Tenant>,
        continuation: Option<Continuation>,
    ) -> Result<RunningGeneration, ApiError> {
        let guard = self.requests.begin()?;
        let model = self.model(&request.model, &tenant.policy)?;
        let policy = self.policy.of(&model.info.name, &tenant.policy);
        let request = check::check(request, &model.facts, &self.limits, policy)?;
        let settings = Arc::clone(&request.settings);
        let plan = DecodePlan::new(&settings, model.info.readiness.anti_expert.is_some())
            .map_err(|error| ApiError::new(ErrorCode::InvalidArgument, error.to_string()))?;
        let mut permits = self.enter(&request, &plan, &model, tenant)?.into_iter();
        let prompts = self.tokenize(request, &model).await?;
        let mut generation = RunningGeneration::new(Arc::clone(&model.text), Arc::clone(&settings), guard);
        if continuation.as_ref().is_some_and(|continuation| continuation.degraded) {
            generation.set_degraded();
        }
        for prompt in prompts {
            let max_new_tokens = check::new_tokens(prompt.len(), &settings, model.facts.context_tokens)?;
            generation.add_prompt(prompt.len());
            for permit in permits.by_ref().take(settings.n as usize) {
                let choice = generation.next_index();
                let receipt = continuation.as_ref().map(|continuation| continuation.receipt(choice));
                if let Some(ChoiceReceipt::Whole { tokens }) = receipt {
                    generation.add_whole(Arc::clone(&prompt), tokens);
                    continue;
                }
                let names = continuation.as_ref().map(|continuation| &continuation.names);
                let request = TokenizedRequest {
                    model: model.info.name.clone(),
                    tenant: Arc::clone(tenant),
                    prompt: Arc::clone(&prompt),
                    sample: choice,
                    max_new_tokens,
                    sequence: names.map_or_else(SequenceName::random, |names| names.of(choice)),
                    received: match receipt {
                        Some(ChoiceReceipt::Part(received)) => received,
                        Some(ChoiceReceipt::Whole { .. }) | None => None,
                    },
                    settings: Arc::clone(&settings),
                };
                let events = self.sessions.open(request, plan.clone(), permit)?;
                generation.add(Arc::clone(&prompt), events);
            }
        }
        Ok(generation)
    }

    fn model(&self, name: &str, tenant: &TenantPolicy) -> Result<RequestedModel, ApiError> {
        let unknown = || ApiError::unknown_model(name);
        let info = self.sessions.model(name).filter(|_| tenant.may_use(name)).ok_or_else(unknown)?;
        let text = self.texts.get(name).ok_or_else(unknown)?.clone();
        match info.readiness.facts.clone() {
            Ok(facts) => Ok(RequestedModel { info, text, facts }),
            Err(reason) => {
                Err(ApiError::new(ErrorCode::Unavailable, format!("model {name} cannot serve now: {reason}")))
            }
        }
    }

    /// Takes a place for every choice, by the bytes of its text: few tokens have less than one.
    fn enter(
        &self,
        request: &CheckedRequest,
        plan: &DecodePlan,
        model: &RequestedModel,
        tenant: &Arc<Tenant>,
    ) -> Result<Vec<QueuedPermit>, ApiError> {
        let context = u64::from(model.facts.context_tokens);
        let suffix = request.suffix.as_ref().map_or(0, String::len);
        let mut permits = Vec::new();
        for prompt in &request.prompts {
            let prompt_tokens = (prompt.size() + suffix) as u64;
            let new_tokens = request.settings.max_tokens.map_or(context, u64::from);
            let tokens = prompt_tokens.saturating_add(new_tokens).min(context);
            for _ in 0..request.settings.n {
                permits.push(self.sessions.enter(&model.info, plan, tenant, tokens)?);
            }
        }
        Ok(permits)
    }

    /// Tokenizes on a blocking thread, no more requests at a time than there are cores.
    async fn tokenize(&self, request: CheckedRequest, model: &RequestedModel) -> Result<Vec<Arc<[u32]>>, ApiError> {
        let deadline = request.settings.deadline;
        let late =
            || ApiError::new(ErrorCode::DeadlineExceeded, "the request's time was over before its prompt was read");
        let defect = |_| ApiError::new(ErrorCode::Internal, "the prompt could not be tokenized");
        let permit = timeout_at(deadline, self.tokenizing.clone().acquire_owned()).await.map_err(|_| late())?;
        let text = model.text.clone();
        let vocabulary = model.facts.vocabulary;
        let work = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            request
                .prompts
                .iter()
                .map(|prompt| encode(&text, prompt, request.suffix.as_deref(), vocabulary))
                .collect()
        });
        timeout_at(deadline, work).await.map_err(|_| late())?.map_err(defect)?
    }
}

fn encode(text: &ModelText, prompt: &Prompt, suffix: Option<&str>, vocabulary: u32) -> Result<Arc<[u32]>, ApiError> {
    let ids = text.encoder.encode(prompt, suffix).map_err(|error| {
        let chat = matches!(prompt, Prompt::Chat(_));
        let parameter = if chat && error.parameter() == "prompt" { "messages" } else { error.parameter() };
        ApiError::new(error.code(), error.to_string()).of(parameter)
    })?;
    match ids.iter().find(|&&id| id >= vocabulary) {
        None => Ok(ids.into()),
        Some(id) => Err(ApiError::new(
            ErrorCode::ModelMismatch,
            format!("the tokenizer gives the id {id}, but the model's ids are below {vocabulary}"),
        )),
    }
}
