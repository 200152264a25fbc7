//! Tests of sessions through [`SessionService`](cosec_coordinator::session::service::SessionService), against mock
//! workers over real sockets.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed assumption in a test is a failed test"
)]

mod admission;
mod cluster;
mod faults;
mod harness;
mod lookahead;
mod odd_workers;
mod reference;
mod refusals;
mod schedules;
mod slow_clients;
mod takeover;
mod tokens;
