//! Hosts one language model: token ids in, probabilities out.
//!
//! A worker knows nothing of co-decoding rules, of clients or of text. The scheduler does no I/O, the decoder never
//! sees a session, and only `service` knows messages.

pub mod config;
pub mod server;

pub mod service;

pub mod engine;

mod scheduler;

pub mod kv_cache;

pub mod rows;

pub mod model_runner;

pub mod decoder;

pub mod families;

pub mod kernels;

pub mod cpu_set;

pub mod loader;

pub mod check;

pub mod registration;

pub mod metrics;
