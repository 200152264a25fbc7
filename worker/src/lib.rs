//! Hosts one language model: token ids in, probabilities out.
//!
//! A worker knows nothing of co-decoding rules, of clients or of text. The scheduler does no I/O, the decoder never
//! sees a session, and only `service` knows messages.

pub mod config;
pub mod server;

pub mod service;

pub mod engine;

mod scheduler;

pub mod operation;

pub mod limits;

pub mod status;

pub mod kv_cache;

pub mod logits_view;

pub mod model;

pub mod decoder;

pub mod weights;

pub mod families;

pub mod checkpoint;

pub mod kernels;

pub mod cpu_set;

pub mod check;

pub mod registration;

pub mod metrics;
