//! Models by their names on the Hugging Face hub, in the cache on this machine. Nothing here uses
//! the network.
#![forbid(unsafe_code)]

mod cache;
mod snapshot;
#[cfg(test)]
mod tests;

pub use cache::{CachedRepository, HubCache, hub_home};
pub use snapshot::{REQUIRED_FILES, WEIGHTS_FILE, WEIGHTS_INDEX, shards};
