//! The worker's service over a real socket, with a model that betrays every mistake in the bookkeeping.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed assumption in a test is a failed test"
)]

mod fake_model;
mod harness;

mod disturbed;
mod fairness;
mod golden_rows;
mod lifecycle;
mod malformed;
mod operations;
mod prefixes;
mod random_operations;
mod scheduling;
mod soak;
mod takeover;
