//! The decode loop of one choice: a pure state machine and the driver that performs its actions.

mod driver;
mod lane;
pub mod metrics;
pub mod plan;
pub mod speculation;
pub mod state;

pub(crate) use driver::{Driver, Opening};
