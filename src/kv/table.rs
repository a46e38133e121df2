//! The block table of one sequence.

use super::BlockPool;
use super::pool::{Link, ROOT};
use crate::protocol::{BLOCK_TOKENS, BlockId, TokenId, blocks_for};

/// The blocks of one sequence in one model's cache, in order. Must be returned with
/// [`release`](Self::release): dropping a table leaks its blocks, which
/// the pool's invariant check reports.
#[derive(Debug)]
pub struct BlockTable {
    blocks: Vec<BlockId>,
    /// Leading blocks that are in the prefix cache.
    published: u32,
    /// Link of the chain that those blocks form.
    chain: Link,
}

impl Default for BlockTable {
    fn default() -> BlockTable {
        BlockTable { blocks: Vec::new(), published: 0, chain: ROOT }
    }
}

impl AsRef<[BlockId]> for BlockTable {
    fn as_ref(&self) -> &[BlockId] {
        &self.blocks
    }
}

impl BlockTable {
    /// The block ids, for the executor.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Capacity of the blocks, in tokens.
    pub fn capacity_tokens(&self) -> u32 {
        self.blocks.len() as u32 * BLOCK_TOKENS
    }

    /// Fills an empty table with the longest cached prefix of `tokens`; returns the tokens
    /// covered. Leaves at least one token to compute, because its logits are needed.
    pub fn adopt_prefix(&mut self, pool: &mut BlockPool, tokens: &[TokenId]) -> u32 {
        assert!(self.blocks.is_empty(), "a prefix is adopted into an empty table");
        let usable = tokens.len().saturating_sub(1);
        for chunk in tokens[..usable].chunks_exact(BLOCK_TOKENS as usize) {
            let Some((block, link)) = pool.find(self.chain, chunk) else { break };
            self.blocks.push(block);
            self.published += 1;
            self.chain = link;
        }
        self.capacity_tokens()
    }

    /// Grows to hold `tokens` tokens, as far as blocks are available; returns whether they sufficed.
    pub fn grow(&mut self, pool: &mut BlockPool, tokens: u32) -> bool {
        while self.capacity_tokens() < tokens {
            let Some(block) = pool.allocate() else { return false };
            self.blocks.push(block);
        }
        true
    }

    /// Releases blocks beyond those that `tokens` tokens need.
    pub fn shrink(&mut self, pool: &mut BlockPool, tokens: u32) {
        let keep = blocks_for(tokens).max(self.published);
        while self.blocks.len() as u32 > keep {
            pool.release(self.blocks.pop().expect("longer than `keep`"));
        }
    }

    /// Inserts full blocks into the prefix cache. `tokens[..computed]` must be computed and committed.
    pub fn publish(&mut self, pool: &mut BlockPool, tokens: &[TokenId], computed: u32) {
        while (self.published + 1) * BLOCK_TOKENS <= computed {
            let first = (self.published * BLOCK_TOKENS) as usize;
            let chunk = &tokens[first..first + BLOCK_TOKENS as usize];
            self.chain = pool.publish(self.blocks[self.published as usize], self.chain, chunk);
            self.published += 1;
        }
    }

