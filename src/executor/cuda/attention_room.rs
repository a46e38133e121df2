//! What a step's attention may use.
#![forbid(unsafe_code)]

use super::attention_chunks::{Cut, chunks_of};

/// Work items, counted per KV head, up to which small tiles are used where a large one would
/// hold more queries: all run at once, two thread blocks on each processor of a large GPU, so
/// that a second tile costs no time, while a large one takes longer than a small one.
const SMALL_TILE_ITEMS_MAX: usize = 256;

/// A model's heads, the room that was set aside for partial results, and when tiles are small.
#[derive(Clone, Copy, Debug)]
pub struct AttentionRoom {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Rows of partial results that fit.
    pub partial_rows: usize,
    /// Work items, counted per KV head, up to which a step uses small tiles. Results are the
    /// same with either tile.
    pub small_items_max: usize,
}

impl AttentionRoom {
    /// Room for `masked_rows` query rows in contexts of up to `context_tokens`.
    pub fn for_rows(
        heads: usize,
        kv_heads: usize,
        masked_rows: usize,
        context_tokens: usize,
    ) -> AttentionRoom {
        let chunks = Cut::of(chunks_of(kv_heads), context_tokens as u32).count();
        AttentionRoom {
            heads,
            kv_heads,
            partial_rows: if chunks > 1 { masked_rows * heads * chunks } else { 0 },
            small_items_max: SMALL_TILE_ITEMS_MAX,
        }
    }

    /// Query heads that share a KV head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// How a context that ends at `end` is cut.
    pub fn cut(&self, end: usize) -> Cut {
        Cut::of(chunks_of(self.kv_heads), end as u32)
    }

    /// Partial results that a run of queries makes over a context cut into `chunks`.
    pub fn partial_rows_of(&self, queries: usize, chunks: usize) -> usize {
        if chunks > 1 { queries * self.heads * chunks } else { 0 }
    }
}
