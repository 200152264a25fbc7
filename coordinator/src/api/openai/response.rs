//! Responses: in one piece or as chunks, of the same parts.

use std::collections::VecDeque;

use axum::Json;
use axum::response::{IntoResponse, Response};
use futures::{Stream, stream};
use serde_json::{Value, json};

use super::body::OpenAiRequest;
use super::observed::RequestId;
use super::resume::{StreamEvent, StreamOrigin, StreamProgress, continuation, request_digest};
use super::sse;
use crate::api::error::ApiError;
use crate::api::json_fields::JsonFields;
use crate::api::state::{ApiState, seconds_now};
use crate::generation::model_text::ModelText;
use crate::generation::{ChoiceEvent, GenerateRequest, RunningGeneration, TokenUsage};
use crate::merge::Hardening;
use crate::postprocess::{PlacedToken, TextDelta};
use crate::request::FinishReason;

/// What OpenAI's clients read for -inf, which JSON cannot say.
const MINUS_INFINITY: f64 = -9999.0;

/// How a response is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ResponseDelivery {
    pub(super) stream: bool,
    pub(super) include_usage: bool,
}

impl ResponseDelivery {
    /// Takes how the response is to be sent.
    ///
    /// # Errors
    /// Names the first field that is wrong.
    pub(super) fn read(fields: &mut JsonFields<'_>) -> Result<Self, ApiError> {
        const FLAG: &str = "true or false";
        let stream = fields.take("stream", FLAG)?.unwrap_or(false);
        let mut include_usage = false;
        if let Some(mut options) = fields.object("stream_options")? {
            if !stream {
                return Err(ApiError::field("stream_options", "stream_options needs stream to be true"));
            }
            include_usage = options.take("include_usage", FLAG)?.unwrap_or(false);
            options.finish(&[])?;
        }
        Ok(Self { stream, include_usage })
    }
}

/// What completions and chat completions write differently.
pub(super) trait ResponseShape: Send + Sync + 'static {
    /// Stands before the request's id.
    const ID_PREFIX: &'static str;
    /// Type of a response in one piece.
    const OBJECT: &'static str;
    /// Type of a chunk.
    const CHUNK: &'static str;

    /// The first choice of a stream, before any text.
    fn opening(&self) -> Option<Value>;

    /// A choice in a chunk: text, or else how it ended.
    fn part(&self, delta: &TextDelta, reason: Option<FinishReason>, text: &ModelText) -> Value;

    /// A choice in one piece.
    fn whole(&self, delta: &TextDelta, reason: FinishReason, text: &ModelText) -> Value;
}

/// Generates and responds.
pub(super) async fn respond<S: ResponseShape>(
    state: &ApiState,
    id: RequestId,
    received: OpenAiRequest,
    mut request: GenerateRequest,
    shape: S,
    delivery: ResponseDelivery,
) -> Result<Response, ApiError> {
    let OpenAiRequest { tenant, body, received } = received;
    let model = request.model.clone();
    let policy = state.generation.policy().of(&model, &tenant.policy);
    let digest = request_digest(S::OBJECT, policy, &body);
    if let Some(received) = &received {
        received.must_be_of(digest)?;
        if !delivery.stream {
            return Err(ApiError::field("Last-Event-ID", "Last-Event-ID needs stream to be true"));
        }
        request = request.with_seed(received.origin().seed);
        state.metrics.resumed();
    }
    let response = received.as_ref().map_or(id.0, |received| received.origin().id);
    let continuation = delivery.stream.then(|| continuation(&state.resume_key, response, received.as_ref()));
    let generation = state.generation.generate(request, &tenant, continuation).await?;
    let settings = generation.settings();
    let begun = StreamOrigin { id: id.0, created: seconds_now(), seed: settings.seed, request: digest };
    let origin = received.as_ref().map_or(begun, |received| received.origin());
    let envelope = ResponseEnvelope {
        id: format!("{}{}", S::ID_PREFIX, origin.id.simple()),
        created: origin.created,
        model,
        rule: settings.rule.name(),
        seed: settings.seed,
        report: settings.report,
    };
    if delivery.stream {
        let progress =
            StreamProgress::new(&state.resume_key, &tenant.name, origin, generation.choices() + 1, received)
                .echoing(settings.echo);
        Ok(sse::response(chunks(generation, envelope, shape, progress, delivery.include_usage)))
    } else {
        Ok(Json(in_one_piece(generation, &envelope, &shape).await?).into_response())
    }
}

/// What every message of one response says.
struct ResponseEnvelope {
    id: String,
    created: u64,
    model: String,
    rule: &'static str,
    seed: u64,
    report: bool,
}

impl ResponseEnvelope {
    fn message(&self, object: &str, choices: Vec<Value>, degraded: bool) -> Value {
        let mut cosec = json!({"rule": self.rule, "seed": self.seed});
        if degraded {
            cosec["degraded"] = true.into();
        }
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "cosec": cosec,
        })
    }

    /// Completes a choice with its number and, where asked for, the report on its tokens.
    fn choice(&self, mut choice: Value, index: usize, delta: &TextDelta, text: &ModelText) -> Value {
        choice["index"] = index.into();
        if self.report {
            let entries = delta.tokens.iter().filter_map(|token| report(token, text)).collect::<Vec<_>>();
            choice["cosec"] = json!({"report": entries});
        }
        choice
    }
}

