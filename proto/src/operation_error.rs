//! Why an operation has no result.

use crate::ErrorCode;

/// Why an operation has no result. `message` goes to the log and, where the client can do something about it, to the
/// client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct OperationError {
    /// Says whether another worker may succeed.
    pub code: ErrorCode,
    /// A plain sentence.
    pub message: String,
}

impl OperationError {
    /// Pairs a code with its explanation.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// A field of an operation has a value that is not allowed.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    /// A worker answered what cannot be true.
    pub(crate) fn impossible(what: impl Into<String>) -> Self {
        Self::new(ErrorCode::WorkerFault, format!("the worker's answer cannot be true: {}", what.into()))
    }
}
