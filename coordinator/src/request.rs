//! The values that travel from the API to a session and back, each finished before it is handed on.
//!
//! `CheckedRequest` (every field has been checked) → `TokenizedRequest` (one per choice, token ids only) → a stream of
//! `SessionEvent`.

use std::sync::Arc;

use cosec_proto::sampling::SamplingParams;
use cosec_proto::{ErrorCode, SequenceName};
use tokio::time::Instant;

use crate::continuation::ReceivedTokens;
use crate::merge::{Decision, Judge, LogitAdjustments, LogitsTransport, SelectedRule, TokenScore};
use crate::tenant::Tenant;

/// A request whose every field has been checked; text is not tokenized yet.
#[derive(Clone, Debug)]
pub struct CheckedRequest {
    /// At least one; each gets `settings.n` choices.
    pub prompts: Vec<Prompt>,
    /// Code after the hole (fill in the middle).
    pub suffix: Option<String>,
    /// The rest.
    pub settings: Arc<GenerationSettings>,
}

/// Where a generation starts.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// To be tokenized, with the special tokens that the tokenizer adds by itself.
    Text(String),
    /// Taken as they are.
    Tokens(Vec<u32>),
    /// To be rendered by the model's chat template.
    Chat(Vec<ChatMessage>),
}

impl Prompt {
    /// Bytes of text, or token ids.
    #[must_use]
    pub fn size(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Tokens(ids) => ids.len(),
            Self::Chat(messages) => messages.iter().map(|message| message.content.len()).sum(),
        }
    }
}

/// Most messages of a conversation.
pub const MAX_MESSAGES: usize = 4096;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ChatMessage {
    /// system, user or assistant.
    pub role: String,
    /// Text.
    pub content: String,
}

/// How to generate.
#[derive(Clone, Debug)]
pub struct GenerationSettings {
    /// Choices per prompt, 1 to 128.
    pub n: u32,
    /// Names all draws of the request; drawn at random when the client gives none.
    pub seed: u64,
    /// Most new tokens; `None` takes what the context leaves.
    pub max_tokens: Option<u32>,
    /// No end token and no stop string before so many new tokens.
    pub min_tokens: u32,
    /// Strings that end the text and are not part of it.
    pub stop: Vec<String>,
    /// The base's `temperature`, `top_p`, `top_k` as the client sent them.
    pub base: SamplingParams,
    /// The expert's.
    pub expert: SamplingParams,
    /// The distribution of the base that judges the expert's proposals.
    pub judge: Judge,
    /// The published code's behaviour: the base judges and falls back by its softmax at temperature 1, whatever `base`
    /// says.
    pub reference_code: bool,
    /// How the two distributions become one.
    pub rule: SelectedRule,
    /// Changes to the logits of both models before sampling parameters apply; a raw judge knows nothing of them.
    pub adjustments: LogitAdjustments,
    /// What logits travel as.
    pub transport: LogitsTransport,
    /// Alternatives to report per token (0 reports the token alone); `None` reports nothing.
    pub logprobs: Option<u32>,
    /// Whether the prompt is part of the answer.
    pub echo: bool,
    /// Whether every token says what hardening did to it.
    pub report: bool,
    /// When the client's patience ends.
    pub deadline: Instant,
}

/// One choice of one prompt, as token ids.
#[derive(Clone, Debug)]
pub struct TokenizedRequest {
    /// As listed by `/v1/models`.
    pub model: String,
    /// Whose it is.
    pub tenant: Arc<Tenant>,
    /// Not empty; fits the context together with `max_new_tokens`.
    pub prompt: Arc<[u32]>,
    /// Counts through prompts and choices: keeps their draws apart.
    pub sample: u32,
    /// Of the whole request; they share what a client may lag behind.
    pub choices: u32,
    /// At least 1, or 0 to score the prompt alone (echo with `max_tokens` 0).
    pub max_new_tokens: u32,
    /// By which workers know the choice's tokens.
    pub sequence: SequenceName,
    /// What the client has of it already.
    pub received: Option<ReceivedTokens>,
    /// The rest.
    pub settings: Arc<GenerationSettings>,
}

/// What a session reports, in order. Dropping the stream cancels the session and frees both workers.
#[derive(Clone, Debug)]
pub enum SessionEvent {
    /// Scores of the prompt's tokens, once and first, when `echo` and `logprobs` are set. The first token has none.
    Prompt(Vec<Option<TokenScore>>),
    /// The tokens that the client has, once and first: they were decoded elsewhere, and only what follows is decoded.
    TakenOver(Vec<u32>),
    /// The next token. An end token is not reported; it becomes `Finished`.
    Token(TokenEvent),
    /// No expert can serve and the operator allows the base to go on alone: all later tokens are unhardened. At most
    /// once.
    Degraded,
    /// Nothing follows.
    Finished(FinishReason),
    /// Nothing follows.
    Failed(SessionError),
}

/// The next token of a choice.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenEvent {
    /// Which, and how it came about.
    pub decision: Decision,
    /// Under the base's raw distribution; present when `logprobs` is set.
    pub score: Option<TokenScore>,
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// An end token or a stop string.
    Stop,
    /// `max_tokens` or the context.
    Length,
}

impl FinishReason {
    /// As `finish_reason` spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// Why a choice failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SessionError {
    /// Which status it becomes.
    pub code: ErrorCode,
    /// A plain sentence for the client.
    pub message: String,
    /// When to try again, where that could be estimated.
    pub retry_after_seconds: Option<u64>,
}

impl SessionError {
    /// One for which nobody knows when it will be over.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after_seconds: None }
    }
}