    /// Releases all blocks, last first, so that eviction trims long prefixes from the end.
    pub fn release(&mut self, pool: &mut BlockPool) {
        while let Some(block) = self.blocks.pop() {
            pool.release(block);
        }
        *self = BlockTable::default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kv::PoolUsage;

    fn tokens(n: u32) -> Vec<TokenId> {
        (0..n).collect()
    }

    #[test]
    fn a_second_prompt_with_the_same_beginning_shares_its_full_blocks() {
        let mut pool = BlockPool::new(8);
        let (mut first, mut second) = (BlockTable::default(), BlockTable::default());
        assert!(first.grow(&mut pool, 40));
        first.publish(&mut pool, &tokens(40), 40);
        assert_eq!(second.adopt_prefix(&mut pool, &tokens(40)), 32);
        assert_eq!(second.blocks(), &first.blocks()[..2]);
        assert_eq!(pool.usage().held, 3, "shared blocks count once");
        pool.assert_conserved([&first, &second]);
    }

    #[test]
    fn one_token_is_always_left_to_compute() {
        let mut pool = BlockPool::new(4);
        let mut table = BlockTable::default();
        table.grow(&mut pool, 32);
        table.publish(&mut pool, &tokens(32), 32);
        table.release(&mut pool);
        let mut again = BlockTable::default();
        assert_eq!(again.adopt_prefix(&mut pool, &tokens(32)), 16);
        assert_eq!(again.blocks().len(), 1);
    }

    #[test]
    fn a_prefix_that_differs_in_an_earlier_block_is_not_found() {
        let mut pool = BlockPool::new(4);
        let mut table = BlockTable::default();
        table.grow(&mut pool, 32);
        table.publish(&mut pool, &tokens(32), 32);
        let mut other = tokens(40);
        other[3] = 99;
        assert_eq!(pool.peek_prefix(&other), (0, 0), "the second block alone is a different prefix");
        assert_eq!(pool.peek_prefix(&tokens(40)), (2, 0));
    }

    #[test]
    fn cached_blocks_are_given_up_oldest_first_and_only_when_none_is_free() {
        let mut pool = BlockPool::new(3);
        let mut cached = BlockTable::default();
        cached.grow(&mut pool, 32);
        cached.publish(&mut pool, &tokens(32), 32);
        cached.release(&mut pool);
        assert_eq!(pool.usage(), PoolUsage { total: 3, free: 1, cached: 2, held: 0 });

        let mut table = BlockTable::default();
        assert!(table.grow(&mut pool, 16));
        assert_eq!(pool.peek_prefix(&tokens(40)), (2, 2), "the free block went first");
        assert!(table.grow(&mut pool, 32));
        assert_eq!(pool.peek_prefix(&tokens(40)), (1, 1), "the end of the prefix went next");
        assert!(table.grow(&mut pool, 48));
        assert!(!table.grow(&mut pool, 49));
        pool.assert_conserved([&table]);
    }

    #[test]
    fn a_block_published_twice_keeps_one_entry_and_both_chains_go_on() {
        let mut pool = BlockPool::new(8);
        let (mut a, mut b) = (BlockTable::default(), BlockTable::default());
        a.grow(&mut pool, 32);
        b.grow(&mut pool, 32);
        a.publish(&mut pool, &tokens(32), 32);
        b.publish(&mut pool, &tokens(32), 32);
        a.release(&mut pool);
        b.release(&mut pool);
        assert_eq!(pool.usage(), PoolUsage { total: 8, free: 6, cached: 2, held: 0 });
    }

    #[test]
    fn shrinking_never_takes_published_blocks() {
        let mut pool = BlockPool::new(4);
        let mut table = BlockTable::default();
        table.grow(&mut pool, 64);
        table.publish(&mut pool, &tokens(32), 32);
        table.shrink(&mut pool, 5);
        assert_eq!(table.blocks().len(), 2);
        pool.assert_conserved([&table]);
    }

    #[test]
    #[should_panic(expected = "unreferenced")]
    fn a_leaked_block_is_noticed() {
        let mut pool = BlockPool::new(4);
        BlockTable::default().grow(&mut pool, 16);
        pool.assert_conserved([] as [BlockTable; 0]);
    }

    /// One operation of a random sequence over a few tables.
    #[derive(Clone, Debug)]
    enum Move {
        Adopt(usize, u8),
        Grow(usize, u32),
        Publish(usize),
        Shrink(usize, u32),
        Release(usize),
    }

    fn moves() -> impl Strategy<Value = Vec<Move>> {
        let one = prop_oneof![
            (0..4usize, 0..3u8).prop_map(|(t, text)| Move::Adopt(t, text)),
            (0..4usize, 0..90u32).prop_map(|(t, n)| Move::Grow(t, n)),
            (0..4usize).prop_map(Move::Publish),
            (0..4usize, 0..90u32).prop_map(|(t, n)| Move::Shrink(t, n)),
            (0..4usize).prop_map(Move::Release),
        ];
        proptest::collection::vec(one, 1..120)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn blocks_are_conserved_under_any_play(moves in moves()) {
            let mut pool = BlockPool::new(12);
            let mut tables: Vec<(BlockTable, Vec<TokenId>)> =
                (0..4).map(|_| (BlockTable::default(), tokens(90))).collect();
            for step in moves {
                match step {
                    Move::Adopt(t, text) => {
                        let (table, own) = &mut tables[t];
                        table.release(&mut pool);
                        // the texts share their first block and differ in the second
                        *own = tokens(90);
                        own[20] = 1000 + TokenId::from(text);
                        table.adopt_prefix(&mut pool, own);
                    }
                    Move::Grow(t, n) => { tables[t].0.grow(&mut pool, n); }
                    Move::Publish(t) => {
                        let (table, own) = &mut tables[t];
                        let computed = table.capacity_tokens().min(90);
                        table.publish(&mut pool, own, computed);
                    }
                    Move::Shrink(t, n) => tables[t].0.shrink(&mut pool, n),
                    Move::Release(t) => tables[t].0.release(&mut pool),
                }
                pool.assert_conserved(tables.iter().map(|(table, _)| table));
            }
            for (table, _) in &mut tables {
                table.release(&mut pool);
            }
            prop_assert_eq!(pool.usage().held, 0);
        }
    }
}
