//! Lossless sampling: from logits to tokens.
//!
//! Target and draft sample with the same function and the same noise ([`Sampler`]),
//! and a draft token is accepted iff it equals the target's own sample ([`walk_chain`],
//! [`walk_tree`]). The CUDA kernels implement the same specification. This code is
//! their oracle: the sections "specification" and "order" of the submodules bind both.
//!
//! May import: protocol.
#![forbid(unsafe_code)]

pub mod distribution;
mod draft_vocabulary;
mod filter;
pub mod float;
mod gumbel;
mod history;
#[cfg(test)]
mod losslessness;
pub mod noise;
pub mod philox;
mod sampler;
mod scan;
mod verify;

pub use draft_vocabulary::DraftVocabulary;
pub use history::{Occurrences, TokenHistory};
pub use sampler::{SampledToken, Sampler};
pub use verify::{walk_chain, walk_tree};
