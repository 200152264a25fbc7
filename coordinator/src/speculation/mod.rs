//! How many tokens the expert drafts at a time. It changes the time that decoding takes, never the tokens.

pub mod acceptance;
pub mod controller;
pub mod metrics;
mod round_timer;
pub mod settings;
mod shared;
pub mod tally;

pub(crate) use round_timer::RoundTimer;
pub(crate) use shared::{SharedController, SharedControllers};
