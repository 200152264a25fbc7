//! Tests of the merge rules: vectors, laws, properties.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed assumption in a test is a failed test")]

mod floor;
mod golden;
mod law;
mod properties;
mod vectors;
