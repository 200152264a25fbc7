//! The decode loop of one choice: a pure state machine and the driver that performs its actions.

pub mod config;
mod driver;
pub mod event;
mod merge_job;
pub mod metrics;
mod pace;
pub mod plan;
mod recovery;
mod role_state;
mod sequence;
pub mod service;
pub mod state;
mod takeover;

pub(crate) use driver::{SessionContext, SessionDriver};
pub(crate) use pace::ClientPatience;
