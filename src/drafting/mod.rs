//! Drafting without a draft model.
//!
//! May import: protocol, executor.
#![forbid(unsafe_code)]

mod lookup;
mod ngram;

pub use lookup::WithPromptLookup;
pub use ngram::{NgramOptions, propose};
