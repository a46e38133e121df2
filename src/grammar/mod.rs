//! Structured output: compiles a description of an output to a constraint on its tokens.
//!
//! ```text
//! GrammarSource ──GrammarCompiler::compile──► Arc<dyn TokenConstraint>
//! (JSON schema,    once per request,           masks, per committed token
//!  regex, …)       over the Vocabulary         and per draft
//! ```
//! The parser is the crate llguidance. What it keeps of an output is never rolled back: each draft goes
//! on from a clone, so that drafts that are rejected leave nothing behind.
//!
//! May import: protocol.
#![forbid(unsafe_code)]

mod compiler;
mod constraint;
mod place;
mod source;
#[cfg(test)]
mod tests;
mod vocabulary;

pub use compiler::{GRAMMAR_BYTES_MAX, GrammarCompiler, GrammarError};
pub use source::{FunctionCall, GrammarSource, WHITESPACE};
pub use vocabulary::Vocabulary;
