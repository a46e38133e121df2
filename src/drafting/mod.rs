//! Drafting without a draft model: prompt lookup, as a drafter of any executor.
//!
//! May import: protocol, executor.
#![forbid(unsafe_code)]

mod lookup;
mod ngram;

pub use lookup::WithPromptLookup;
pub use ngram::{NgramOptions, propose};
