//! Hosts one language model: token ids in, probabilities out.
//!
//! A worker knows no co-decoding rule, no client and no text. The scheduler does no I/O, the decoder never sees a
//! session, and only `service` knows messages. `checkpoint` knows no decoder; `families`, `weights` and `decoder` build
//! on it in this order, and only `model` knows them all.

// The name by which a fake model that integration tests share with the scheduler's tests knows the crate.
#[cfg(test)]
extern crate self as cosec_worker;

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
