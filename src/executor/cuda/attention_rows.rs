//! What each query row of a sequence is: its rotary position, its KV slot, what it sees.
#![forbid(unsafe_code)]

use super::ffi::kernels::ATTENTION_MASK_BITS;
use crate::protocol::{BLOCK_TOKENS, BlockId};

/// Longest run of queries that a mask can describe, in tokens.
pub const MASKED_QUERIES_MAX: usize = ATTENTION_MASK_BITS as usize;

/// One sequence's part of a step.
#[derive(Clone, Copy, Debug)]
pub struct SequenceShape<'a> {
    /// Slot position of the first input token.
    pub start: u32,
    /// Input tokens, drafts included.
    pub tokens: usize,
    /// How many of them, at the end, are drafts.
    pub drafts: usize,
    /// Parents of the drafts, see [`VerifyRow::tree`](crate::protocol::VerifyRow::tree).
    pub tree: Option<&'a [u32]>,
    /// How many tokens at the front are in the cache already and are no rows of the step: what was fed
    /// before of a tree that grows level by level, and the committed token before it.
    pub cached: usize,
    /// The sequence's blocks.
    pub blocks: &'a [BlockId],
}

impl SequenceShape<'_> {
    /// Input tokens that are no drafts.
    fn committed(&self) -> usize {
        self.tokens - self.drafts
    }

    /// One past the last slot position.
    pub fn end(&self) -> usize {
        self.start as usize + self.tokens
    }

    /// The leading rows that follow each other: all, or those before a tree.
    fn chain(&self) -> usize {
        if self.tree.is_some() { self.committed() } else { self.tokens }
    }

    /// Input index of the parent of draft `draft` of a tree.
    fn parent(&self, parents: &[u32], draft: usize) -> usize {
        self.committed() + parents[draft] as usize - 1
    }

    /// The rows in which each follows the one before, one run after the other; the first row of all but
    /// the first run follows an earlier one.
    pub fn runs(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let (tokens, committed) = (self.tokens, self.committed());
        let parents = self.tree.unwrap_or_default();
        let starts_run = move |draft: &usize| parents[*draft] as usize != *draft;
        let mut next = Some(0usize);
        std::iter::from_fn(move || {
            let begin = next?;
            let later = (begin + 1).saturating_sub(committed)..parents.len();
            next = later.into_iter().find(starts_run).map(|draft| committed + draft);
            Some(begin..next.unwrap_or(tokens))
        })
    }

    /// Appends the rotary position of each row.
    pub fn rotate(&self, positions: &mut Vec<i32>) {
        let first = positions.len();
        let start = self.start as i32;
        positions.extend(start..start + self.chain() as i32);
        for draft in 0..self.tokens - self.chain() {
            let parent = self.tree.map_or(0, |parents| self.parent(parents, draft));
            positions.push(positions[first + parent] + 1);
        }
    }

    /// Appends the KV slot of each row, block by block.
    pub fn assign_slots(&self, slots: &mut Vec<i32>) {
        let end = self.end() as u32;
        let mut at = self.start;
        while at < end {
            let number = at / BLOCK_TOKENS;
            let stop = end.min((number + 1) * BLOCK_TOKENS);
            let slot = (self.blocks[number as usize].0 * BLOCK_TOKENS + at % BLOCK_TOKENS) as i32;
            slots.extend(slot..slot + (stop - at) as i32);
            at = stop;
        }
    }

    /// Appends the masks of the rows `[begin, begin + queries)`, relative to `begin`; rows of
    /// a run that is too long for masks get none that matters.
    pub fn mask(&self, begin: usize, queries: usize, masks: &mut Vec<u64>) {
        let first = masks.len();
        let chain = self.chain().saturating_sub(begin).min(queries);
        masks.extend((1..=chain.min(MASKED_QUERIES_MAX)).map(low_bits));
        masks.resize(first + chain, 0);
        for own in chain..queries {
            let draft = begin + own - self.committed();
            let parent = self.tree.map_or(0, |parents| self.parent(parents, draft));
            let inherited = match parent.checked_sub(begin) {
                Some(row) => masks[first + row],
                None => 0, // a committed token before the segment: seen anyway
            };
            masks.push(if own < MASKED_QUERIES_MAX { inherited | 1 << own } else { 0 });
        }
    }
}

/// The lowest `count` bits, 1 to 64.
fn low_bits(count: usize) -> u64 {
    u64::MAX >> (MASKED_QUERIES_MAX - count)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Row by row, as the fields of [`SequenceShape`] define them: rotary position, slot, mask.
    fn by_definition(shape: &SequenceShape) -> Vec<(i32, i32, u64)> {
        let mut rows: Vec<(i32, i32, u64)> = Vec::new();
        for index in 0..shape.tokens {
            let at = shape.start + index as u32;
            let slot = (shape.blocks[(at / 16) as usize].0 * 16 + at % 16) as i32;
            let parent = match (index.checked_sub(shape.committed()), shape.tree) {
                (Some(draft), Some(parents)) => shape.committed() + parents[draft] as usize,
                _ => index,
            };
            // behind the token at `parent - 1`
            let (position, mask) = match parent.checked_sub(1) {
                Some(parent) => (rows[parent].0 + 1, rows[parent].2),
                None => (shape.start as i32, 0),
            };
            rows.push((position, slot, if index < 64 { mask | 1 << index } else { 0 }));
        }
        rows
    }

    /// Start, committed tokens, and a tree's parents or, with `false`, a chain of as many drafts.
    fn shapes() -> impl Strategy<Value = (u32, usize, Vec<u32>, bool)> {
        let parents = proptest::collection::vec(any::<u32>(), 0..30)
            .prop_map(|random| random.iter().zip(1..).map(|(parent, most)| parent % most).collect());
        (0..100u32, 1..90usize, parents, any::<bool>())
    }

    proptest! {
        #[test]
        fn rows_are_what_their_sequence_says((start, committed, parents, tree) in shapes()) {
            let blocks: Vec<BlockId> = (0..16).map(|block| BlockId((block * 7 + 3) % 16)).collect();
            let tokens = committed + parents.len();
            let shape = SequenceShape {
                start,
                tokens,
                drafts: parents.len(),
                tree: tree.then_some(&parents[..]),
                cached: 0, blocks: &blocks,
            };
            let (mut positions, mut slots, mut masks) = (vec![9], vec![9], vec![9]);
            shape.rotate(&mut positions);
            shape.assign_slots(&mut slots);
            shape.mask(0, tokens, &mut masks);
            let want = by_definition(&shape);
            for (index, (position, slot, mask)) in want.iter().enumerate() {
                prop_assert_eq!((positions[index + 1], slots[index + 1]), (*position, *slot));
                if tokens <= 64 || !tree {
                    prop_assert_eq!(masks[index + 1], *mask, "row {}", index);
                }
            }
            prop_assert_eq!([positions.len(), slots.len(), masks.len()], [want.len() + 1; 3]);
        }
    }
}
