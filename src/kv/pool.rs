//! Reference-counted blocks, and the prefix cache over those that nobody holds.

use std::collections::{BTreeMap, HashMap};

use crate::protocol::{BLOCK_TOKENS, BlockId, TokenId};

/// Names a cached block together with everything before it. Never reused, so a chain
/// of links is an exact key: no hash collision can hand out another prompt's cache.
pub(super) type Link = u64;

/// The link before a sequence's first block.
pub(super) const ROOT: Link = 0;

/// How a pool's blocks are used. `free + cached + held = total` at all times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct PoolUsage {
    /// Blocks in the pool.
    pub total: u32,
    /// Blocks with no content worth keeping.
    pub free: u32,
    /// Blocks that nobody holds, kept for a prompt with the same beginning; given up
    /// when a block is wanted and none is free.
    pub cached: u32,
    /// Blocks that sequences hold; a shared block counts once.
    pub held: u32,
}

/// One model's blocks.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<BlockState>,
    free: Vec<BlockId>,
    held: u32,
    /// Published blocks by what stands before them and their own tokens.
    index: HashMap<(Link, Box<[TokenId]>), BlockId>,
    /// Unheld published blocks by the time of their release: eviction takes the first.
    evictable: BTreeMap<u64, BlockId>,
    next_link: Link,
    next_release: u64,
}

#[derive(Debug, Default)]
struct BlockState {
    references: u32,
    published: Option<Published>,
    /// Key in `evictable` while unheld and published.
    released: u64,
}

#[derive(Debug)]
struct Published {
    before: Link,
    tokens: Box<[TokenId]>,
    link: Link,
}

impl BlockPool {
    /// A pool of `total` free blocks.
    pub fn new(total: u32) -> BlockPool {
        BlockPool {
            blocks: (0..total).map(|_| BlockState::default()).collect(),
            // popped from the end: low ids go first
            free: (0..total).rev().collect(),
            held: 0,
            index: HashMap::new(),
            evictable: BTreeMap::new(),
            next_link: ROOT + 1,
            next_release: 0,
        }
    }

    /// Blocks that `allocate` could hand out now.
    pub fn available(&self) -> u32 {
        (self.free.len() + self.evictable.len()) as u32
    }

    /// Blocks in the pool.
    pub fn total(&self) -> u32 {
        self.blocks.len() as u32
    }

    /// How the blocks are used.
    pub fn usage(&self) -> PoolUsage {
        PoolUsage {
            total: self.total(),
            free: self.free.len() as u32,
            cached: self.evictable.len() as u32,
            held: self.held,
        }
    }

    /// One block with one reference, or `None` when every block is held. The least
    /// recently released cached block is given up when none is free.
    pub(super) fn allocate(&mut self) -> Option<BlockId> {
        let block = self.free.pop().or_else(|| self.evict())?;
        let state = &mut self.blocks[block as usize];
        assert_eq!(state.references, 0, "a held block was handed out");
        state.references = 1;
        self.held += 1;
        Some(block)
    }

    fn evict(&mut self) -> Option<BlockId> {
        let (_, block) = self.evictable.pop_first()?;
        let published = self.blocks[block as usize].published.take().expect("evictable blocks are published");
        self.index.remove(&(published.before, published.tokens));
        Some(block)
    }

    /// The published block that holds `tokens` right after the chain `before`, with one
    /// more reference, and the link that it ends.
    pub(super) fn find(&mut self, before: Link, tokens: &[TokenId]) -> Option<(BlockId, Link)> {
        let block = self.lookup(before, tokens)?;
        let state = &mut self.blocks[block as usize];
        let link = state.published.as_ref().expect("indexed blocks are published").link;
        if state.references == 0 {
            self.evictable.remove(&state.released);
            self.held += 1;
        }
        state.references += 1;
        Some((block, link))
    }

    /// How many of the leading full blocks of `tokens` are cached, without taking them,
    /// and how many of those nobody holds.
    pub fn peek_prefix(&self, tokens: &[TokenId]) -> (u32, u32) {
        let mut before = ROOT;
        let (mut found, mut unheld) = (0, 0);
        for chunk in tokens.chunks_exact(BLOCK_TOKENS as usize) {
            let Some(block) = self.lookup(before, chunk) else { break };
            let state = &self.blocks[block as usize];
            before = state.published.as_ref().expect("indexed blocks are published").link;
            found += 1;
            unheld += u32::from(state.references == 0);
        }
        (found, unheld)
    }

    fn lookup(&self, before: Link, tokens: &[TokenId]) -> Option<BlockId> {
        // the key type owns its tokens; one short-lived copy per looked-up block
        self.index.get(&(before, tokens.into())).copied()
    }

    /// Makes a held block, whose `tokens` are all in the cache, findable. Returns the link
    /// that it ends: the existing one when another block already holds the same.
    pub(super) fn publish(&mut self, block: BlockId, before: Link, tokens: &[TokenId]) -> Link {
        debug_assert_eq!(tokens.len(), BLOCK_TOKENS as usize);
        if let Some(twin) = self.lookup(before, tokens) {
            return self.blocks[twin as usize].published.as_ref().expect("indexed blocks are published").link;
        }
        let link = self.next_link;
        self.next_link += 1;
        let state = &mut self.blocks[block as usize];
        assert!(
            state.references > 0 && state.published.is_none(),
            "only held, unpublished blocks are published"
        );
        state.published = Some(Published { before, tokens: tokens.into(), link });
        self.index.insert((before, tokens.into()), block);
        link
    }

    /// Gives one reference back. A block that nobody holds any more is cached if it was
    /// published, else free.
    pub(super) fn release(&mut self, block: BlockId) {
        let state = &mut self.blocks[block as usize];
        assert!(state.references > 0, "block {block} was released twice");
        state.references -= 1;
        if state.references > 0 {
            return;
        }
        self.held -= 1;
        if state.published.is_some() {
            state.released = self.next_release;
            self.evictable.insert(self.next_release, block);
            self.next_release += 1;
        } else {
            self.free.push(block);
        }
    }

    /// Checks the pool's own books (invariant 3); `tables` are the blocks of all tables that draw on it.
    ///
    /// # Panics
    /// When a block leaked, is counted wrongly, or is held and free at once.
    pub fn assert_conserved<T: AsRef<[BlockId]>>(&self, tables: impl IntoIterator<Item = T>) {
        let usage = self.usage();
        assert_eq!(usage.free + usage.cached + usage.held, usage.total, "blocks leaked: {usage:?}");
        let mut references = vec![0u32; self.blocks.len()];
        for table in tables {
            for &block in table.as_ref() {
                references[block as usize] += 1;
            }
        }
        for (block, state) in self.blocks.iter().enumerate() {
            assert_eq!(
                state.references, references[block],
                "block {block} is held by nobody or counted twice"
            );
        }
    }
}