fn report(token: &PlacedToken, text: &ModelText) -> Option<Value> {
    let decision = token.decision.as_ref()?;
    let named = |id: u32| token_string(&text.decoder.bytes(id));
    let mut entry = json!({
        "token": named(token.id),
        "id": token.id,
        "hardening": decision.hardening.map(Hardening::name),
        "p": decision.p,
        "q": decision.q,
    });
    if let Some(law) = decision.law {
        entry["law"] = law.into();
    }
    if let Some(rejected) = decision.rejected {
        entry["rejected"] = json!({"token": named(rejected.id), "id": rejected.id, "p": rejected.p, "q": rejected.q});
    }
    Some(entry)
}

/// A token as a string; part of a character is spelled out, as OpenAI does: `bytes:\xe6\x97`.
pub(super) fn token_string(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| format!("{text}\\x{byte:02x}")),
    }
}

/// A log-probability as JSON can carry it.
pub(super) fn json_log_probability(log_probability: f64) -> f64 {
    if log_probability == f64::NEG_INFINITY { MINUS_INFINITY } else { log_probability }
}

fn usage(generation: &RunningGeneration) -> Value {
    let TokenUsage { prompt, completion, agreed, expert, base } = generation.usage();
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "hardening": {"agreed": agreed, "expert": expert, "base": base},
    })
}

async fn in_one_piece<S: ResponseShape>(
    mut generation: RunningGeneration,
    envelope: &ResponseEnvelope,
    shape: &S,
) -> Result<Value, ApiError> {
    let mut choices = vec![(TextDelta::default(), FinishReason::Length); generation.choices()];
    while let Some((index, event)) = generation.next().await.transpose()? {
        let Some(choice) = choices.get_mut(index as usize) else { continue };
        match event {
            ChoiceEvent::Delta(delta) => choice.0.append(delta),
            ChoiceEvent::Finished(reason) => choice.1 = reason,
        }
    }
    let text = generation.text();
    let choices = choices
        .iter()
        .enumerate()
        .map(|(index, (delta, reason))| envelope.choice(shape.whole(delta, *reason, text), index, delta, text));
    let mut message = envelope.message(S::OBJECT, choices.collect(), generation.degraded());
    message["usage"] = usage(&generation);
    Ok(message)
}

/// A stream's state between two chunks.
struct ChunkStream<S> {
    generation: RunningGeneration,
    envelope: ResponseEnvelope,
    shape: S,
    /// A part for each choice and one for the usage after them.
    progress: StreamProgress,
    include_usage: bool,
    /// Choices that have not been opened yet.
    openings: VecDeque<(usize, Value)>,
    ended: bool,
}

fn chunks<S: ResponseShape>(
    generation: RunningGeneration,
    envelope: ResponseEnvelope,
    shape: S,
    progress: StreamProgress,
    include_usage: bool,
) -> impl Stream<Item = Result<(String, Value), ApiError>> + Send {
    let numbered = |index: usize| {
        let mut choice = shape.opening()?;
        choice["index"] = index.into();
        Some((index, choice))
    };
    let openings = (0..generation.choices()).filter_map(numbered).collect();
    let state = ChunkStream { generation, envelope, shape, progress, include_usage, openings, ended: false };
    stream::unfold(state, |mut state| async move { Some((state.next().await?, state)) })
}

impl<S: ResponseShape> ChunkStream<S> {
    /// The next chunk that the client does not have, with its id.
    async fn next(&mut self) -> Option<Result<(String, Value), ApiError>> {
        loop {
            let (part, event) = match self.next_event().await? {
                Ok(next) => next,
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            };
            match self.progress.advance(part, &event) {
                Ok(true) => {
                    let chunk = self.chunk(part, event);
                    return Some(Ok((self.progress.id(self.generation.degraded()), chunk)));
                }
                Ok(false) => {}
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
    }

    /// The next event of any choice, or the usage after the last choice, which has no choices.
    async fn next_event(&mut self) -> Option<Result<(usize, StreamEvent), ApiError>> {
        if let Some((index, choice)) = self.openings.pop_front() {
            return Some(Ok((index, StreamEvent::Opening(choice))));
        }
        if self.ended {
            return None;
        }
        let (index, event) = match self.generation.next().await {
            Some(Ok((index, event))) => (index as usize, event),
            Some(Err(error)) => return Some(Err(error)),
            None => {
                self.ended = true;
                let after = self.generation.choices();
                return self.include_usage.then_some(Ok((after, StreamEvent::Usage)));
            }
        };
        let event = match event {
            ChoiceEvent::Delta(delta) => StreamEvent::Delta(delta),
            ChoiceEvent::Finished(reason) => {
                StreamEvent::Finished { reason, tokens: self.generation.new_tokens(index) }
            }
        };
        Some(Ok((index, event)))
    }

    /// Writes an event down.
    fn chunk(&self, part: usize, event: StreamEvent) -> Value {
        let text = self.generation.text();
        let choice =
            |delta: &TextDelta, reason| self.envelope.choice(self.shape.part(delta, reason, text), part, delta, text);
        let (choices, usage) = match event {
            StreamEvent::Opening(choice) => (vec![choice], Value::Null),
            StreamEvent::Delta(delta) => (vec![choice(&delta, None)], Value::Null),
            StreamEvent::Finished { reason, .. } => (vec![choice(&TextDelta::default(), Some(reason))], Value::Null),
            StreamEvent::Usage => (Vec::new(), usage(&self.generation)),
        };
        let mut chunk = self.envelope.message(S::CHUNK, choices, self.generation.degraded());
        if self.include_usage {
            chunk["usage"] = usage;
        }
        chunk
    }
}
