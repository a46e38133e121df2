//! Bookkeeping of the paged KV cache. Holds no tensors.
//!
//! A [`BlockPool`] counts references to the blocks of one model's cache and indexes full
//! blocks by their tokens (the prefix cache). A [`BlockTable`] is one sequence's list of
//! blocks. The executor only ever sees block ids.
//!
//! May import: protocol.
#![forbid(unsafe_code)]

mod pool;
mod table;

pub use pool::{BlockPool, PoolUsage};
pub use table::BlockTable;
