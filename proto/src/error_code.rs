//! The one table from a failure to its statuses.

use std::fmt;
use std::str::FromStr;

use tonic::Code;

/// What went wrong, as it is known on both sides of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// A field has a value that is not allowed.
    InvalidArgument,
    /// Prompt and completion do not fit the model's context.
    ContextLengthExceeded,
    /// No key, or one that nobody knows.
    Unauthenticated,
    /// No such model (or route).
    NotFound,
    /// The body or message is over its limit.
    PayloadTooLarge,
    /// A queue is full; the request or operation was not admitted.
    Overloaded,
    /// The worker has no cache blocks left for this operation.
    OutOfBlocks,
    /// The caller took the operation back.
    Cancelled,
    /// The deadline passed first.
    DeadlineExceeded,
    /// No worker can serve the request now.
    Unavailable,
    /// No expert can serve the request now, and unhardened code is not to leave (fail closed).
    ExpertUnavailable,
    /// Base and expert (or a worker and its expected model) do not belong together.
    ModelMismatch,
    /// A worker answered what cannot be true.
    WorkerFault,
    /// A defect of this program.
    Internal,
}

struct CodeRow {
    code: ErrorCode,
    name: &'static str,
    grpc: Code,
    http: u16,
    elsewhere: bool,
}

const fn row(code: ErrorCode, name: &'static str, grpc: Code, http: u16, elsewhere: bool) -> CodeRow {
    CodeRow { code, name, grpc, http, elsewhere }
}

#[rustfmt::skip]
const TABLE: [CodeRow; 14] = [
    row(ErrorCode::InvalidArgument,       "invalid_argument",        Code::InvalidArgument,    400, false),
    row(ErrorCode::ContextLengthExceeded, "context_length_exceeded", Code::InvalidArgument,    400, false),
    row(ErrorCode::Unauthenticated,       "unauthenticated",         Code::Unauthenticated,    401, false),
    row(ErrorCode::NotFound,              "not_found",               Code::NotFound,           404, false),
    row(ErrorCode::PayloadTooLarge,       "payload_too_large",       Code::ResourceExhausted,  413, false),
    row(ErrorCode::Overloaded,            "overloaded",              Code::ResourceExhausted,  429, true),
    row(ErrorCode::OutOfBlocks,           "out_of_blocks",           Code::ResourceExhausted,  503, true),
    row(ErrorCode::Cancelled,             "cancelled",               Code::Cancelled,          499, false),
    row(ErrorCode::DeadlineExceeded,      "deadline_exceeded",       Code::DeadlineExceeded,   504, true),
    row(ErrorCode::Unavailable,           "unavailable",             Code::Unavailable,        503, true),
    row(ErrorCode::ExpertUnavailable,     "expert_unavailable",      Code::Unavailable,        503, false),
    row(ErrorCode::ModelMismatch,         "model_mismatch",          Code::FailedPrecondition, 503, true),
    row(ErrorCode::WorkerFault,           "worker_fault",            Code::Internal,           502, true),
    row(ErrorCode::Internal,              "internal",                Code::Internal,           500, false),
];

impl ErrorCode {
    fn row(self) -> &'static CodeRow {
        // The table is in the order of the variants; a test holds it to that.
        &TABLE[self as usize]
    }

    /// The name on the wire and in OpenAI's error object.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The gRPC status.
    #[must_use]
    pub fn grpc(self) -> Code {
        self.row().grpc
    }

    /// The HTTP status.
    #[must_use]
    pub fn http(self) -> u16 {
        self.row().http
    }

    /// Whether another worker may succeed with the same operation.
    #[must_use]
    pub fn may_try_elsewhere(self) -> bool {
        self.row().elsewhere
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ErrorCode {
    type Err = UnknownErrorCode;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        TABLE.iter().find(|row| row.name == name).map(|row| row.code).ok_or_else(|| UnknownErrorCode(name.to_owned()))
    }
}

/// A peer named a code that this version does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown error code {0:?}")]
pub struct UnknownErrorCode(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_in_the_order_of_the_variants() {
        for row in &TABLE {
            assert_eq!(row.code.name(), row.name);
            assert_eq!(row.name.parse::<ErrorCode>(), Ok(row.code));
        }
        assert!("nonsense".parse::<ErrorCode>().is_err());
    }
}
