//! Attention of a few queries of one sequence and one KV head over the paged cache.
//!
//! Keys lie transposed within a block (`[head_dim][block_tokens]`), values straight
//! (`[block_tokens][head_dim]`): scores of sixteen positions and outputs of sixteen
//! dimensions are sums down a column of registers, position after position.
//! A query sees a prefix of slots and, in a tree, its ancestors' slots; its scores
//! are packed in that order first, so that a tree node computes exactly what the
//! chain of its ancestors would.

use super::STEP;
use super::vector::{Vector, exp, max_lanes, sum_lanes};
use crate::protocol::BlockId;

/// Queries in the largest tile: as in the matrix product, what sixteen registers hold.
pub(crate) const QUERIES_MAX: usize = 6;

/// One query head of one input token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Query<'a> {
    /// `head_dim` floats.
    pub(crate) query: *const f32,
    /// `head_dim` floats; no other thread touches them meanwhile.
    pub(crate) out: *mut f32,
    /// Slots `0..prefix` are seen; at least one.
    pub(crate) prefix: usize,
    /// Further slots that are seen, ascending, none below `prefix`.
    pub(crate) tail: &'a [u32],
}

impl Query<'_> {
    /// Slots that are seen.
    fn seen(&self) -> usize {
        self.prefix + self.tail.len()
    }

    /// The slot of the `index`-th position that is seen.
    #[inline(always)]
    fn slot(&self, index: usize) -> usize {
        if index < self.prefix { index } else { self.tail[index - self.prefix] as usize }
    }

    /// One past the last slot that is seen.
    fn reach(&self) -> usize {
        self.tail.last().map_or(self.prefix, |&slot| slot as usize + 1)
    }
}

/// A tile of queries over one KV head's blocks.
#[derive(Debug)]
pub(crate) struct AttentionTile<'a> {
    /// One to [`QUERIES_MAX`].
    pub(crate) queries: &'a [Query<'a>],
    /// The sequence's blocks; cover every query's slots.
    pub(crate) blocks: &'a [BlockId],
    /// The head's keys in block 0; the values follow the keys.
    pub(crate) cache: *const f32,
    /// Floats from one block to the next.
    pub(crate) block_stride: usize,
    /// Positions in a block, a multiple of [`STEP`].
    pub(crate) block_tokens: usize,
    /// Width of a head, a multiple of [`STEP`].
    pub(crate) head_dim: usize,
    /// Factor on the scores.
    pub(crate) scale: f32,
    /// Scratch of `QUERIES_MAX` rows; a row holds all slots of `blocks`.
    pub(crate) scores: *mut f32,
    /// Floats between two rows of `scores`.
    pub(crate) scores_stride: usize,
}

