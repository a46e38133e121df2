//! Drafting without a draft model.

pub mod ngram;
