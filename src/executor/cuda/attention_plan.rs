//! Cuts one step's attention into work, once for all layers (csrc/attention.h).
//!
//! Tiles and chunks have borders fixed by query number and position alone, never by the
//! batch, so that a sequence's result does not depend on its batch mates (invariant 1).
#![forbid(unsafe_code)]

use super::attention_items::{Cutter, MaskedRun, causal_items, pays_large};
pub use super::attention_room::AttentionRoom;
use super::attention_rows::MASKED_QUERIES_MAX;
pub use super::attention_rows::SequenceShape;
use super::ffi::kernels::{AttentionItem, AttentionSegment};
use crate::protocol::BLOCK_TOKENS;

/// One step's attention: everything that the kernels read besides queries, keys and values.
/// Reused from step to step.
#[derive(Debug)]
pub struct AttentionPlan {
    room: AttentionRoom,
    /// Runs of query rows.
    pub segments: Vec<AttentionSegment>,
    /// Work of the decode kernel.
    pub items: Vec<AttentionItem>,
    /// One item of each tile whose chunks are merged.
    pub merges: Vec<AttentionItem>,
    /// Work of the prefill kernel.
    pub prefill_items: Vec<AttentionItem>,
    /// What each query row sees of its own segment.
    pub masks: Vec<u64>,
    /// Block tables, one sequence after the other.
    pub tables: Vec<i32>,
    /// Rotary position of each row.
    pub positions: Vec<i32>,
    /// KV slot of each row.
    pub slots: Vec<i32>,
    /// Whether the decode kernel's large tile is used.
    pub large: bool,
    /// The segments of the decode kernel.
    masked: Vec<MaskedRun>,
    partial_rows_planned: usize,
    partial_rows_for_trees: usize,
}

impl AttentionPlan {
    /// An empty plan.
    pub fn new(room: AttentionRoom) -> AttentionPlan {
        AttentionPlan {
            room,
            segments: Vec::new(),
            items: Vec::new(),
            merges: Vec::new(),
            prefill_items: Vec::new(),
            masks: Vec::new(),
            tables: Vec::new(),
            positions: Vec::new(),
            slots: Vec::new(),
            large: false,
            masked: Vec::new(),
            partial_rows_planned: 0,
            partial_rows_for_trees: 0,
        }
    }

