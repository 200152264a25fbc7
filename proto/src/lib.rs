//! What coordinator and worker agree on.
//!
//! The messages and services, the identity of a session, the error table, the limits of the transport, and the
//! arithmetic of sampling. That arithmetic is part of the contract: a token must come out the same whether the
//! coordinator draws it from a full row or the worker draws it and sends twelve bytes.

pub mod ids;

mod role;

pub mod limits;

mod operation_error;

mod logits_view;

mod logits_runs;

mod operation;

mod outcome;

mod description;

pub mod error_code;

pub mod transport;

pub mod tls;

pub mod serving;

pub mod kubernetes;

pub mod sampling;

pub mod moving_average;

pub mod tokenizer_fingerprint;

pub mod registry;

pub mod secret_file;

pub mod metrics;

pub mod log_lines;

pub use description::{AdapterDescription, InvalidDescription, WorkerDescription};
pub use error_code::ErrorCode;
pub use ids::{SequenceName, SessionId};
pub use limits::WorkerLimits;
pub use logits_runs::LogitsRun;
pub use logits_view::{LogitsRequest, LogitsResult, LogitsView};
pub use moving_average::MovingAverage;
pub use operation::{Operation, OperationKind, ReplyLayout};
pub use operation_error::OperationError;
pub use outcome::{OperationOutcome, OperationReply, StepCost, encode_response};
pub use role::{UnknownRole, WorkerRole};

/// Version of the protocol between coordinator and worker. A peer of another one is refused, never misread.
///
/// It grows with every change of `worker.proto`, or of the meaning of a message, that the other side must know of.
pub const PROTOCOL_VERSION: u32 = 2;

/// The generated messages and services.
#[expect(missing_docs, reason = "generated; documented in the .proto files")]
#[expect(clippy::allow_attributes, clippy::allow_attributes_without_reason, reason = "generated")]
pub mod wire {
    /// Of a worker.
    pub mod worker {
        tonic::include_proto!("cosec.worker.v1");
    }

    /// Of the coordinator's gRPC service.
    pub mod coordinator {
        tonic::include_proto!("cosec.coordinator.v1");
    }
}
