//! A head and its round in progress: which states are read, what is fed, what comes back.
#![forbid(unsafe_code)]

use super::fill::{self, Anchored, Chained};
use super::model::{HeadBounds, HeadModel, block_shape};
use super::runner::HeadRunner;
use super::sizes::{BlockShape, HEAD_ROWS_MAX, HeadSizes, HeadWork, padded_read, padded_reads};
use crate::executor::committed_states::{Committed, CommittedStates, Slot};
use crate::executor::cuda::error::CudaError;
use crate::executor::cuda::fed_trees::FedTrees;
use crate::executor::cuda::forward::{DeviceModel, HiddenRows, kv_block_elements};
use crate::executor::cuda::options::{CudaOptions, captured_rows, captured_sizes, eager_rows};
use crate::executor::cuda::round_row::{RoundRow, restart_rows};
use crate::executor::cuda::runner::DeviceQueue;
use crate::executor::cuda::step_results::proposal;
use crate::executor::cuda::weights::DeviceWeights;
use crate::model::{DraftHead, ModelSpec};
use crate::protocol::{
    BLOCK_TOKENS, BlockId, DraftForest, DraftSeed, ExecutorError, NodeId, Proposal, TokenId, Verdict,
    VerifyRow,
};

/// Tokens whose hidden states may wait beside those of the next call.
const WAITING_TOKENS: usize = 1024;
/// Most states of a sequence that are read in the pass that drafts: with more, its attention would not
/// be the decode kernel's. They are read before it.
const READ_INLINE_MAX: usize = 32;
/// Fewest sequences whose reading may fill the large tile of the attention.
const LARGE_SEQUENCES_MIN: usize = 8;

/// A head and its round in progress.
pub struct HeadDrafter {
    /// Which tokens have states in the target's [`HiddenRows`].
    tokens: CommittedStates,
    runner: HeadRunner,
    kind: Kind,
    vocab_size: usize,
    sequences_max: usize,
    /// One per seed.
    rows: Vec<RoundRow>,
    /// For each seed, its row in the first pass.
    firsts: Vec<i32>,
    trees: FedTrees,
    /// Room for one call's proposals, reused.
    proposals: Vec<Proposal>,
}

enum Kind {
    Chain,
    Block {
        shape: BlockShape,
        mask_token: TokenId,
        /// The first of the cache's blocks behind the target's.
        scratch: u32,
    },
}

/// Tokens that a head and its target have room for beside those of the head's cache.
pub fn hidden_state_capacity(batch_tokens_max: u32) -> usize {
    batch_tokens_max as usize + WAITING_TOKENS
}

impl HeadDrafter {
    /// Uploads a head for a target that is on the device. Its cache is
    /// [allocated](Self::allocate_kv) when the size of the remaining memory is known.
    ///
    /// # Errors
    /// [`ExecutorError::Malformed`] for a head that the kernels cannot run, [`ExecutorError::Device`]
    /// when memory runs out.
    pub fn new(
        head: &DraftHead,
        target: (&DeviceWeights, &ModelSpec),
        options: &CudaOptions,
        queue: &DeviceQueue,
    ) -> Result<HeadDrafter, ExecutorError> {
        let (weights, spec) = target;
        let kind = match head {
            DraftHead::Eagle3(_) => Kind::Chain,
            DraftHead::Block(head) => {
                Kind::Block { shape: block_shape(head), mask_token: head.mask_token, scratch: 0 }
            }
        };
        let wanted = options.batch_sequences_max as usize;
        let (sequences_max, block_tokens) = match &kind {
            Kind::Chain => (wanted, 0),
            Kind::Block { shape, .. } => (wanted.min(shape.sequences_max()), shape.tokens),
        };
        let bounds = HeadBounds {
            sequences: captured_rows(sequences_max).unwrap_or(sequences_max),
            positions: spec.context_tokens_max + block_tokens,
        };
        let model = HeadModel::new(head, weights, bounds, &queue.stream)?;
        Ok(HeadDrafter {
            tokens: CommittedStates::new(hidden_state_capacity(options.batch_tokens_max)),
            runner: HeadRunner::new(model, options.graphs_max, options.tune)?,
            kind,
            vocab_size: spec.vocab_size,
            sequences_max,
            rows: Vec::new(),
            firsts: Vec::new(),
            trees: FedTrees::default(),
            proposals: Vec::new(),
        })
    }

