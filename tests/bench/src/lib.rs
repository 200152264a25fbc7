//! What the benchmark commands share: `tests/bench-worker`, `tests/bench-lookahead`, `tests/bench-load`,
//! `tests/bench-scale` and `tests/gpu`.
//!
//! All measure real processes over their real sockets, the sides in interleaved rounds: on a machine that
//! has other work, only ratios of one run mean anything. Nothing here asserts a time.

pub mod shape;

pub mod checkpoint;

pub mod bandwidth;

pub mod gpu;

pub mod metrics;

pub mod worker;

pub mod llama;

pub mod cluster;

pub mod streams;

pub mod generation;

pub mod fleet;

pub mod completions;

pub mod difference;

pub mod load;

pub mod report;

pub mod command;