    /// Plans a step of these sequences, whose query rows follow each other.
    ///
    /// # Panics
    /// When trees need more room than there is: their tokens together are at most the masked
    /// rows that the room was made for.
    pub fn build<'a>(&mut self, sequences: impl Iterator<Item = SequenceShape<'a>> + Clone) {
        self.clear();
        let trees = sequences.clone().filter(|sequence| sequence.tree.is_some());
        self.partial_rows_for_trees = trees.map(|tree| self.partial_rows_of_all(&tree)).sum();
        for sequence in sequences {
            self.add(&sequence);
        }
        self.large = pays_large(&self.room, &self.masked);
        Cutter::new(&self.room, self.large).cut(&mut self.masked, &mut self.items, &mut self.merges);
    }

    fn clear(&mut self) {
        self.segments.clear();
        self.items.clear();
        self.merges.clear();
        self.prefill_items.clear();
        self.masks.clear();
        self.tables.clear();
        self.positions.clear();
        self.slots.clear();
        self.masked.clear();
        self.partial_rows_planned = 0;
    }

    /// Query rows so far.
    pub fn rows(&self) -> usize {
        self.positions.len()
    }

    fn add(&mut self, sequence: &SequenceShape) {
        if sequence.cached > 0 {
            return self.add_level(sequence);
        }
        let first_row = self.rows();
        let table = self.add_table(sequence);
        sequence.rotate(&mut self.positions);
        sequence.assign_slots(&mut self.slots);

        // A tree behind a long run of committed tokens has a segment of its own.
        let tail =
            if sequence.tokens > MASKED_QUERIES_MAX && sequence.tree.is_some() { sequence.drafts } else { 0 };
        let head = sequence.tokens - tail;
        let segment = |begin: usize, queries: usize| AttentionSegment {
            first_row: (first_row + begin) as i32,
            queries: queries as i32,
            start: (sequence.start as usize + begin) as i32,
            table: table as i32,
        };
        if sequence.tree.is_some() {
            self.partial_rows_for_trees -= self.partial_rows_of_all(sequence);
            if tail == 0 {
                sequence.mask(0, head, &mut self.masks);
                return self.add_runs(sequence, segment(0, head));
            }
        }
        let cut = self.room.cut(sequence.end());
        sequence.mask(0, head, &mut self.masks);
        if self.takes_masks(head, cut.count()) {
            let end = sequence.end() - tail;
            let cut = if tail == 0 { cut } else { self.room.cut(end) };
            self.add_masked(MaskedRun::new(segment(0, head), cut, end));
        } else {
            self.segments.push(segment(0, head));
            self.prefill_items.extend(causal_items(&self.room, segment(0, head)));
        }
        if tail > 0 {
            sequence.mask(head, tail, &mut self.masks);
            self.add_runs(sequence, segment(head, tail));
        }
    }

    /// Adds the last rows of a tree, whose masks are relative to the start of `all` of them, run by run:
    /// each meets its keys in the order of the text, whichever slots they are in.
    fn add_runs(&mut self, sequence: &SequenceShape, all: AttentionSegment) {
        let before = sequence.tokens - all.queries as usize;
        let start = all.start as usize;
        for run in sequence.runs() {
            // the first run ends in the tree, whose first draft follows the last committed token
            let (begin, end) = (run.start.saturating_sub(before), run.end - before);
            let last = self.masks[all.first_row as usize + end - 1];
            let seen = start + last.count_ones() as usize;
            let segment = AttentionSegment {
                first_row: all.first_row + begin as i32,
                queries: (end - begin) as i32,
                ..all
            };
            let run = MaskedRun::new(segment, self.room.cut(seen), seen);
            // the slots of a path without gaps are its positions
            let is_in_place = last.trailing_ones() == last.count_ones();
            self.add_masked(if is_in_place { run } else { run.gathered() });
        }
    }

    /// Appends a sequence's block table; returns where it starts.
    fn add_table(&mut self, sequence: &SequenceShape) -> usize {
        let table = self.tables.len();
        let blocks = &sequence.blocks[..sequence.end().div_ceil(BLOCK_TOKENS as usize)];
        self.tables.extend(blocks.iter().map(|block| block.0 as i32));
        table
    }

    /// Adds the last rows of a tree whose other tokens are in the cache. Their masks begin with the
    /// tree, so their segment starts there as well.
    fn add_level(&mut self, sequence: &SequenceShape) {
        let first_row = self.rows();
        let table = self.add_table(sequence);
        let (end, cached) = (sequence.end(), sequence.cached);
        sequence.rotate(&mut self.positions);
        self.positions.drain(first_row..first_row + cached);
        sequence.assign_slots(&mut self.slots);
        self.slots.drain(first_row..first_row + cached);
        sequence.mask(0, sequence.tokens, &mut self.masks);
        self.masks.drain(first_row..first_row + cached);
        self.partial_rows_for_trees -= self.partial_rows_of_all(sequence);
        let segment = AttentionSegment {
            first_row: first_row as i32,
            queries: (sequence.tokens - cached) as i32,
            start: sequence.start as i32,
            table: table as i32,
        };
        self.add_masked(MaskedRun::new(segment, self.room.cut(end), end));
    }

    /// Partial results that all rows of a sequence make.
    fn partial_rows_of_all(&self, sequence: &SequenceShape) -> usize {
        let rows = sequence.tokens - sequence.cached;
        self.room.partial_rows_of(rows, self.room.cut(sequence.end()).count())
    }

    /// Whether a run of a chain goes to the decode kernel: it is short and its partial results find
    /// room. If not, it takes the prefill kernel; a tree can't, so trees go first.
    fn takes_masks(&self, queries: usize, chunks: usize) -> bool {
        let needed = self.room.partial_rows_of(queries, chunks);
        let free = self.room.partial_rows - self.partial_rows_planned.min(self.room.partial_rows);
        let fits = needed == 0 || needed + self.partial_rows_for_trees <= free;
        queries <= MASKED_QUERIES_MAX && fits
    }

    fn add_masked(&mut self, run: MaskedRun) {
        self.partial_rows_planned += run.partial_rows(&self.room);
        self.segments.push(run.segment);
        self.masked.push(run);
    }
}

#[cfg(test)]
mod tests {
    use super::super::attention_chunks::CHUNK_TOKENS_MAX;
    use super::*;
    use crate::protocol::BlockId;

    fn blocks(count: u32) -> Vec<BlockId> {
        (0..count).map(|block| BlockId(100 + block)).collect()
    }

    fn plan() -> AttentionPlan {
        AttentionPlan::new(AttentionRoom::for_rows(32, 8, 1024, 32_768))
    }

