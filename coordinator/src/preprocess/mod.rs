//! From text to token ids: chat template, fill-in-the-middle, tokenizer.

pub mod tokenizer;

pub mod chat_template;

pub mod infilling;
