//! Merges the distributions of base and expert and serves the result.

pub mod request;

pub mod role;

pub mod core;

pub mod session;

pub mod merge;

pub mod sampler;
