//! Proofs by enumeration that verification is lossless, with a counterexample.
//!
//! - [`walks`]: for any drafts, verification emits the target's own path. Exhaustive over
//!   small trees and paths.
//! - [`coupling`]: with the noise integrated out, in exact fractions, the emitted
//!   distribution is the target's under pruning rules that depend on the drafted values.
//! - [`ratio_test`]: the counterexample. Standard rejection sampling is biased under such rules.
//! - [`decoding`]: the sampler on a toy model emits the same output with any drafting.

mod coupling;
mod decoding;
mod fraction;
mod ratio_test;
mod walks;
