//! What a pass of a head does, and how large it is.
#![forbid(unsafe_code)]

use crate::executor::cuda::options::captured_sizes;
use crate::executor::cuda::step_layout::InputSizes;

/// Most input rows of one pass of a head.
pub const HEAD_ROWS_MAX: usize = 1024;
/// Most rows of a block pass: each has logits.
const BLOCK_ROWS_MAX: usize = 512;

/// What a pass of a head does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HeadWork {
    /// Computes keys and values from hidden states.
    Read,
    /// EAGLE-3: reads hidden states, and drafts behind the last one of each sequence.
    First,
    /// EAGLE-3: drafts behind the drafts of the pass before.
    Next,
    /// DFlash, DSpark: reads hidden states, then drafts a block for each sequence.
    Block,
}

/// Drafts of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockShape {
    /// Input rows of a sequence.
    pub tokens: usize,
    /// Of these, the first whose output is a draft.
    pub first_slot: usize,
}

impl BlockShape {
    /// Drafts of a sequence.
    pub fn drafts(&self) -> usize {
        self.tokens - self.first_slot
    }

    /// Most sequences of one pass: a captured size.
    pub fn sequences_max(&self) -> usize {
        let fits = |&sequences: &usize| sequences * self.tokens <= BLOCK_ROWS_MAX;
        captured_sizes(BLOCK_ROWS_MAX).filter(fits).last().unwrap_or(1)
    }
}

/// Padded sizes of a pass; together with the head they determine its launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeadSizes {
    /// What it does.
    pub work: HeadWork,
    /// Hidden states that it reads.
    pub read: usize,
    /// Rows that draft: sequences, or nodes of their trees.
    pub sequences: usize,
    /// Whether attention uses its large tile.
    pub large: bool,
    /// Whether a row uses top-k, top-p or min-p.
    pub filtered: bool,
    /// The block that each sequence drafts.
    pub block: Option<BlockShape>,
}

impl HeadSizes {
    /// A pass that reads `read` states.
    pub fn reading(read: usize) -> HeadSizes {
        let (work, sequences) = (HeadWork::Read, 0);
        HeadSizes { work, read, sequences, large: false, filtered: false, block: None }
    }

    /// Input rows of the blocks.
    pub fn block_rows(&self) -> usize {
        self.block.map_or(0, |block| self.sequences * block.tokens)
    }

    /// Rows of logits.
    pub fn logit_rows(&self) -> usize {
        self.sequences * self.block.map_or(1, |block| block.drafts())
    }

    /// Input rows.
    fn rows(&self) -> usize {
        match self.work {
            HeadWork::Read | HeadWork::First => self.read,
            HeadWork::Next => self.sequences,
            HeadWork::Block => self.block_rows() + self.read,
        }
    }

    /// As the layout of a step needs them.
    pub fn inputs(&self) -> InputSizes {
        let sources = match self.work {
            HeadWork::Read | HeadWork::First => self.read,
            HeadWork::Next => self.sequences,
            HeadWork::Block => self.read + self.sequences,
        };
        InputSizes { rows: self.rows(), logit_rows: self.logit_rows(), sequences: 0, sources }
    }
}

/// Most states that a pass reads for each sequence that drafts, on average.
const READ_SHARE_MAX: usize = 8;

/// The padded numbers of states of passes in which `sequences`, padded, draft: few, as each is a graph
/// of its own.
pub fn padded_reads(sequences: usize) -> impl Iterator<Item = usize> {
    let doubled = std::iter::successors(Some(1), |share| Some(2 * share));
    let shares = doubled.take_while(|&share| share <= READ_SHARE_MAX);
    shares.map(move |share| share * sequences).take_while(|&read| read <= HEAD_ROWS_MAX)
}

/// The one of [`padded_reads`] for so many states, 0 for none; `None` if a pass does not read so many.
pub fn padded_read(states: usize, sequences: usize) -> Option<usize> {
    if states == 0 { Some(0) } else { padded_reads(sequences).find(|&read| read >= states) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_of_blocks_is_as_large_as_its_rows_allow() {
        let most = |tokens| BlockShape { tokens, first_slot: 0 }.sequences_max();
        assert_eq!([most(7), most(8), most(16), most(64), most(2)], [64, 64, 32, 8, 256]);
    }

    #[test]
    fn inputs_have_room_for_blocks_and_for_the_states_that_are_read_before() {
        let block = Some(BlockShape { tokens: 7, first_slot: 1 });
        let reading = HeadSizes::reading(8);
        let sizes = HeadSizes { work: HeadWork::Block, sequences: 2, block, ..reading };
        let inputs = sizes.inputs();
        assert_eq!((inputs.rows, inputs.logit_rows, inputs.sources), (22, 12, 10));
        let first = HeadSizes { work: HeadWork::First, sequences: 4, ..reading };
        assert_eq!((first.inputs().rows, first.inputs().logit_rows, first.inputs().sources), (8, 4, 8));
        let next = HeadSizes { work: HeadWork::Next, read: 0, ..first };
        assert_eq!((next.inputs().rows, next.inputs().sources), (4, 4));
    }

    #[test]
    fn the_states_that_a_pass_reads_are_padded_to_a_few_shares_of_its_sequences() {
        assert_eq!([0, 1, 3, 8].map(|states| padded_read(states, 1)), [0, 1, 4, 8].map(Some));
        assert_eq!([1, 49, 96, 192].map(|states| padded_read(states, 24)), [24, 96, 96, 192].map(Some));
        assert_eq!([(9, 1), (193, 24), (1025, 256)].map(|(states, of)| padded_read(states, of)), [None; 3]);
        assert_eq!(padded_reads(256).collect::<Vec<_>>(), [256, 512, 1024]);
    }
}
