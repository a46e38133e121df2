//! Puts the passes of a head into steps. Pure memory: no device is needed.
#![forbid(unsafe_code)]

use super::sizes::{BlockShape, HeadSizes, HeadWork, padded_read};
use crate::executor::committed_states::{Committed, Slot};
use crate::executor::cuda::attention_plan::SequenceShape;
use crate::executor::cuda::fed_trees::FedTrees;
use crate::executor::cuda::host_step::HostStep;
use crate::executor::cuda::options::captured_rows;
use crate::executor::cuda::round_row::RoundRow;
use crate::protocol::{BLOCK_TOKENS, BlockId, DraftSeed, TokenId};

/// A seed of an EAGLE-3 head that drafts.
pub struct Chained<'a> {
    /// The seed.
    pub seed: &'a DraftSeed,
    /// Its sequence.
    pub row: &'a RoundRow,
    /// Committed tokens that the pass reads, one behind the other; the last is the one before the
    /// seed's token.
    pub tokens: &'a [Committed],
}

/// A seed of a block head that drafts.
pub struct Anchored<'a> {
    /// The seed.
    pub seed: &'a DraftSeed,
    /// Its sequence.
    pub row: &'a RoundRow,
    /// Blocks that its positions and those of the block are in.
    pub blocks: &'a [BlockId],
}

/// Fills a pass that computes keys and values of these tokens.
pub fn read(tokens: &[Committed], padded: usize, step: &mut HostStep) -> HeadSizes {
    step.clear();
    step.plan.build(std::iter::empty());
    step.tokens.extend(tokens.iter().map(|token| token.next as i32));
    push_states(tokens, step);
    HeadSizes::reading(padded)
}

/// Positions, slots and sources of tokens that are read.
fn push_states(tokens: &[Committed], step: &mut HostStep) {
    step.sources.extend(tokens.iter().map(|token| token.row as i32));
    step.plan.positions.extend(tokens.iter().map(|token| token.position as i32));
    step.plan.slots.extend(tokens.iter().map(|token| slot(token.slot)));
}

fn slot(slot: Slot) -> i32 {
    (slot.block.0 * BLOCK_TOKENS) as i32 + slot.offset as i32
}

