//! Continuous batching: which tokens of which sessions ride in the next forward pass.
//!
//! The scheduler owns the sessions' block tables and kept logits. It knows no clock but the one that it is handed, no
//! thread and no socket.

mod language_model;

mod job;

mod request_queue;

mod fairness;

mod batch_window;

mod batch_plan;

mod pass_memory;

mod sequence_memory;

mod state;

mod recall;

mod places;

mod admit;

mod batch;

mod pass;

#[cfg(test)]
mod tests;

pub(crate) use job::ScheduledJob;
pub use language_model::LanguageModel;
pub(crate) use state::Scheduler;
