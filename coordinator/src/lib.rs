//! Serves a base and its expert as one model: takes requests, decodes with both, merges their distributions.
//!
//! A request's way, in the order of the modules:
//!
//! ```text
//! api → generation: check → a place in the queue by size → tokenize (preprocess) → a turn by tokens → open a session
//!     → session ⇄ worker_pool ⇄ workers;  merge decides each token  → postprocess → api
//! ```
//!
//! Every check is made once, before the prompt costs anything where that is possible. Calls go down the list; what comes
//! back are values and streams. *api* knows no worker. *merge* knows neither worker nor session. The state machine of a
//! *session* does no I/O. *discovery* knows only who is there.

pub mod config;

pub mod telemetry;

pub mod server;

pub mod api;

pub mod generation;

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
