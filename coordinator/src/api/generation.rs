//! One request through all rooms: check, tokenize, open the sessions, and their events as pieces of text.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use cosec_proto::ErrorCode;
use tokio::time::timeout_at;
use tokio_stream::{StreamExt, StreamMap};
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::error::ApiError;
use super::settings::{Bounds, RawSettings};
use super::{Doors, Model, ModelText, SessionEvents};
use crate::postprocess::{ChoiceText, Delta};
use crate::request::{
    ChatMessage, FinishReason, GenerateRequest, GenerationSettings, Prompt, SessionEvent, TokenizedRequest,
};
use crate::session::plan::DecodePlan;
use crate::tenant::Tenant;

/// New tokens of a completion whose client gives no limit, as OpenAI has it.
const DEFAULT_COMPLETION_TOKENS: u32 = 16;

/// Who may speak in a conversation.
const ROLES: [&str; 3] = ["system", "user", "assistant"];

/// A request whose fields have the right types and nothing more.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RawRequest {
    pub(crate) model: String,
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) suffix: Option<String>,
    pub(crate) settings: RawSettings,
}

impl Doors {
    /// Takes a request to where its first tokens are being computed.
    ///
    /// # Errors
    /// [`ApiError`] with the field that is wrong, or why the request cannot be served now.
    pub(crate) async fn generate(&self, raw: RawRequest, tenant: &Arc<Tenant>) -> Result<Generation, ApiError> {
        // Before the look at `draining`: a request is either counted or refused.
        let in_flight = self.in_flight.token();
        self.refuse_while_draining()?;
        let model = self.model(&raw.model)?;
        let request = self.check(raw, &model)?;
        let settings = request.settings.clone();
        let has_anti_expert = model.info.readiness.anti_expert.is_some();
        let plan = DecodePlan::new(&settings, has_anti_expert)
            .map_err(|error| ApiError::new(ErrorCode::InvalidArgument, error.to_string()))?;
        let prompts = self.tokenize(request, &model).await?;
        let mut generation = Generation::new(&model, settings.clone(), in_flight, self.halted.clone());
        for prompt in &prompts {
            let max_new_tokens = room(prompt.len(), &settings, &model)?;
            generation.prompt_tokens += prompt.len();
            for _ in 0..settings.n {
                let sample = generation.next_index();
                let request = TokenizedRequest {
                    model: model.info.name.clone(),
                    tenant: Arc::clone(tenant),
                    prompt: prompt.clone(),
                    sample,
                    max_new_tokens,
                    settings: settings.clone(),
                };
                let tokens = prompt.len() as u64 + u64::from(max_new_tokens);
                let permit = self.generator.enter(&model.info, &plan, tenant, tokens)?;
                let events = self.generator.open(request, plan.clone(), permit)?;
                generation.add(prompt.clone(), events);
            }
        }
        Ok(generation)
    }

    fn check(&self, raw: RawRequest, model: &Model) -> Result<GenerateRequest, ApiError> {
        let chat = raw.prompts.iter().any(|prompt| matches!(prompt, Prompt::Chat(_)));
        if raw.settings.echo && (chat || raw.suffix.is_some()) {
            return Err(ApiError::field("echo", "echo cannot be used with messages or with suffix"));
        }
        let bounds = Bounds {
            rules: &self.config.allowed_rules,
            vocabulary: model.facts.vocabulary,
            max_tokens: if chat { None } else { Some(DEFAULT_COMPLETION_TOKENS) },
            patience: Duration::from_secs(self.config.request_timeout_seconds),
        };
        let settings = raw.settings.check(&self.defaults, bounds)?;
        if raw.prompts.is_empty() {
            return Err(ApiError::field("prompt", "prompt is an empty list; it must have at least one prompt"));
        }
        let choices = raw.prompts.len().saturating_mul(settings.n as usize);
        if choices > self.config.max_choices {
            let message = format!(
                "{} prompts with n {} ask for {choices} choices; a request may have {}",
                raw.prompts.len(),
                settings.n,
                self.config.max_choices
            );
            return Err(ApiError::field("n", message));
        }
        for prompt in &raw.prompts {
            self.check_prompt(prompt, raw.suffix.as_deref(), model)?;
        }
        Ok(GenerateRequest { model: raw.model, prompts: raw.prompts, suffix: raw.suffix, settings })
    }