super::entry! {
    /// Computes an [`AttentionTile`].
    pub(crate) fn attend(&AttentionTile<'_>) = attend_body
}

#[inline(always)]
unsafe fn attend_body<V: Vector, const N: usize>(tile: &AttentionTile<'_>) {
    // SAFETY: the caller's contract; each arm's Q is the number of queries.
    unsafe {
        match tile.queries.len() {
            1 => attend_queries::<V, N, 1>(tile),
            2 => attend_queries::<V, N, 2>(tile),
            3 => attend_queries::<V, N, 3>(tile),
            4 => attend_queries::<V, N, 4>(tile),
            5 => attend_queries::<V, N, 5>(tile),
            count => {
                assert_eq!(count, QUERIES_MAX, "a tile of at most {QUERIES_MAX} queries");
                attend_queries::<V, N, QUERIES_MAX>(tile);
            }
        }
    }
}

#[inline(always)]
unsafe fn attend_queries<V: Vector, const N: usize, const Q: usize>(tile: &AttentionTile<'_>) {
    // SAFETY: the caller's contract; the slots of a tail are not below their packed indices.
    unsafe {
        scores::<V, N, Q>(tile);
        let mut totals = [0.0; Q];
        for q in 0..Q {
            let query = &tile.queries[q];
            let row = tile.scores.add(q * tile.scores_stride);
            for (index, &slot) in query.tail.iter().enumerate() {
                *row.add(query.prefix + index) = *row.add(slot as usize);
            }
            totals[q] = softmax::<V, N>(row, query.seen());
        }
        values::<V, N, Q>(tile, &totals);
    }
}

/// `scores[q][slot]` for all slots of the blocks that any query reaches, unseen ones included.
#[inline(always)]
unsafe fn scores<V: Vector, const N: usize, const Q: usize>(tile: &AttentionTile<'_>) {
    let mut reach = 0;
    for query in tile.queries {
        reach = reach.max(query.reach());
    }
    for start in (0..reach).step_by(STEP) {
        let block = tile.blocks[start / tile.block_tokens].index();
        // SAFETY: the block is in the pool, and `start` is STEP slots of it; a score row
        // holds all slots of the blocks.
        unsafe {
            let keys = tile.cache.add(block * tile.block_stride + start % tile.block_tokens);
            let mut sums = [[V::splat(0.0); N]; Q];
            for dim in 0..tile.head_dim {
                let keys = keys.add(dim * tile.block_tokens);
                for n in 0..N {
                    let key = V::load(keys.add(n * V::LANES));
                    for q in 0..Q {
                        let query = V::splat(*tile.queries[q].query.add(dim));
                        sums[q][n] = sums[q][n].plus_product(query, key);
                    }
                }
            }
            for q in 0..Q {
                let row = tile.scores.add(q * tile.scores_stride + start);
                for n in 0..N {
                    sums[q][n].mul(V::splat(tile.scale)).store(row.add(n * V::LANES));
                }
            }
        }
    }
}

/// Replaces `count` scores by their exponentials less the maximum; returns the sum.
/// The row has room up to the next multiple of STEP.
#[inline(always)]
unsafe fn softmax<V: Vector, const N: usize>(row: *mut f32, count: usize) -> f32 {
    let padded = count.next_multiple_of(STEP);
    // SAFETY: the row has `padded` floats.
    unsafe {
        for index in count..padded {
            *row.add(index) = f32::NEG_INFINITY;
        }
        let mut largest = V::splat(f32::NEG_INFINITY);
        for start in (0..padded).step_by(V::LANES) {
            largest = largest.max(V::load(row.add(start)));
        }
        let less = V::splat(-max_lanes(largest));
        for start in (0..padded).step_by(V::LANES) {
            exp(V::load(row.add(start)).add(less)).store(row.add(start));
        }
        for index in count..padded {
            *row.add(index) = 0.0;
        }
        let mut total = V::splat(0.0);
        for start in (0..padded).step_by(V::LANES) {
            total = total.add(V::load(row.add(start)));
        }
        sum_lanes(total)
    }
}

/// `out[q] = Σ weight[q][i] · value[slot(i)] / total[q]`: together over the slots that all
/// queries see in place, then each query over its own rest.
#[inline(always)]
unsafe fn values<V: Vector, const N: usize, const Q: usize>(tile: &AttentionTile<'_>, totals: &[f32; Q]) {
    let mut common = tile.queries[0].prefix;
    for query in &tile.queries[1..] {
        common = common.min(query.prefix);
    }
    for dim in (0..tile.head_dim).step_by(STEP) {
        // SAFETY: the caller's contract; `dim` is STEP floats of a head.
        unsafe {
            let mut sums = common_values::<V, N, Q>(tile, common, dim);
            for q in 0..Q {
                let query = &tile.queries[q];
                let weights = tile.scores.add(q * tile.scores_stride);
                for index in common..query.seen() {
                    let value = value_at(tile, query.slot(index)).add(dim);
                    let weight = V::splat(*weights.add(index));
                    for n in 0..N {
                        sums[q][n] = sums[q][n].plus_product(weight, V::load(value.add(n * V::LANES)));
                    }
                }
                let total = V::splat(totals[q]);
                for n in 0..N {
                    sums[q][n].div(total).store(query.out.add(dim + n * V::LANES));
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn common_values<V: Vector, const N: usize, const Q: usize>(
    tile: &AttentionTile<'_>,
    common: usize,
    dim: usize,
) -> [[V; N]; Q] {
    // SAFETY: the caller's contract; slots below `common` are seen by every query.
    unsafe {
        let mut sums = [[V::splat(0.0); N]; Q];
        for start in (0..common).step_by(tile.block_tokens) {
            let values = value_at(tile, start).add(dim);
            let weights = tile.scores.add(start);
            for index in 0..tile.block_tokens.min(common - start) {
                for n in 0..N {
                    let value = V::load(values.add(index * tile.head_dim + n * V::LANES));
                    for q in 0..Q {
                        let weight = V::splat(*weights.add(q * tile.scores_stride + index));
                        sums[q][n] = sums[q][n].plus_product(weight, value);
                    }
                }
            }
        }
        sums
    }
}

/// The value of a slot.
#[inline(always)]
unsafe fn value_at(tile: &AttentionTile<'_>, slot: usize) -> *const f32 {
    let block = tile.blocks[slot / tile.block_tokens].index();
    let within = tile.head_dim * (tile.block_tokens + slot % tile.block_tokens);
    // SAFETY: the block is in the pool; the values follow the keys.
    unsafe { tile.cache.add(block * tile.block_stride + within) }
}
