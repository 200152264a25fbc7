//! HTTP as OpenAI's clients speak it.

pub mod routes;

mod authorized;

mod body;

mod observed;

mod completions;

mod chat;

mod models;

mod response;

mod sse;

pub mod resume;