    fn check_prompt(&self, prompt: &Prompt, suffix: Option<&str>, model: &Model) -> Result<(), ApiError> {
        let (name, bytes) = match prompt {
            Prompt::Text(text) => ("prompt", text.len()),
            Prompt::Chat(messages) => {
                check_roles(messages)?;
                ("messages", messages.iter().map(|message| message.content.len()).sum())
            }
            Prompt::Tokens(ids) => {
                let vocabulary = model.facts.vocabulary;
                return match ids.iter().position(|&id| id >= vocabulary) {
                    None => Ok(()),
                    Some(at) => Err(ApiError::field(
                        "prompt",
                        format!("prompt has the id {} at {at}; the model's ids are below {vocabulary}", ids[at]),
                    )),
                };
            }
        };
        let bytes = bytes + suffix.map_or(0, str::len);
        let most = self.config.max_prompt_bytes;
        if bytes > most {
            let message = format!("{name} has {bytes} bytes of text; at most {most} are taken");
            return Err(ApiError::new(ErrorCode::PayloadTooLarge, message).of(name));
        }
        Ok(())
    }

    /// Tokenizes on a blocking thread, no more requests at a time than there are cores.
    async fn tokenize(&self, request: GenerateRequest, model: &Model) -> Result<Vec<Arc<[u32]>>, ApiError> {
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

fn check_roles(messages: &[ChatMessage]) -> Result<(), ApiError> {
    if messages.is_empty() {
        return Err(ApiError::field("messages", "messages is an empty list; it must have at least one message"));
    }
    match messages.iter().enumerate().find(|(_, message)| !ROLES.contains(&message.role.as_str())) {
        None => Ok(()),
        Some((at, ChatMessage { role, .. })) => {
            let path = format!("messages[{at}].role");
            Err(ApiError::value(path, format_args!("{role:.60?}"), format_args!("one of {}", ROLES.join(", "))))
        }
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

/// New tokens that a prompt of `tokens` may get.
fn room(tokens: usize, settings: &GenerationSettings, model: &Model) -> Result<u32, ApiError> {
    let context = model.facts.context_tokens;
    let exceeded = |parameter: &str, message: String| {
        Err(ApiError::new(ErrorCode::ContextLengthExceeded, message).of(parameter))
    };
    let left = u32::try_from(tokens).ok().and_then(|tokens| context.checked_sub(tokens));
    let needed = settings.max_tokens.unwrap_or(1);
    match left {
        Some(left) if left >= needed => {
            let granted = settings.max_tokens.unwrap_or(left);
            if settings.min_tokens > granted {
                let message =
                    format!("min_tokens is {}, but the prompt of {tokens} leaves {granted}", settings.min_tokens);
                return exceeded("min_tokens", message);
            }
            Ok(granted)
        }
        Some(left) if left > 0 => exceeded(
            "max_tokens",
            format!(
                "the prompt's {tokens} tokens and max_tokens {needed} are {} together; the model's context has {context}",
                tokens as u64 + u64::from(needed)
            ),
        ),
        _ => exceeded("prompt", format!("the prompt has {tokens} tokens; the model's context has {context}")),
    }
}

/// What happens next in one of a request's choices.
#[derive(Debug)]
pub(crate) enum ChoiceEvent {
    /// More text or tokens; never empty.
    Delta(Delta),
    /// The choice's last event.
    Finished(FinishReason),
}

/// As `finish_reason` spells it.
pub(crate) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

/// A request in flight. Dropping it ends its sessions.
pub(crate) struct Generation {
    text: Arc<ModelText>,
    settings: Arc<GenerationSettings>,
    streams: StreamMap<u32, SessionEvents>,
    choices: Vec<Choice>,
    ready: VecDeque<(u32, ChoiceEvent)>,
    prompt_tokens: usize,
    completion_tokens: usize,
    degraded: bool,
    halted: CancellationToken,
    _in_flight: TaskTrackerToken,
}

struct Choice {
    prompt: Arc<[u32]>,
    text: ChoiceText,
    finished: bool,
}

impl Generation {
    fn new(
        model: &Model,
        settings: Arc<GenerationSettings>,
        in_flight: TaskTrackerToken,
        halted: CancellationToken,
    ) -> Self {
        Self {
            text: model.text.clone(),
            settings,
            streams: StreamMap::new(),
            choices: Vec::new(),
            ready: VecDeque::new(),
            prompt_tokens: 0,
            completion_tokens: 0,
            degraded: false,
            halted,
            _in_flight: in_flight,
        }
    }

    /// How to generate.
    pub(crate) fn settings(&self) -> &GenerationSettings {
        &self.settings
    }

    /// The bytes of a token, for reports.
    pub(crate) fn text(&self) -> &Arc<ModelText> {
        &self.text
    }

    /// Prompt tokens (each prompt once) and new tokens so far.
    pub(crate) fn usage(&self) -> (usize, usize) {
        (self.prompt_tokens, self.completion_tokens)
    }

    /// Whether the base went on without an expert, in any choice so far.
    pub(crate) fn degraded(&self) -> bool {
        self.degraded
    }

    /// Choices, numbered from 0.
    pub(crate) fn choices(&self) -> usize {
        self.choices.len()
    }

    fn next_index(&self) -> u32 {
        // The number of choices is bounded far below by the configuration's `max_choices`.
        u32::try_from(self.choices.len()).unwrap_or(u32::MAX)
    }

    fn add(&mut self, prompt: Arc<[u32]>, events: SessionEvents) {
        let index = self.next_index();
        let (decoder, settings) = (self.text.decoder.clone(), &self.settings);
        let mut text = if settings.echo {
            ChoiceText::echoing(decoder, &settings.stop, settings.min_tokens)
        } else {
            ChoiceText::new(decoder, &prompt, &settings.stop, settings.min_tokens)
        };
        if settings.echo && settings.logprobs.is_none() {
            let delta = text.echo(&prompt, Vec::new());
            self.ready.push_back((index, ChoiceEvent::Delta(delta)));
        }
        self.choices.push(Choice { prompt, text, finished: false });
        self.streams.insert(index, events);
    }

    /// The next event of any choice, with its number; `None` after the last choice has finished.
    ///
    /// # Errors
    /// When a choice failed; the others end with it, and nothing follows.
    pub(crate) async fn next(&mut self) -> Option<Result<(u32, ChoiceEvent), ApiError>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if self.choices.iter().all(|choice| choice.finished) {
                return None;
            }
            let step = match self.next_session_event().await {
                Ok((index, event)) => self.take(index, event),
                Err(error) => Err(error),
            };
            if let Err(error) = step {
                self.streams.clear();
                self.choices.clear();
                self.ready.clear();
                return Some(Err(error));
            }
        }
    }

    async fn next_session_event(&mut self) -> Result<(u32, SessionEvent), ApiError> {
        let deadline = self.settings.deadline;
        tokio::select! {
            biased;
            () = self.halted.cancelled() => {
                Err(ApiError::new(ErrorCode::Unavailable, "this coordinator shut down before the request was finished"))
            }
            event = timeout_at(deadline, self.streams.next()) => match event {
                Ok(Some(event)) => Ok(event),
                Ok(None) => Err(ApiError::new(ErrorCode::Internal, "a session ended without a reason")),
                Err(_) => Err(ApiError::new(ErrorCode::DeadlineExceeded, "the request took longer than it may")),
            },
        }
    }

    fn take(&mut self, index: u32, event: SessionEvent) -> Result<(), ApiError> {
        let Some(choice) = self.choices.get_mut(index as usize) else {
            return Err(ApiError::new(ErrorCode::Internal, "a session that was not opened spoke"));
        };
        match event {
            SessionEvent::Prompt(scores) => {
                let delta = choice.text.echo(&choice.prompt, scores);
                self.ready.push_back((index, ChoiceEvent::Delta(delta)));
            }
            SessionEvent::Token(token) if Some(token.decision.id) == self.text.encoder.end_of_infill() => {
                self.stop(index);
                self.finish(index, FinishReason::Stop);
            }
            SessionEvent::Token(token) => {
                self.completion_tokens += 1;
                let (delta, stopped) = choice.text.push(token);
                if !delta.is_empty() {
                    self.ready.push_back((index, ChoiceEvent::Delta(delta)));
                }
                if stopped {
                    self.stop(index);
                    self.end(index, FinishReason::Stop);
                }
            }
            SessionEvent::Degraded => self.degraded = true,
            SessionEvent::Finished(reason) => self.finish(index, reason),
            SessionEvent::Failed(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Nothing of the session is wanted any more: its text has come to its end.
    fn stop(&mut self, index: u32) {
        if let Some(session) = self.streams.remove(&index) {
            session.stop();
        }
    }

    fn finish(&mut self, index: u32, reason: FinishReason) {
        if let Some(choice) = self.choices.get_mut(index as usize) {
            let (delta, reason) = choice.text.finish(reason);
            if !delta.is_empty() {
                self.ready.push_back((index, ChoiceEvent::Delta(delta)));
            }
            self.end(index, reason);
        }
    }

    fn end(&mut self, index: u32, reason: FinishReason) {
        self.streams.remove(&index);
        if let Some(choice) = self.choices.get_mut(index as usize) {
            choice.finished = true;
            self.ready.push_back((index, ChoiceEvent::Finished(reason)));
        }
    }
}
