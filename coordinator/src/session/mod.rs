//! The decode loop of one choice: a pure state machine and the driver that performs its actions.

pub mod config;
pub mod costs;
mod driver;
pub mod event;
mod lane;
pub mod metrics;
pub mod pace;
mod pacer;
pub mod plan;
mod sequence;
pub mod service;
pub mod speculation;
pub mod state;
pub mod tally;

pub(crate) use driver::{Driver, Opening};
pub(crate) use pacer::Pacers;
