//! HTTP as OpenAI's clients speak it, and gRPC.
//!
//! A handler turns a message into a [`GenerateRequest`](crate::generation::GenerateRequest) and events into messages.
//! What lies between is the same for all: [`generation`](crate::generation).

pub mod config;

pub mod state;

pub mod auth;

pub mod openai;

pub mod grpc;

pub(crate) mod parameters;

mod parameter_kinds;

mod json_fields;

pub mod error;

pub mod metrics;

#[cfg(test)]
mod tests;
