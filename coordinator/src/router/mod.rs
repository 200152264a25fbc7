//! Chooses a worker among those that can serve. Does no I/O.

mod least_load;

pub use least_load::least_load;
