//! From logits to tokens, without changing what the target would have said.
//!
//! Target and draft choose by the same function under the same noise ([`Sampler`]),
//! and a draft is accepted iff it is what the target chooses ([`walk_chain`],
//! [`walk_tree`]). On a GPU the same happens in kernels; this code is their oracle,
//! and the sections "specification" and "order" of the submodules bind both.
#![forbid(unsafe_code)]

pub mod distribution;
mod filter;
pub mod float;
mod history;
#[cfg(test)]
mod losslessness;
pub mod noise;
pub mod philox;
mod race;
mod sampler;
mod scan;
mod verify;

pub use history::{Occurrences, TokenHistory};
pub use sampler::{Choice, Sampler};
pub use verify::{walk_chain, walk_tree};
