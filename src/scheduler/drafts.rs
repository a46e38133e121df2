//! The scheduler's side of drafting: what the drafter is fed, and the blocks of its cache.
//!
//! A drafter with a KV pool (a draft model) has seen some of a sequence's committed tokens and is
//! fed the rest before it proposes. One without is given the last token, and all tokens if it
//! needs them; it never lags behind and holds no blocks. A draft head, which reads the target's
//! hidden states, is one of these: it shares the target's blocks.

use super::rows::RowPool;
use super::sequence::Sequence;
use crate::kv::{BlockPool, PoolUsage};
use crate::protocol::{DrafterNeeds, SequenceInput};

/// The drafter's caches of all sequences.
#[derive(Debug)]
pub(super) struct Drafts {
    needs: Option<DrafterNeeds>,
    pub pool: BlockPool,
    pub rows: RowPool,
}

impl Drafts {
    pub fn new(needs: Option<DrafterNeeds>) -> Drafts {
        let blocks = needs.as_ref().map_or(0, |needs| needs.kv_blocks);
        Drafts { needs, pool: BlockPool::new(blocks), rows: RowPool::default() }
    }

    /// Whether the drafter keeps a cache that the scheduler manages.
    pub fn has_cache(&self) -> bool {
        self.needs.as_ref().is_some_and(|needs| needs.kv_blocks > 0)
    }

    pub fn usage(&self) -> PoolUsage {
        self.pool.usage()
    }

    /// Committed tokens that the drafter has to be fed before it proposes; at least the last one.
    pub fn lag(&self, sequence: &Sequence) -> u32 {
        if self.has_cache() { sequence.len() - sequence.draft.computed } else { 1 }
    }

    /// Grows the sequence's draft cache for `drafts` drafts; returns how many there is room for.
    /// The last draft is proposed but never fed back.
    pub fn reserve(&mut self, sequence: &mut Sequence, drafts: u32) -> u32 {
        if !self.has_cache() {
            return drafts;
        }
        self.adopt_prefix(sequence);
        let len = sequence.len();
        if sequence.draft.table.grow(&mut self.pool, len + drafts - 1) {
            drafts
        } else {
            (sequence.draft.table.capacity_tokens() + 1).saturating_sub(len)
        }
    }

    /// Starts an empty draft cache with what is cached already of the sequence's tokens.
    fn adopt_prefix(&mut self, sequence: &mut Sequence) {
        if sequence.draft.computed == 0 {
            let draft = &mut sequence.draft;
            draft.table.release(&mut self.pool);
            draft.computed = draft.table.adopt_prefix(&mut self.pool, &sequence.tokens);
        }
    }

    /// Where the draft cache ends once it has followed the target's prefill up to `end`, in
    /// chunks of at most `chunk_max` tokens; `None` where there is no room, or no cache.
    pub fn follow_prefill(&mut self, sequence: &mut Sequence, end: u32, chunk_max: u32) -> Option<u32> {
        if !self.has_cache() {
            return None;
        }
        self.adopt_prefix(sequence);
        let end = end.min(sequence.draft.computed + chunk_max);
        sequence.draft.table.grow(&mut self.pool, end).then_some(end)
    }

    /// Where the input of a seed that proposes ends, given chunks of at most `chunk_max` tokens:
    /// at the last committed token, or earlier while the cache is still catching up.
    pub fn catch_up_end(&self, sequence: &Sequence, chunk_max: u32) -> u32 {
        let len = sequence.len();
        if self.has_cache() { len.min(sequence.draft.computed + chunk_max) } else { len }
    }

    /// First token that a seed has to carry.
    pub fn start(&self, sequence: &Sequence) -> u32 {
        if self.has_cache() { sequence.draft.computed } else { sequence.len() - 1 }
    }

    /// The input of a seed: committed tokens `[start, end)`.
    pub fn input(&mut self, sequence: &Sequence, start: u32, end: u32) -> SequenceInput {
        let (mut with_tokens, mut in_target_blocks) = (false, false);
        if let Some(needs) = &self.needs {
            (with_tokens, in_target_blocks) = (needs.tokens, needs.reads_hidden_states());
        }
        let cache = if in_target_blocks { &sequence.target } else { &sequence.draft };
        sequence.draft_input(&mut self.rows, cache, [start, end], with_tokens)
    }

    pub fn release(&mut self, sequence: &mut Sequence) {
        sequence.draft.release(&mut self.pool);
    }

    /// Moves the mark after a step and gives back blocks that the sequence does not need.
    pub fn settle(&mut self, sequence: &mut Sequence) {
        let (tokens, computed) = (sequence.len(), sequence.draft.computed);
        sequence.draft.settle(&mut self.pool, tokens, computed);
    }

    /// Inserts newly filled blocks into the prefix cache.
    pub fn publish(&mut self, sequence: &mut Sequence) {
        sequence.draft.publish(&mut self.pool, &sequence.tokens);
    }
}
