//! The values that travel from door to session and back, each finished before it is handed on.
//!
//! `GenerateRequest` (a door has checked every field) → `TokenizedRequest` (one per choice, token ids only) → a stream
//! of `SessionEvent`.

use std::collections::BTreeMap;
use std::sync::Arc;

use cosec_proto::ErrorCode;
use cosec_proto::sampling::SamplingParams;
use tokio::time::Instant;

use crate::tenant::Tenant;

/// A request whose every field has been checked; text is not tokenized yet.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// As listed by `/v1/models`.
    pub model: String,
    /// At least one; each gets `settings.n` choices.
    pub prompts: Vec<Prompt>,
    /// Code behind the hole (fill in the middle).
    pub suffix: Option<String>,
    /// The rest.
    pub settings: Arc<Settings>,
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
pub struct Settings {
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
    /// The published code's behaviour: the base judges and falls back by its raw softmax, whatever `base` says.
    pub reference_code: bool,
    /// How the two distributions become one.
    pub rule: RuleSettings,
    /// Changes to the logits of both models before their warps.
    pub adjustments: Adjustments,
    /// What the rows travel as.
    pub transport: Transport,
    /// Alternatives to report per token (0 reports the token alone); `None` reports nothing.
    pub logprobs: Option<u32>,
    /// Whether the prompt is part of the answer.
    pub echo: bool,
    /// Whether every token says who chose it.
    pub report: bool,
    /// When the client's patience ends.
    pub deadline: Instant,
}

/// A merge rule and its parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RuleSettings {
    /// Expert's token when `min(1, p/q) > tau`, else a draw from p (CoSec, section 3).
    Cosec {
        /// Acceptance threshold, at least 0.
        tau: f64,
    },
    /// `lambda q + (1 - lambda) p`.
    Linear {
        /// In [0, 1].
        lambda: f64,
    },
    /// `softmax(base + alpha expert)`: DExperts (Liu 2021) and proxy-tuning (Liu 2024) without an anti-expert.
    Product {
        /// Finite.
        alpha: f64,
    },
    /// The base alone; unhardened.
    BaseOnly,
    /// The expert alone.
    ExpertOnly,
}

impl RuleSettings {
    /// Name in requests, reports and metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Cosec { .. } => "cosec",
            Self::Linear { .. } => "linear",
            Self::Product { .. } => "product",
            Self::BaseOnly => "base_only",
            Self::ExpertOnly => "expert_only",
        }
    }
}

/// Changes to logits, the same for base and expert.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Adjustments {
    /// Subtracted once per earlier occurrence in the new tokens; in [-2, 2].
    pub frequency_penalty: f64,
    /// Subtracted when the token occurs in the new tokens; in [-2, 2].
    pub presence_penalty: f64,
    /// Added, by token id; in [-100, 100].
    pub logit_bias: BTreeMap<u32, f64>,
}

/// What a row travels as. All give the same tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Transport {
    /// The least that the request needs.
    #[default]
    Auto,
    /// The worker looks up the proposal's probability.
    Gather,
    /// The ids that survive the warp.
    Nucleus,
    /// The worker draws.
    Sample,
    /// The whole row of logits.
    Full,
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
    /// At least 1, or 0 to score the prompt alone (echo with `max_tokens` 0).
    pub max_new_tokens: u32,
    /// The rest.
    pub settings: Arc<Settings>,
}

/// What a session reports, in order. Dropping the stream cancels the session and frees both workers.
#[derive(Clone, Debug)]
pub enum SessionEvent {
    /// Scores of the prompt's tokens, once and first, when `echo` and `logprobs` are set. The first token has none.
    Prompt(Vec<Option<Score>>),
    /// The next token. An end token is not reported; it becomes `Finished`.
    Token(TokenEvent),
    /// No expert can serve and the operator allows the base to go on alone: all later tokens are unhardened. At most once.
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
    /// Under the law that the token was drawn from; present when `logprobs` is set.
    pub score: Option<Score>,
}

/// A token and how it was chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// Token id.
    pub id: u32,
    /// Who chose it.
    pub chosen_by: ChosenBy,
    /// Probability under the base's distribution that the rule judged by, where the rule looked.
    pub p: Option<f64>,
    /// Probability under the expert's, where the rule looked.
    pub q: Option<f64>,
    /// The expert's proposal that the token stands in for.
    pub rejected: Option<Rejected>,
}

/// A proposal of the expert that the base did not let pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rejected {
    /// Token id.
    pub id: u32,
    /// Probability under the base's distribution that the rule judged by.
    pub p: f64,
    /// Probability under the expert's.
    pub q: f64,
}

/// Log-probability of a token and of the most probable others.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Natural logarithm; -inf when the law gives the token no mass.
    pub log_probability: f64,
    /// The most probable ids, best first, only those with mass.
    pub alternatives: Vec<(u32, f64)>,
}

/// Who chose a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChosenBy {
    /// The expert proposed it and the base let it pass.
    Expert,
    /// The base, in place of a rejected proposal (or because the rule is `base_only`).
    Base,
    /// A rule that draws from a blend, whether it kept the expert's proposal or not.
    Merged,
}

impl ChosenBy {
    /// Name in reports and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Expert => "expert",
            Self::Base => "base",
            Self::Merged => "merged",
        }
    }
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// An end token or a stop string.
    Stop,
    /// `max_tokens` or the context.
    Length,
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
