//! What coordinator and worker agree on.
//!
//! The messages and services, the identity of a session, the error table, the limits of the transport, and the
//! arithmetic of a draw. That arithmetic is part of the contract: a token must come out the same whether the
//! coordinator draws it from a full row or the worker draws it and sends twelve bytes.

pub mod ids;

pub mod error_code;

pub mod transport;

pub mod kubernetes;

pub mod draw;

mod exp;

pub mod row_runs;

pub mod moving_average;

pub mod tokenizer_fingerprint;

pub mod registry;

pub mod metrics;

pub use error_code::ErrorCode;
pub use ids::SessionId;
pub use moving_average::MovingAverage;

/// Messages and services of a worker.
#[expect(missing_docs, reason = "generated; documented in the .proto file")]
#[expect(clippy::allow_attributes, clippy::allow_attributes_without_reason, reason = "generated")]
pub mod worker {
    tonic::include_proto!("cosec.worker.v1");
}

/// Messages and services of the coordinator's gRPC door.
#[expect(missing_docs, reason = "generated; documented in the .proto file")]
#[expect(clippy::allow_attributes, clippy::allow_attributes_without_reason, reason = "generated")]
pub mod coordinator {
    tonic::include_proto!("cosec.coordinator.v1");
}
