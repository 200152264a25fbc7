//! Tests of the merge rules: vectors, laws, properties.

mod golden;
mod law;
mod properties;
mod vectors;