    /// Bytes that a block of the target takes in the head's cache.
    pub fn kv_block_bytes(&self) -> usize {
        2 * kv_block_elements(self.runner.model.layers.spec())
    }

    /// The head's layers, with their cache.
    pub fn layers(&self) -> &DeviceModel {
        &self.runner.model.layers
    }

    /// Allocates the cache for so many blocks of the target's.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn allocate_kv(&mut self, target_blocks: u32) -> Result<(), CudaError> {
        let mut behind = 0;
        if let Kind::Block { shape, scratch, .. } = &mut self.kind {
            *scratch = target_blocks;
            behind = self.sequences_max as u32 * scratch_blocks(*shape);
        }
        self.runner.model.layers.allocate_kv(target_blocks + behind)
    }

    /// Graphs captured so far.
    pub fn graph_count(&self) -> usize {
        self.runner.graph_count()
    }

    /// Reads what was not read, unless there is room for the states of `tokens` more; returns the row
    /// of the first of them.
    ///
    /// # Errors
    /// [`ExecutorError::Device`].
    pub fn make_room(
        &mut self,
        tokens: usize,
        states: &HiddenRows,
        queue: &mut DeviceQueue,
    ) -> Result<usize, ExecutorError> {
        if !self.tokens.has_room(tokens) {
            let unread = self.tokens.read();
            self.read(&unread, states, queue)?;
            self.tokens.clear();
        }
        Ok(self.tokens.used())
    }

    /// Notes what a pass of the target, whose first state is in row `first`, has committed.
    pub fn commit(&mut self, first: usize, rows: &[VerifyRow], verdicts: &[Verdict]) {
        self.tokens.append(rows.iter().map(|row| row.input.tokens.len()).sum());
        self.tokens.commit(first, rows, verdicts, BLOCK_TOKENS as usize);
    }

    /// Computes keys and values of these tokens.
    fn read(
        &mut self,
        tokens: &[Committed],
        states: &HiddenRows,
        queue: &mut DeviceQueue,
    ) -> Result<(), ExecutorError> {
        for part in tokens.chunks(HEAD_ROWS_MAX) {
            let padded = eager_rows(part.len()).min(HEAD_ROWS_MAX);
            let sizes = fill::read(part, padded, &mut self.runner.step);
            self.runner.run(sizes, states.ptr(), queue)?;
        }
        Ok(())
    }

    /// The first proposals of each seed that wants some, if the head has the states before it.
    /// Checked by the contract.
    ///
    /// # Errors
    /// [`ExecutorError::Device`].
    pub fn start(
        &mut self,
        seeds: &[DraftSeed],
        states: &HiddenRows,
        queue: &mut DeviceQueue,
        forest: &mut DraftForest,
    ) -> Result<(), ExecutorError> {
        restart_rows(&mut self.rows, seeds);
        self.firsts.clear();
        self.firsts.resize(seeds.len(), 0);
        // the state of a token that is fed stands where the proposal before it does
        self.trees.begin(seeds.len(), 1);
        match self.kind {
            Kind::Chain => self.start_chains(seeds, states, queue, forest),
            Kind::Block { shape, mask_token, scratch } => {
                let wanting: Vec<usize> = (0..seeds.len()).filter(|&seed| is_anchor(&seeds[seed])).collect();
                for part in wanting.chunks(self.sequences_max) {
                    let block = (shape, mask_token, scratch);
                    self.draft_blocks(seeds, part, block, states, queue, forest)?;
                }
                Ok(())
            }
        }
    }

    fn start_chains(
        &mut self,
        seeds: &[DraftSeed],
        states: &HiddenRows,
        queue: &mut DeviceQueue,
        forest: &mut DraftForest,
    ) -> Result<(), ExecutorError> {
        let mut linked = Vec::new();
        let mut tokens = Vec::new();
        let mut early = Vec::new();
        for (index, seed) in seeds.iter().enumerate().filter(|(_, seed)| seed.limit > 0) {
            let Some(link) = link(&mut self.tokens, seed) else { continue };
            let first = tokens.len();
            self.tokens.take_unread(&seed.input.blocks, link.position, BLOCK_TOKENS as usize, &mut tokens);
            if tokens.len() - first > READ_INLINE_MAX {
                early.extend(tokens.drain(first..));
            }
            tokens.push(link);
            linked.push((index, first..tokens.len()));
        }
        if !reads_inline(tokens.len(), linked.len()) {
            let links: Vec<Committed> = linked.iter().map(|(_, range)| tokens[range.end - 1]).collect();
            for (number, (_, range)) in linked.iter_mut().enumerate() {
                early.extend_from_slice(&tokens[range.start..range.end - 1]);
                *range = number..number + 1;
            }
            tokens = links;
        }
        self.read(&early, states, queue)?;
        if linked.is_empty() {
            return Ok(());
        }
        let chains: Vec<Chained<'_>> = linked
            .iter()
            .map(|(seed, range)| Chained {
                seed: &seeds[*seed],
                row: &self.rows[*seed],
                tokens: &tokens[range.clone()],
            })
            .collect();
        let sizes = fill::first(&chains, &mut self.runner.step);
        self.runner.run(sizes, states.ptr(), queue)?;
        for (place, (seed, _)) in linked.iter().enumerate() {
            let from = proposal(self.runner.model.sampler.results(), place);
            let proposal = self.rows[*seed].take(from, self.vocab_size)?;
            self.firsts[*seed] = place as i32;
            forest.add_root(*seed as u32, proposal);
        }
        Ok(())
    }

    /// What follows these nodes of these seeds; nothing from a head that drafts blocks.
    ///
    /// # Errors
    /// [`ExecutorError::Device`].
    pub fn extend(
        &mut self,
        nodes: &[NodeId],
        seeds: &[u32],
        states: &HiddenRows,
        queue: &mut DeviceQueue,
        forest: &mut DraftForest,
    ) -> Result<(), ExecutorError> {
        if seeds.is_empty() {
            return Ok(());
        }
        self.trees.feed(nodes, seeds, &self.rows, forest, &mut self.runner.step)?;
        let sizes = fill::next(&self.trees, &self.firsts, &mut self.runner.step);
        self.runner.run(sizes, states.ptr(), queue)?;
        self.proposals.clear();
        self.proposals.resize(nodes.len(), Proposal::default());
        for (place, &index) in self.trees.order().iter().enumerate() {
            let from = proposal(self.runner.model.sampler.results(), place);
            self.proposals[index] = self.rows[seeds[index] as usize].take(from, self.vocab_size)?;
        }
        for (&node, &proposal) in nodes.iter().zip(&self.proposals) {
            forest.add_child(node, proposal);
        }
        Ok(())
    }

    /// A block for each of these seeds, which are no more than a pass takes.
    fn draft_blocks(
        &mut self,
        seeds: &[DraftSeed],
        part: &[usize],
        (shape, mask_token, scratch): (BlockShape, TokenId, u32),
        states: &HiddenRows,
        queue: &mut DeviceQueue,
        forest: &mut DraftForest,
    ) -> Result<(), ExecutorError> {
        let mut unread = Vec::new();
        for &seed in part {
            let end = self.rows[seed].position as usize - 1;
            let blocks = &seeds[seed].input.blocks;
            self.tokens.take_unread(blocks, end, BLOCK_TOKENS as usize, &mut unread);
        }
        if !reads_inline(unread.len(), part.len()) {
            self.read(&unread, states, queue)?;
            unread.clear();
        }
        let tables: Vec<Vec<BlockId>> = (0..)
            .zip(part)
            .map(|(index, &seed)| {
                let first = scratch + index * scratch_blocks(shape);
                table(&seeds[seed].input.blocks, self.rows[seed].position as usize - 1 + shape.tokens, first)
            })
            .collect();
        let anchored: Vec<Anchored<'_>> = part
            .iter()
            .zip(&tables)
            .map(|(&seed, blocks)| Anchored { seed: &seeds[seed], row: &self.rows[seed], blocks })
            .collect();
        let sizes = fill::blocks(&anchored, &unread, shape, mask_token, &mut self.runner.step);
        self.runner.run(sizes, states.ptr(), queue)?;
        for (index, &seed) in part.iter().enumerate() {
            self.take_block(index, sizes, seed, seeds[seed].limit, forest)?;
        }
        Ok(())
    }

    /// Adds the drafts of a seed that was sequence `index` of the last pass. Behind one that is not
    /// finite there is none.
    fn take_block(
        &mut self,
        index: usize,
        sizes: HeadSizes,
        seed: usize,
        limit: u32,
        forest: &mut DraftForest,
    ) -> Result<(), ExecutorError> {
        let drafts = sizes.block.map_or(0, |block| block.drafts()).min(limit as usize);
        let mut parent = None;
        for slot in 0..drafts {
            let from = proposal(self.runner.model.sampler.results(), slot * sizes.sequences + index);
            let proposal = self.rows[seed].take(from, self.vocab_size)?;
            parent = Some(match parent {
                None => forest.add_root(seed as u32, proposal),
                Some(parent) => forest.add_child(parent, proposal),
            });
            if !proposal.finite {
                break;
            }
        }
        Ok(())
    }

    /// Chooses algorithms, loads kernels and captures graphs for every number of sequences, with as
    /// many states to read as most steps leave. No KV block may be in use.
    ///
    /// # Errors
    /// [`ExecutorError::Device`].
    pub fn warm_up(&mut self, states: &HiddenRows, queue: &mut DeviceQueue) -> Result<(), ExecutorError> {
        for sizes in self.warm_sizes() {
            self.runner.step.clear();
            self.runner.step.plan.build(std::iter::empty());
            self.runner.run(sizes, states.ptr(), queue)?;
        }
        Ok(())
    }

    /// Sizes of passes to expect.
    fn warm_sizes(&self) -> Vec<HeadSizes> {
        let mut all = Vec::new();
        for sequences in captured_sizes(self.sequences_max) {
            let block = match self.kind {
                Kind::Chain => None,
                Kind::Block { shape, .. } => Some(shape),
            };
            let work = if block.is_some() { HeadWork::Block } else { HeadWork::First };
            let next = HeadSizes { work: HeadWork::Next, sequences, block, ..HeadSizes::reading(0) };
            for large in [false, true] {
                if !large || sequences >= LARGE_SEQUENCES_MIN {
                    // a block may follow a prompt that was read before; a chain starts from a state
                    let none = block.map(|_| 0);
                    let reads = none.into_iter().chain(padded_reads(sequences));
                    all.extend(reads.map(|read| HeadSizes { work, read, large, ..next }));
                }
            }
            if block.is_none() {
                let large = HeadSizes { large: true, ..next };
                all.extend([next].into_iter().chain((sequences >= LARGE_SEQUENCES_MIN).then_some(large)));
            }
        }
        all
    }
}

