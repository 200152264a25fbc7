//! The worker's service over a real socket, with a model that betrays every mistake in the bookkeeping.

mod fake_model;
mod harness;

mod golden_rows;
mod lifecycle;
mod malformed;
mod operations;
mod random_operations;
mod scheduling;
