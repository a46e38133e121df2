//! Drafting without a draft model.
#![forbid(unsafe_code)]

mod ngram;

pub use ngram::{NgramOptions, propose};
