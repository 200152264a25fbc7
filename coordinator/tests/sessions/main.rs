//! Tests of sessions through [`Core`](cosec_coordinator::core::Core), against mock workers over real sockets.

mod admission;
mod cluster;
mod faults;
mod simulation;
mod tokens;
