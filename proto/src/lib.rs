//! What coordinator and worker agree on.
//!
//! The messages and services, the identity of a session, the error table, the limits of the transport, and the
//! arithmetic of sampling. That arithmetic is part of the contract: a token must come out the same whether the
//! coordinator draws it from a full row or the worker draws it and sends twelve bytes.

pub mod ids;

mod role;

pub mod error_code;

pub mod transport;

pub mod kubernetes;

pub mod sampling;

pub mod row_runs;

pub mod moving_average;

pub mod tokenizer_fingerprint;

pub mod registry;

pub mod metrics;

pub use error_code::ErrorCode;
pub use ids::SessionId;
pub use moving_average::MovingAverage;
pub use role::{UnknownRole, WorkerRole};

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
