//! Why text cannot become token ids.

use std::path::PathBuf;

use cosec_proto::ErrorCode;

/// A model's directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file is missing or does not hold what it should.
    #[error("{}: {cause}", file.display())]
    #[expect(missing_docs, reason = "the field names say it")]
    File { file: PathBuf, cause: String },
}

/// A prompt that this model cannot take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// No token at all.
    #[error("the prompt is empty; it must have at least one token")]
    Empty,
    /// `messages` for a model that was not trained on conversations.
    #[error("this model has no chat template; use /v1/completions with a prompt")]
    NoTemplate,
    /// The chat template rejects the messages.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The chat template makes more text of the messages than fits.
    #[error("the model's chat template makes more than {0} bytes of the messages, and no more can fit its context")]
    TooLong(usize),
    /// `suffix` for a model that was not trained on it.
    #[error("this model has no fill-in-the-middle tokens, so suffix cannot be used")]
    NoInfilling,
    /// `suffix` together with token ids or messages.
    #[error("suffix needs a prompt that is text")]
    SuffixNeedsText,
    /// The tokenizer fails on the text.
    #[error("the text cannot be tokenized: {0}")]
    Tokenizer(String),
}

impl EncodeError {
    /// Which status it becomes.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::TooLong(_) => ErrorCode::ContextLengthExceeded,
            Self::Empty
            | Self::NoTemplate
            | Self::Template(_)
            | Self::NoInfilling
            | Self::SuffixNeedsText
            | Self::Tokenizer(_) => ErrorCode::InvalidArgument,
        }
    }

    /// The request's field that is to blame.
    #[must_use]
    pub fn parameter(&self) -> &'static str {
        match self {
            Self::NoTemplate | Self::Template(_) | Self::TooLong(_) => "messages",
            Self::NoInfilling | Self::SuffixNeedsText => "suffix",
            Self::Empty | Self::Tokenizer(_) => "prompt",
        }
    }
}

/// Messages that a template does not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model's chat template does not take these messages: {0}")]
pub struct TemplateError(pub(super) String);
