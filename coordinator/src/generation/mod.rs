//! A request's way: check, take a place in the queue by size, tokenize, open sessions that wait for their turn by
//! tokens.
//!
//! What is refused for the queue's sake is refused before its prompt costs anything.

mod check;

mod choices;

mod drain;

pub mod model_text;

mod response_memory;

pub mod sessions;

mod text_bounds;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cosec_proto::{ErrorCode, SequenceName};
use tokio_util::sync::CancellationToken;

pub(crate) use self::choices::{ChoiceEvent, RunningGeneration, TokenUsage};
use self::drain::RequestTracker;
use self::model_text::ModelText;
use self::response_memory::ResponseMemory;
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
use crate::text_work::TextWorkers;

/// A request whose fields have the right types and nothing more.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GenerateRequest {
    pub(crate) model: String,
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) suffix: Option<String>,
    pub(crate) settings: RequestedSettings,
    /// Whether all of the response is kept until it is complete.
    pub(crate) in_one_piece: bool,
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
    text_workers: TextWorkers,
    response_memory: ResponseMemory,
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
        let (text_workers, response_memory) = (TextWorkers::new(), ResponseMemory::new(&limits));
        let requests = RequestTracker::default();
        Self { sessions, texts, limits, policy, text_workers, response_memory, requests }
    }

    /// Threads for work on clients' text.
    pub(crate) fn text_workers(&self) -> &TextWorkers {
        &self.text_workers
    }

    /// Of the models that can serve now, in tokens.
    pub(crate) fn longest_context(&self) -> u32 {
        let models = self.sessions.models();
        let contexts = models.iter().filter_map(|model| model.readiness.facts.as_ref().ok());
        contexts.map(|facts| facts.context_tokens).max().unwrap_or(0)
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

    /// Workers that are connected and get no new sessions: their models, roles, addresses and the reasons.
    pub fn left_out(&self) -> impl Iterator<Item = String> {
        self.sessions.models().into_iter().flat_map(|ModelInfo { name, readiness }| {
            let of_model = |worker: &String| format!("model {name}, {worker}");
            readiness.left_out.iter().map(of_model).collect::<Vec<_>>()
        })
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
        let mut guard = self.requests.begin()?;
        let model = self.model(&request.model, &tenant.policy)?;
        let in_one_piece = request.in_one_piece;
        let policy = self.policy.of(&model.info.name, &tenant.policy);
        let request = check::check(request, &model.facts, &self.limits, policy)?;
        let settings = Arc::clone(&request.settings);
        let plan = DecodePlan::new(&settings, model.info.readiness.anti_expert.is_some())
            .map_err(|error| ApiError::new(ErrorCode::InvalidArgument, error.to_string()))?;
        text_bounds::check(&request, &model.text, model.facts.context_tokens)?;
        if in_one_piece {
            guard.keep(self.response_memory.reserve(&request, model.facts.context_tokens)?);
        }
        let mut permits = self.enter(&request, &plan, &model, tenant)?.into_iter();
        let prompts = self.tokenize(request, &model, tenant).await?;
        let choices = u32::try_from(permits.len()).unwrap_or(u32::MAX);
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
                    choices,
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
        let (n, most) = (request.settings.n, self.sessions.most_sessions(tenant));
        let choices = request.prompts.len().saturating_mul(n as usize);
        if choices > most {
            let prompts = request.prompts.len();
            let message =
                format!("{prompts} prompts with n {n} are {choices} choices; you may have {most} at a time");
            return Err(ApiError::field("n", message));
        }
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

    /// Tokenizes on a thread of its own, as long as the client is there.
    async fn tokenize(
        &self,
        request: CheckedRequest,
        model: &RequestedModel,
        tenant: &Tenant,
    ) -> Result<Vec<Arc<[u32]>>, ApiError> {
        let CheckedRequest { prompts, suffix, settings } = request;
        let bytes = prompts.iter().map(Prompt::size).sum::<usize>() + suffix.as_ref().map_or(0, String::len);
        let (text, facts) = (model.text.clone(), model.facts.clone());
        let work = move |abandoned: &CancellationToken| {
            let wanted = prompts.iter().take_while(|_| !abandoned.is_cancelled());
            wanted.map(|prompt| encode(&text, prompt, suffix.as_deref(), &facts)).collect()
        };
        self.text_workers.run(tenant, bytes, settings.deadline, work).await?
    }
}

fn encode(
    text: &ModelText,
    prompt: &Prompt,
    suffix: Option<&str>,
    facts: &ModelFacts,
) -> Result<Arc<[u32]>, ApiError> {
    let (vocabulary, most_bytes) = (facts.vocabulary, text.most_bytes(facts.context_tokens));
    let ids = text.encoder.encode(prompt, suffix, most_bytes).map_err(|error| {
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
