//! The paged cache of one model's keys and values.
//!
//! Numbers are kept in `f32`: the executor is the oracle for the GPU's, and a
//! rounded cache alone would move logits by more than the golden files allow (0.01).
//! For the embedded target that is 6 KiB a token. One KV head's part of a block is one
//! run of memory: keys transposed, `[head_dim][block_tokens]`, then values,
//! `[block_tokens][head_dim]`, as [`super::kernels::attend`] reads them.

use crate::protocol::BlockId;

use super::arena::{Arena, Piece, padded_bytes};
use super::rows::SharedRows;

/// Where things lie in a layer's pool, in floats.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheShape {
    /// Blocks in the pool.
    pub(crate) blocks: usize,
    /// Positions in a block.
    pub(crate) block_tokens: usize,
    /// Heads.
    pub(crate) kv_heads: usize,
    /// Width of a head.
    pub(crate) head_dim: usize,
}

impl CacheShape {
    /// Keys and values of one head in one block.
    fn head_stride(&self) -> usize {
        2 * self.head_dim * self.block_tokens
    }

    /// From one block to the next.
    pub(crate) fn block_stride(&self) -> usize {
        self.kv_heads * self.head_stride()
    }

    /// From the layer's start to a head of block 0.
    pub(crate) fn head_offset(&self, kv_head: usize) -> usize {
        kv_head * self.head_stride()
    }
}

/// One model's cache.
pub(crate) struct KvCache {
    /// Shape of every layer's pool.
    pub(crate) shape: CacheShape,
    arena: Arena,
    layers: Vec<Piece>,
}

impl KvCache {
    /// An empty cache. Memory is taken from the system when it is first written.
    pub(crate) fn new(shape: CacheShape, layers: usize) -> std::io::Result<KvCache> {
        let words = shape.blocks * shape.block_stride();
        let mut arena = Arena::new(layers * padded_bytes(words))?;
        let layers = (0..layers).map(|_| arena.take(words)).collect();
        Ok(KvCache { shape, arena, layers })
    }

    /// Size in bytes, all layers.
    pub(crate) fn bytes(&self) -> usize {
        self.arena.bytes()
    }

    /// One layer's pool.
    pub(crate) fn layer(&self, layer: usize) -> &[f32] {
        self.arena.words(self.layers[layer])
    }

    /// One layer's pool, to write.
    pub(crate) fn layer_mut(&mut self, layer: usize) -> &mut [f32] {
        self.arena.words_mut(self.layers[layer])
    }

    /// Copies keys and values of all layers from one slot of a sequence to another.
    pub(crate) fn copy_slot(&mut self, blocks: &[BlockId], from: usize, to: usize) {
        let CacheShape { block_tokens, kv_heads, head_dim, .. } = self.shape;
        let shape = self.shape;
        let locate = |slot: usize, head: usize| {
            let block = blocks[slot / block_tokens].index();
            (block * shape.block_stride() + shape.head_offset(head), slot % block_tokens)
        };
        for layer in 0..self.layers.len() {
            let pool = self.layer_mut(layer);
            for head in 0..kv_heads {
                let ((from, from_slot), (to, to_slot)) = (locate(from, head), locate(to, head));
                for dim in 0..head_dim {
                    pool[to + dim * block_tokens + to_slot] = pool[from + dim * block_tokens + from_slot];
                }
                let values = from + (block_tokens + from_slot) * head_dim;
                pool.copy_within(values..values + head_dim, to + (block_tokens + to_slot) * head_dim);
            }
        }
    }
}

/// Writes one token's key and value of one head, whose part of its block begins at word `head`.
///
/// # Safety
/// The pool is alive, and no other thread touches this slot of this head meanwhile.
pub(crate) unsafe fn write_slot(
    pool: SharedRows,
    head: usize,
    block_tokens: usize,
    slot: usize,
    key: &[f32],
    value: &[f32],
) {
    let head_dim = key.len();
    for (dim, number) in key.iter().enumerate() {
        // SAFETY: the caller's contract; `at` checks that the word is in the pool.
        unsafe { *pool.at(0, head + dim * block_tokens + slot) = *number };
    }
    let first = head + (block_tokens + slot) * head_dim;
    // SAFETY: as above.
    unsafe { pool.slice_mut(0, first..first + head_dim) }.copy_from_slice(value);
}