    fn chain(start: u32, tokens: usize, blocks: &[BlockId]) -> SequenceShape<'_> {
        SequenceShape { start, tokens, drafts: 0, tree: None, cached: 0, blocks }
    }

    #[test]
    fn chunks_cover_every_position_once_and_start_where_position_says() {
        let blocks = blocks(2048);
        for end in [1u32, 16, 511, 512, 513, 4095, 4096, 4097, 8192, 8193, 20_000, 32_768] {
            let mut plan = plan();
            plan.build([chain(end - 1, 1, &blocks)].into_iter());
            let mut items = plan.items.clone();
            items.sort_by_key(|item| item.chunk);
            assert_eq!(items.len(), plan.room.cut(end as usize).count(), "end {end}");
            let mut next = 0;
            for item in &items {
                assert_eq!(item.kv_begin, next);
                assert_eq!(item.kv_begin % 64, 0);
                assert!(item.kv_end - item.kv_begin <= CHUNK_TOKENS_MAX as i32);
                next = item.kv_end;
            }
            assert_eq!(next, end as i32);
        }
    }

    #[test]
    fn a_sequence_is_cut_the_same_alone_and_among_others() {
        let blocks = blocks(2048);
        let mut alone = plan();
        alone.build([chain(5000, 1, &blocks)].into_iter());
        let mut among = plan();
        among.build([3u32, 700, 31_000, 5000].into_iter().map(|start| chain(start, 1, &blocks)));
        let borders = |plan: &AttentionPlan, row: i32| {
            let mut borders: Vec<_> = plan
                .items
                .iter()
                .filter(|item| item.segment.first_row == row)
                .map(|item| (item.kv_begin, item.kv_end))
                .collect();
            borders.sort();
            borders
        };
        assert_eq!(borders(&alone, 0), borders(&among, 3));
    }

    #[test]
    fn a_draft_of_a_tree_sees_its_ancestors_and_no_sibling() {
        let blocks = blocks(8);
        // committed c; drafts 0 and 1 follow it, 2 follows 0, 3 follows 2, 4 follows 1
        let tree = [0, 0, 1, 3, 2];
        let shape =
            SequenceShape { start: 40, tokens: 6, drafts: 5, tree: Some(&tree), cached: 0, blocks: &blocks };
        let mut plan = plan();
        plan.build([shape].into_iter());
        assert_eq!(plan.masks, [0b1, 0b11, 0b101, 0b1011, 0b11011, 0b100101]);
        assert_eq!(plan.positions, [40, 41, 41, 42, 43, 42]);
        assert_eq!(plan.slots, [1640, 1641, 1642, 1643, 1644, 1645]);
    }

    #[test]
    fn a_level_of_a_tree_is_its_last_rows_behind_a_cached_front() {
        let blocks = blocks(64);
        let tree = [0, 0, 1, 3, 2];
        let whole =
            SequenceShape { start: 700, tokens: 6, drafts: 5, tree: Some(&tree), cached: 0, blocks: &blocks };
        let (mut all, mut level) = (plan(), plan());
        all.build([whole].into_iter());
        level.build([chain(3, 2, &blocks), SequenceShape { cached: 4, ..whole }].into_iter());
        assert_eq!(level.masks[2..], all.masks[4..]);
        assert_eq!((&level.positions[2..], &level.slots[2..]), (&all.positions[4..], &all.slots[4..]));
        let segment = level.segments[1];
        assert_eq!((segment.first_row, segment.queries, segment.start), (2, 2, 700));
        let mut ends: Vec<_> = level.items.iter().map(|item| (item.segment.first_row, item.kv_end)).collect();
        ends.sort_unstable();
        assert_eq!(ends, [(0, 5), (2, 512), (2, 706)], "over all slots of the tree, which masks choose from");
    }

    #[test]
    fn the_runs_of_a_tree_meet_their_keys_in_the_order_of_the_text() {
        let blocks = blocks(64);
        // committed c; 0 and 1 follow it, 2 follows 0, 3 follows 2, 4 follows 1
        let tree = [0, 0, 1, 3, 2];
        let shape =
            SequenceShape { start: 700, tokens: 6, drafts: 5, tree: Some(&tree), cached: 0, blocks: &blocks };
        let mut plan = plan();
        plan.build([shape].into_iter());
        let runs: Vec<_> = plan
            .items
            .iter()
            .filter(|item| item.chunk + 1 == item.chunks)
            .map(|item| (item.segment.first_row, item.segment.queries, item.kv_end, item.gathered))
            .collect();
        // c and 0 are in place; 1; 2 and 3 behind 0; 4 behind 1
        assert_eq!(runs, [(0, 2, 702, 0), (2, 1, 702, 1), (3, 2, 704, 1), (5, 1, 703, 1)]);
        assert!(plan.segments.iter().all(|segment| segment.start == 700), "masks begin with the tree");
    }

    #[test]
    fn a_tree_that_is_a_chain_is_planned_like_one() {
        let blocks = blocks(64);
        let tree = [0, 1, 2];
        let shape =
            SequenceShape { start: 700, tokens: 5, drafts: 3, tree: Some(&tree), cached: 0, blocks: &blocks };
        let (mut tree, mut as_chain) = (plan(), plan());
        tree.build([shape].into_iter());
        as_chain.build([chain(700, 5, &blocks)].into_iter());
        assert_eq!(format!("{:?}", tree.items), format!("{:?}", as_chain.items));
        assert_eq!(tree.masks, as_chain.masks);
    }

    #[test]
    fn tiles_are_large_when_queries_do_not_fit_small_ones_and_there_is_work_for_all_processors() {
        let blocks = blocks(256);
        let large = |sequences: usize, tokens: usize| {
            let mut plan = plan();
            plan.build(std::iter::repeat_n(chain(1000, tokens, &blocks), sequences));
            let rows = if plan.large { 32 } else { 16 };
            let tiles = (tokens * 4).div_ceil(rows);
            assert_eq!(plan.items.len(), sequences * tiles * 2, "{sequences} sequences of {tokens}");
            plan.large
        };
        // Two chunks, eight KV heads.
        assert!(!large(200, 4), "four queries of four heads fit sixteen rows");
        assert!(!large(1, 5));
        assert!(!large(8, 8), "256 items of small tiles");
        assert!(large(9, 8));
    }

    #[test]
    fn a_tree_behind_a_long_prefill_gets_its_own_segment() {
        let blocks = blocks(16);
        let tree = [0, 0, 2];
        let shape =
            SequenceShape { start: 0, tokens: 103, drafts: 3, tree: Some(&tree), cached: 0, blocks: &blocks };
        let mut plan = plan();
        plan.build([shape].into_iter());
        let segments: Vec<_> = plan.segments.iter().map(|one| (one.start, one.queries)).collect();
        assert_eq!(segments, [(0, 100), (100, 1), (100, 2)], "the tree's masks begin behind the prompt");
        assert_eq!(plan.masks[100..], [0b1, 0b10, 0b110]);
        assert_eq!(plan.prefill_items.len(), 4);
        assert!(plan.items.iter().all(|item| item.segment.start == 100));
    }

    #[test]
    fn a_full_mask_of_sixty_four_positions_is_a_chain() {
        let blocks = blocks(8);
        let mut plan = plan();
        plan.build([chain(0, 64, &blocks)].into_iter());
        assert_eq!(plan.masks[63], u64::MAX);
        assert!(plan.prefill_items.is_empty());
    }

    #[test]
    fn long_prompts_without_room_for_partial_results_take_the_prefill_kernel() {
        let blocks = blocks(256);
        let mut plan =
            AttentionPlan::new(AttentionRoom { partial_rows: 100, ..AttentionRoom::for_rows(8, 2, 1, 1) });
        plan.build([chain(4000, 60, &blocks)].into_iter());
        assert!(plan.items.is_empty());
        assert_eq!(plan.prefill_items.len(), 2);
    }

    #[test]
    fn a_tree_finds_room_also_behind_chains_that_would_have_filled_it() {
        let blocks = blocks(256);
        let tree = [0, 0, 1];
        let mut plan = AttentionPlan::new(AttentionRoom {
            partial_rows: 8 * 16 * 10,
            ..AttentionRoom::for_rows(8, 2, 1, 1)
        });
        let chain = chain(4000, 8, &blocks);
        let shape = SequenceShape {
            start: 4000,
            tokens: 4,
            drafts: 3,
            tree: Some(&tree),
            cached: 0,
            blocks: &blocks,
        };
        plan.build([chain, shape].into_iter());
        assert_eq!(plan.prefill_items.len(), 1, "the chain gives way");
        assert!(!plan.items.is_empty() && plan.items.iter().all(|item| item.segment.first_row >= 8));
    }

    #[test]
    fn partial_results_of_different_tiles_do_not_overlap() {
        let blocks = blocks(2048);
        let mut plan = plan();
        plan.build([1000u32, 9000, 300].into_iter().map(|start| chain(start, 21, &blocks)));
        let mut regions: Vec<(i32, i32)> = Vec::new();
        for item in plan.items.iter().filter(|item| item.chunks > 1) {
            let packed = 21 * 4;
            let rows = 32.min(packed - item.tile * 32);
            regions.push((item.partial, item.partial + 8 * item.chunks * rows));
        }
        regions.sort();
        regions.dedup();
        assert_eq!(regions.len(), 6);
        assert!(regions.windows(2).all(|pair| pair[0].1 <= pair[1].0));
        assert_eq!(plan.merges.len(), 6, "the short sequence has one chunk");
    }
}
