//! Counts the events of a stream, and keeps back those that the client has.

use axum::http::StatusCode;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::key::{IdSeal, ResumeKey};
use super::position::{PartPosition, StreamOrigin, StreamPosition};
use super::{HEADER, ReceivedEvents, first};
use crate::api::error::ApiError;
use crate::continuation::{ReceivedTokens, TokenDigest};
use crate::postprocess::TextDelta;
use crate::request::FinishReason;

/// An event of a stream, before it is written down.
#[derive(Debug)]
pub(in crate::api::openai) enum StreamEvent {
    /// Begins a choice.
    Opening(Value),
    /// More of a choice.
    Delta(TextDelta),
    /// The end of a choice.
    Finished {
        reason: FinishReason,
        /// New tokens of the choice.
        tokens: u32,
    },
    /// The usage, after all choices.
    Usage,
}

/// How much of an answer was sent.
pub(in crate::api::openai) struct StreamProgress {
    seal: IdSeal,
    origin: StreamOrigin,
    parts: Vec<PartProgress>,
    /// What the client has already; empty for a stream from its beginning.
    received: Vec<PartPosition>,
    /// Whether the first text of each choice is its prompt.
    echoes: bool,
}

/// Events of one part, counted.
#[derive(Clone, Default)]
struct PartProgress {
    events: u32,
    content: Sha256,
    tokens: TokenDigest,
    token_count: u32,
    last_token: u32,
    whole: Option<u32>,
}

impl StreamProgress {
    /// The beginning of an answer of `parts` parts that are in order each, of which the client has what `received`
    /// says.
    pub(in crate::api::openai) fn new(
        key: &ResumeKey,
        tenant: &str,
        origin: StreamOrigin,
        parts: usize,
        received: Option<ReceivedEvents>,
    ) -> Self {
        let received = received.map(|received| received.0.parts).unwrap_or_default();
        let mut begun = vec![PartProgress::default(); parts];
        for (part, received) in begun.iter_mut().zip(&received) {
            part.whole = received.whole;
            part.events = received.whole.map_or(0, |_| received.events);
        }
        Self { seal: key.seal(origin.id, tenant), origin, parts: begun, received, echoes: false }
    }

    /// Every choice begins with its prompt, which is none of its new tokens.
    pub(in crate::api::openai) fn echoing(self, echoes: bool) -> Self {
        Self { echoes, ..self }
    }

    /// Counts the next event of a part; says whether the client has yet to get it.
    ///
    /// # Errors
    /// When what was decoded is not what the client has: then nothing may follow it.
    pub(in crate::api::openai) fn advance(&mut self, at: usize, event: &StreamEvent) -> Result<bool, ApiError> {
        let Some(part) = self.parts.get_mut(at) else { return Ok(true) };
        if part.whole.is_some() {
            return Ok(false);
        }
        part.count(event, self.echoes);
        let Some(received) = self.received.get(at) else { return Ok(true) };
        if part.events == received.events && part.position().digest != received.digest {
            let message = "the answer cannot be continued: it comes out different now, by another model or setting";
            return Err(ApiError::http_only(StatusCode::CONFLICT, message).of(HEADER));
        }
        Ok(part.events > received.events)
    }

    /// The id of the event that was counted last.
    pub(in crate::api::openai) fn id(&self, degraded: bool) -> String {
        let position = |(at, part): (usize, &PartProgress)| {
            // While an answer is decoded again, a part may not have reached what the client has of it.
            let furthest = self.received.get(at).filter(|received| received.events > part.events);
            furthest.copied().unwrap_or_else(|| part.position())
        };
        let parts = self.parts.iter().enumerate().map(position).collect();
        self.seal.seal(StreamPosition { origin: self.origin, degraded, parts }.encode())
    }
}

impl PartProgress {
    fn count(&mut self, event: &StreamEvent, echoes: bool) {
        let is_first = self.token_count == 0 && self.events == 0;
        self.events += 1;
        match event {
            StreamEvent::Opening(_) => self.content.update("opening"),
            StreamEvent::Delta(TextDelta { text, tokens }) => {
                self.content.update(format!("delta {}", text.len()));
                self.content.update(text);
                for token in tokens {
                    self.content.update(token.id.to_le_bytes());
                    if !(echoes && is_first) {
                        self.tokens.add(token.id);
                        self.token_count += 1;
                        self.last_token = token.id;
                    }
                }
            }
            StreamEvent::Finished { reason, tokens } => {
                self.content.update(reason.name());
                self.whole = Some(*tokens);
            }
            StreamEvent::Usage => self.content.update("usage"),
        }
    }

    fn position(&self) -> PartPosition {
        let (count, last) = (self.token_count, self.last_token);
        let tokens = (count > 0).then(|| ReceivedTokens { count, last, digest: self.tokens.value() });
        let digest = first(&self.content.clone().finalize());
        PartPosition { events: self.events, digest, tokens, whole: self.whole }
    }
}
