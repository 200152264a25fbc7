//! The decode loop of one choice: a pure state machine and the driver that performs its actions.

pub mod config;
mod driver;
pub mod event;
mod lane;
pub mod metrics;
pub mod plan;
mod sequence;
pub mod service;
pub mod state;

pub(crate) use driver::{Driver, Opening};