/// Fills the first pass of a round of chains.
pub fn first(chains: &[Chained<'_>], step: &mut HostStep) -> HeadSizes {
    step.clear();
    for chain in chains {
        step.tokens.extend(chain.tokens.iter().map(|token| token.next as i32));
        step.sources.extend(chain.tokens.iter().map(|token| token.row as i32));
        step.gather.push(step.tokens.len() as i32 - 1);
    }
    step.plan.build(chains.iter().map(|chain| SequenceShape {
        start: chain.tokens[0].position as u32,
        tokens: chain.tokens.len(),
        drafts: 0,
        tree: None,
        cached: 0,
        blocks: &chain.seed.input.blocks,
    }));
    for Chained { seed, row, .. } in chains {
        step.sampling.push_masked(&row.sampling, row.position, &row.history, seed.mask.as_ref());
    }
    let sequences = captured_rows(chains.len()).unwrap_or(chains.len());
    let read = padded_read(step.tokens.len(), sequences).unwrap_or(step.tokens.len());
    chain_sizes(HeadWork::First, read, chains.len(), step)
}

/// Fills a later pass of a round: what the trees were fed, and for each row its source among those of
/// the pass before, which is in `firsts` for the roots of each seed.
pub fn next(trees: &FedTrees, firsts: &[i32], step: &mut HostStep) -> HeadSizes {
    step.sources.extend(trees.sources().map(|(row, source)| source.unwrap_or(firsts[row as usize])));
    chain_sizes(HeadWork::Next, 0, step.tokens.len(), step)
}

/// Sizes of a pass that drafts behind so many rows.
fn chain_sizes(work: HeadWork, read: usize, sequences: usize, step: &HostStep) -> HeadSizes {
    debug_assert!(step.plan.prefill_items.is_empty(), "rows that draft take the decode kernel");
    HeadSizes {
        work,
        read,
        sequences: captured_rows(sequences).unwrap_or(sequences),
        large: step.plan.large,
        filtered: step.sampling.filtered(),
        block: None,
    }
}

/// Fills a pass of blocks, which reads `tokens` before.
pub fn blocks(
    anchored: &[Anchored<'_>],
    tokens: &[Committed],
    block: BlockShape,
    mask_token: TokenId,
    step: &mut HostStep,
) -> HeadSizes {
    step.clear();
    let sequences = captured_rows(anchored.len()).unwrap_or(anchored.len());
    for one in anchored {
        step.tokens.push(one.anchor() as i32);
        step.tokens.extend(std::iter::repeat_n(mask_token as i32, block.tokens - 1));
    }
    step.plan.build(anchored.iter().map(|one| SequenceShape {
        start: one.position(),
        tokens: block.tokens,
        drafts: 0,
        tree: None,
        cached: 0,
        blocks: one.blocks,
    }));
    // every token of a block sees all of it
    step.plan.masks.fill(u64::MAX >> (u64::BITS as usize - block.tokens));
    let sizes = HeadSizes {
        work: HeadWork::Block,
        read: padded_read(tokens.len(), sequences).unwrap_or(tokens.len()),
        sequences,
        large: step.plan.large,
        filtered: false,
        block: Some(block),
    };
    step.plan.positions.resize(sizes.block_rows(), 0);
    step.plan.slots.resize(sizes.block_rows(), PADDING);
    push_states(tokens, step);
    step.sources.resize(sizes.read, PADDING);
    step.sources.extend(anchored.iter().map(|one| one.anchor() as i32));
    for draft in 0..block.drafts() {
        push_slot(anchored, draft, sequences, block, step);
    }
    HeadSizes { filtered: step.sampling.filtered(), ..sizes }
}

/// Where nothing is read or written.
const PADDING: i32 = -1;

/// The rows of logits of one draft of each sequence, padded.
fn push_slot(
    anchored: &[Anchored<'_>],
    draft: usize,
    sequences: usize,
    block: BlockShape,
    step: &mut HostStep,
) {
    for (index, one) in anchored.iter().enumerate() {
        step.gather.push((index * block.tokens + block.first_slot + draft) as i32);
        // what is allowed behind the first draft is not known before it is chosen
        let mask = one.seed.mask.as_ref().filter(|_| draft == 0);
        let position = one.row.position + draft as u32;
        step.sampling.push_masked(&one.row.sampling, position, &one.row.history, mask);
    }
    for _ in anchored.len()..sequences {
        step.gather.push(PADDING);
        step.sampling.push_padding();
    }
}

impl Anchored<'_> {
    /// The last committed token.
    pub fn anchor(&self) -> TokenId {
        self.seed.input.tokens.last().copied().unwrap_or_default()
    }

    /// Its position.
    pub fn position(&self) -> u32 {
        self.row.position - 1
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::executor::cuda::attention_plan::AttentionRoom;
    use crate::protocol::{DraftForest, Proposal, RequestId, SamplingParams, SequenceInput, TokenMask};

    fn step() -> HostStep {
        HostStep::new(AttentionRoom::for_rows(8, 2, 1024, 512))
    }

    /// The seed whose last token stands at `position`.
    fn seed(position: u32, token: TokenId, blocks: &[u32]) -> DraftSeed {
        let input = SequenceInput {
            request: RequestId(1),
            tokens: vec![token],
            start: position,
            blocks: blocks.iter().copied().map(BlockId).collect(),
            sampling: Arc::new(SamplingParams::greedy()),
            history: None,
        };
        DraftSeed {
            row: 0,
            input,
            limit: 3,
            mask: Some(Arc::new(TokenMask::from_fn(64, |token| token != 9))),
        }
    }

    fn token(row: usize, position: usize, block: u32, next: TokenId) -> Committed {
        let slot = Slot { block: BlockId(block), offset: position % 16 };
        Committed { row, position, slot, next }
    }

    #[test]
    fn tokens_that_are_read_keep_their_places_and_need_no_attention() {
        let mut step = step();
        let sizes = read(&[token(7, 3, 2, 40), token(9, 20, 5, 41)], 4, &mut step);
        assert_eq!((&step.tokens[..], &step.sources[..]), (&[40, 41][..], &[7, 9][..]));
        assert_eq!((&step.plan.positions[..], &step.plan.slots[..]), (&[3, 20][..], &[35, 84][..]));
        assert!(step.plan.items.is_empty() && step.gather.is_empty());
        assert_eq!((sizes.work, sizes.read, sizes.sequences), (HeadWork::Read, 4, 0));
    }

    #[test]
    fn a_round_of_chains_begins_behind_the_last_state_of_each_sequence() {
        let seeds = [seed(18, 51, &[3, 6]), seed(5, 61, &[4])];
        let rows = seeds.each_ref().map(RoundRow::new);
        let tokens = [token(0, 15, 3, 49), token(1, 16, 6, 50), token(2, 17, 6, 51), token(8, 4, 4, 61)];
        let chains = [
            Chained { seed: &seeds[0], row: &rows[0], tokens: &tokens[..3] },
            Chained { seed: &seeds[1], row: &rows[1], tokens: &tokens[3..] },
        ];
        let mut step = step();
        let sizes = first(&chains, &mut step);
        assert_eq!(step.tokens, [49, 50, 51, 61]);
        assert_eq!((&step.sources[..], &step.gather[..]), (&[0, 1, 2, 8][..], &[2, 3][..]));
        assert_eq!(step.plan.positions, [15, 16, 17, 4]);
        assert_eq!(step.plan.slots, [3 * 16 + 15, 6 * 16, 6 * 16 + 1, 4 * 16 + 4]);
        let sampled: Vec<i32> = step.sampling.rows().iter().map(|row| row.position).collect();
        assert_eq!(sampled, [19, 6], "the token behind the seed's");
        assert!(step.sampling.rows().iter().all(|row| row.mask >= 0), "the first proposal has a mask");
        assert_eq!((sizes.work, sizes.read, sizes.sequences), (HeadWork::First, 4, 2));
    }

    #[test]
    fn a_proposal_takes_the_state_of_the_one_before_it() {
        let seeds = [seed(18, 51, &[3, 6]), seed(15, 61, &[4, 8])];
        let rows = seeds.each_ref().map(RoundRow::new);
        let (mut trees, mut forest, mut step) = (FedTrees::default(), DraftForest::default(), step());
        trees.begin(2, 1);
        let proposal = |token| Proposal { token, runner_up: token + 1, finite: true, ..Proposal::default() };
        let [first, second] = [(0, 52), (1, 62)].map(|(seed, token)| forest.add_root(seed, proposal(token)));
        let beside = forest.add_runner_up(second);
        trees.feed(&[first, second, beside], &[0, 1, 1], &rows, &forest, &mut step).expect("roots");
        let sizes = next(&trees, &[5, 1], &mut step);
        assert_eq!((&step.tokens[..], &step.sources[..]), (&[52, 62, 63][..], &[5, 1, 1][..]));
        assert_eq!((sizes.work, sizes.read, sizes.sequences), (HeadWork::Next, 0, 4), "padded");
        let behind = forest.add_child(beside, proposal(64));
        trees.feed(&[behind], &[1], &rows, &forest, &mut step).expect("its parent was fed");
        next(&trees, &[5, 1], &mut step);
        assert_eq!((&step.tokens[..], &step.sources[..]), (&[64][..], &[2][..]));
    }

    #[test]
    fn blocks_see_themselves_whole_and_their_drafts_stand_slot_by_slot() {
        let seeds = [seed(30, 51, &[3, 6]), seed(5, 61, &[4]), seed(8, 71, &[9])];
        let rows = seeds.each_ref().map(RoundRow::new);
        let tables = [[BlockId(3), BlockId(6), BlockId(100)], [BlockId(4); 3], [BlockId(9); 3]];
        let anchored: Vec<Anchored<'_>> = (0..3)
            .map(|index| Anchored { seed: &seeds[index], row: &rows[index], blocks: &tables[index] })
            .collect();
        let shape = BlockShape { tokens: 3, first_slot: 1 };
        let mut step = step();
        let sizes = blocks(&anchored, &[token(7, 29, 6, 51)], shape, 2, &mut step);
        assert_eq!(step.tokens, [51, 2, 2, 61, 2, 2, 71, 2, 2]);
        assert_eq!(step.plan.masks, [0b111; 9]);
        // four sequences' rows, then the state that is read
        assert_eq!(step.plan.positions, [30, 31, 32, 5, 6, 7, 8, 9, 10, 0, 0, 0, 29]);
        assert_eq!(step.plan.slots[..3], [6 * 16 + 14, 6 * 16 + 15, 100 * 16]);
        assert_eq!(step.plan.slots[9..], [-1, -1, -1, 6 * 16 + 13]);
        assert_eq!(step.sources, [7, -1, -1, -1, 51, 61, 71], "the state, padded, then the anchors");
        assert_eq!(step.gather, [1, 4, 7, -1, 2, 5, 8, -1]);
        let sampled: Vec<(i32, bool)> =
            step.sampling.rows().iter().map(|row| (row.position, row.mask >= 0)).collect();
        let wanted = [(31, true), (6, true), (9, true), (-1, false), (32, false), (7, false), (10, false)];
        assert_eq!(sampled[..7], wanted, "only the first draft's mask is known");
        assert_eq!((sizes.read, sizes.sequences, sizes.logit_rows()), (4, 4, 8));
    }
}
