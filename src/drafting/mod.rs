//! Drafting without a draft model.

mod ngram;

pub use ngram::{NgramOptions, propose};