/// Whether a pass in which so many sequences draft reads so many states.
fn reads_inline(states: usize, sequences: usize) -> bool {
    padded_read(states, captured_rows(sequences).unwrap_or(sequences)).is_some()
}

/// The token before a seed's, if its states are there. It counts as read.
fn link(tokens: &mut CommittedStates, seed: &DraftSeed) -> Option<Committed> {
    let (&token, before) = seed.input.tokens.split_last()?;
    let position = (seed.input.start as usize + before.len()).checked_sub(1)?;
    tokens.claim(Slot::of(&seed.input.blocks, position, BLOCK_TOKENS as usize), position, token)
}

/// Whether a seed wants drafts and has a context.
fn is_anchor(seed: &DraftSeed) -> bool {
    seed.limit > 0 && seed.input.start as usize + seed.input.tokens.len() > 1
}

/// Blocks behind the target's for the part of a block that the sequence has no blocks for: all but
/// the anchor, which it has.
fn scratch_blocks(shape: BlockShape) -> u32 {
    (shape.tokens - 1).div_ceil(BLOCK_TOKENS as usize) as u32
}

/// A sequence's blocks up to the position `end`, and scratch blocks from `first` on for those that it
/// lacks.
fn table(blocks: &[BlockId], end: usize, first: u32) -> Vec<BlockId> {
    let wanted = end.div_ceil(BLOCK_TOKENS as usize);
    let own = &blocks[..blocks.len().min(wanted)];
    let scratch = (first..).take(wanted - own.len()).map(BlockId);
    own.iter().copied().chain(scratch).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_that_reaches_beyond_its_sequence_goes_on_in_scratch_blocks() {
        let blocks = [BlockId(7), BlockId(3), BlockId(5)];
        let ids = |end| table(&blocks, end, 100).iter().map(|block| block.0).collect::<Vec<_>>();
        assert_eq!(ids(20), [7, 3]);
        assert_eq!(ids(48), [7, 3, 5]);
        assert_eq!(ids(49), [7, 3, 5, 100]);
        assert_eq!(ids(66), [7, 3, 5, 100, 101]);
        let blocks_of = |tokens| scratch_blocks(BlockShape { tokens, first_slot: 0 });
        assert_eq!([blocks_of(1), blocks_of(7), blocks_of(17), blocks_of(18)], [0, 1, 1, 2]);
    }
}
