//! Chooses a worker among those that can serve. Does no I/O.

mod bounded_load;

pub use bounded_load::{Candidate, choose, prefix};
