//! Merges the distributions of base and expert and serves the result.

pub mod config;

pub mod telemetry;

pub mod server;

pub mod api;

pub mod preprocess;

pub mod request;

pub mod tenant;

pub mod models;

pub mod admission;

pub mod session;

pub mod speculation;

pub mod merge;

pub mod worker_pool;

pub mod discovery;

pub mod postprocess;

pub mod metrics;

pub mod tasks;
