//! The decode loop of one choice.

pub mod metrics;
