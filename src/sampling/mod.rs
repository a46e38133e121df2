//! From logits to tokens, without changing what the target would have said.

mod params;

pub use params::SamplingParams;
