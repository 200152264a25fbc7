//! From text to token ids: chat template, fill-in-the-middle, tokenizer.

pub mod error;

mod token_ids;

pub mod chat_template;

pub mod infilling;

pub mod tokenizer;
