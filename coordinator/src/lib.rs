//! Serves a base and its expert as one model: takes requests, decodes with both, merges their distributions.
//!
//! In the order of a request:
//!
//! - [`api`] reads HTTP and gRPC requests by one table of parameters, and writes the answers.
//! - [`policy`] says what the operator allows: rules, bounds, models.
//! - [`tenant`] knows whose request it is, by its API key or its address.
//! - [`generation`] checks it, takes a place in the queue by its size, has it tokenized, and opens a session per choice.
//! - [`models`] knows what the workers of each model can do now.
//! - [`admission`] gives sessions their places and, as soon as their tokens are known, their turns.
//! - `text_work` gives the work on clients' text its threads, fairly.
//! - [`preprocess`] turns text and conversations into token ids.
//! - [`session`] decodes one choice: a state machine, and a driver that performs its actions.
//! - [`speculation`] chooses how many tokens the expert drafts at a time.
//! - [`merge`] decides each token from the distributions of base and expert.
//! - [`worker_pool`] chooses a worker for each role, talks to it, and notices when it fails.
//! - [`discovery`] says which workers there should be.
//! - [`postprocess`] turns token ids into text and finds stop strings.
//!
//! [`request`] has what they hand on, [`continuation`] what a client has of an answer already; [`config`], [`server`], [`telemetry`], [`metrics`] and [`tasks`] hold them
//! together.
//!
//! What holds everywhere:
//!
//! - Every check is made once, before the prompt costs anything where that is possible.
//! - A place, a turn, a slot on a worker: whatever is held is given back by `Drop`.
//! - `api` knows no worker; `merge` knows neither worker nor session.
//! - The state machine of a session and the choice of a worker do no I/O.
//! - `discovery` feeds the worker pool through one channel and knows no other room.
//! - No file imports itself by way of others.

pub mod config;

pub mod server;

pub mod telemetry;

pub mod api;

pub mod policy;

pub mod tenant;

pub mod shared_key;

pub mod generation;

pub mod models;

pub mod admission;

pub(crate) mod text_work;

pub mod preprocess;

pub mod request;

pub mod continuation;

pub mod session;

pub mod speculation;

pub mod merge;

pub mod worker_pool;

pub mod discovery;

pub mod postprocess;

pub mod metrics;

pub mod tasks;
