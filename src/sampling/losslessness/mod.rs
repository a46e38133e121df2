//! Proofs by enumeration that verification changes nothing, and what would.
//!
//! - [`walks`]: whatever the drafts, the walk emits the target's own path. Exhaustive over
//!   small trees and paths.
//! - [`coupling`]: with the noise integrated out, in exact fractions, the emitted
//!   distribution is the target's under pruning rules that look at the drafted values.
//! - [`ratio_test`]: the contrast. The usual rejection rule is biased under such rules.
//! - [`decoding`]: the sampler itself on a toy model: same output with any drafting.

mod coupling;
mod decoding;
mod fraction;
mod ratio_test;
mod walks;
