//! The paged KV cache's bookkeeping: which block belongs to whom. No tensors here.
//!
//! A [`BlockPool`] counts references to the blocks of one model's cache and keeps
//! finished blocks findable by their tokens (the prefix cache). A [`BlockTable`] is
//! one sequence's list of blocks. Both are pure bookkeeping: the executor only ever
//! sees block ids.
#![forbid(unsafe_code)]

mod pool;
mod table;

pub use pool::{BlockPool, PoolUsage};
pub use table::BlockTable;
