//! What the two benchmark commands share: `tests/bench-worker` and `tests/bench-lookahead`.
//!
//! Both measure real processes over their real doors, one side beside the other in interleaved rounds: on a machine that
//! has other work, only ratios of one run mean anything. Nothing here asserts a time.

pub mod shape;

pub mod checkpoint;

pub mod bandwidth;

pub mod metrics;

pub mod worker;

pub mod llama;

pub mod cluster;

pub mod streams;

pub mod report;

pub mod command;
