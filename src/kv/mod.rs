//! The paged KV cache's bookkeeping: which block belongs to whom. No tensors here.
//!
//! A [`BlockPool`] counts references to the blocks of one model's cache and keeps
//! finished blocks findable by their tokens (the prefix cache). A [`BlockTable`] is
//! one sequence's list of blocks. Both are pure bookkeeping: the executor only ever
//! sees block ids.

mod pool;
mod table;

pub use pool::{BlockPool, PoolUsage};
pub use table::BlockTable;

/// A block's index in its pool.
pub type BlockId = u32;

/// Tokens in one block. A constant, because kernels are compiled for it.
pub const BLOCK_TOKENS: u32 = 16;

/// Blocks that hold `tokens` tokens.
pub fn blocks_for(tokens: u32) -> u32 {
    tokens.div_ceil(BLOCK_TOKENS)
}
