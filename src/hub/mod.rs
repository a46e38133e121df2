//! Fetches models from the Hugging Face hub into the cache that [`model`](crate::model) looks in.
//!
//! A pull lists a repository's files, fetches those that the loader reads, the weights last, and
//! names the commit in the cache last of all. A file gets its name in the cache when it is whole
//! and its hash is right; until then it is beside it as `….incomplete`, where the next pull goes
//! on. Layout, locks and environment variables are those of `huggingface_hub`, so that both may
//! use one cache at the same time.
//!
//! May import: model.
#![forbid(unsafe_code)]

mod blob;
mod client;
mod error;
mod plan;
mod progress;
mod pull;
mod refusal;
mod settings;
mod store;
mod tag;
#[cfg(test)]
pub(crate) mod tests;

pub use error::HubError;
pub use progress::{OnPull, PullEvent};
pub use pull::{PullReport, PulledFile, pull};
pub use settings::{HubSettings, Patience, Token};
