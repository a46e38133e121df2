//! The paged KV cache's bookkeeping: which block belongs to whom. No tensors here.

/// A block's index in its pool.
pub type BlockId = u32;
