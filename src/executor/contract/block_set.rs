//! A set of KV blocks that is emptied once per batch.

use crate::protocol::BlockId;

/// One bit per block: a pool's bits stay in the first-level cache, a counter per block would not.
#[derive(Clone, Debug)]
pub(super) struct BlockSet {
    words: Vec<u64>,
    /// What is in the set, so that clearing costs as much as was inserted.
    members: Vec<BlockId>,
}

impl BlockSet {
    /// An empty set of blocks below `blocks`.
    pub fn new(blocks: u32) -> BlockSet {
        BlockSet { words: vec![0; blocks.div_ceil(u64::BITS) as usize], members: Vec::new() }
    }

    pub fn clear(&mut self) {
        for block in self.members.drain(..) {
            self.words[block.index() / u64::BITS as usize] = 0;
        }
    }

    /// Adds a block, which must be in the pool; whether it is new.
    pub fn insert(&mut self, block: BlockId) -> bool {
        let (word, bit) = (&mut self.words[block.index() / u64::BITS as usize], 1 << (block.0 % u64::BITS));
        let new = *word & bit == 0;
        *word |= bit;
        self.members.push(block);
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_new_once_between_two_clears() {
        let mut set = BlockSet::new(130);
        for _ in 0..2 {
            for block in [0, 63, 64, 129].map(BlockId) {
                assert!(set.insert(block));
                assert!(!set.insert(block));
            }
            set.clear();
        }
    }
}
