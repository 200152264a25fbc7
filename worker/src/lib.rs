//! Hosts one language model: token ids in, probabilities out.

pub mod model_runner;
