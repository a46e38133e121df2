//! Reference-counted KV blocks and the prefix cache over them.

use std::collections::{BTreeMap, HashMap};

use crate::protocol::{BLOCK_TOKENS, BlockId, TokenId};

/// Identifies a cached block together with its whole prefix. Links are never reused, so
/// a chain of them is an exact key: no hash collision can return another prompt's cache.
pub(super) type Link = u64;

/// The parent link of a sequence's first block.
pub(super) const ROOT: Link = 0;

/// Usage of a pool's blocks. `free + cached + held = total` at all times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct PoolUsage {
    /// Total number of blocks.
    pub total: u32,
    /// Blocks with no reusable content.
    pub free: u32,
    /// Unreferenced blocks kept for prompts with the same prefix; evicted when a block is
    /// needed and none is free.
    pub cached: u32,
    /// Blocks referenced by sequences; a shared block counts once.
    pub held: u32,
}

/// The KV blocks of one model.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<BlockState>,
    free: Vec<BlockId>,
    held: u32,
    /// Published blocks, keyed by their parent link and their own tokens.
    index: HashMap<(Link, Box<[TokenId]>), BlockId>,
    /// Unreferenced published blocks in order of release; eviction takes the first (LRU).
    evictable: BTreeMap<u64, BlockId>,
    next_link: Link,
    next_release: u64,
}

#[derive(Debug, Default)]
struct BlockState {
    references: u32,
    published: Option<Published>,
    /// Key in `evictable` while unreferenced and published.
    released: u64,
}

#[derive(Debug)]
struct Published {
    before: Link,
    tokens: Box<[TokenId]>,
    link: Link,
}

impl BlockPool {
    /// Creates a pool of `total` free blocks.
    pub fn new(total: u32) -> BlockPool {
        BlockPool {
            blocks: (0..total).map(|_| BlockState::default()).collect(),
            // popped from the end: low ids go first
            free: (0..total).rev().map(BlockId).collect(),
            held: 0,
            index: HashMap::new(),
            evictable: BTreeMap::new(),
            next_link: ROOT + 1,
            next_release: 0,
        }
    }

    /// Blocks that `allocate` could return now: free and evictable ones.
    pub fn available(&self) -> u32 {
        (self.free.len() + self.evictable.len()) as u32
    }

    /// Total number of blocks.
    pub fn total(&self) -> u32 {
        self.blocks.len() as u32
    }

    /// Current usage.
    pub fn usage(&self) -> PoolUsage {
        PoolUsage {
            total: self.total(),
            free: self.free.len() as u32,
            cached: self.evictable.len() as u32,
            held: self.held,
        }
    }

    /// Allocates a block with one reference, evicting the least recently released cached
    /// block if none is free. `None` if every block is held.
    pub(super) fn allocate(&mut self) -> Option<BlockId> {
        let block = self.free.pop().or_else(|| self.evict())?;
        let state = &mut self.blocks[block.index()];
        assert_eq!(state.references, 0, "a held block was allocated");
        state.references = 1;
        self.held += 1;
        Some(block)
    }

    fn evict(&mut self) -> Option<BlockId> {
        let (_, block) = self.evictable.pop_first()?;
        let published = self.blocks[block.index()].published.take().expect("evictable blocks are published");
        self.index.remove(&(published.before, published.tokens));
        Some(block)
    }

    /// Looks up the published block that holds `tokens` right after the chain `before` and
    /// adds a reference. Returns it with the link of the extended chain.
    pub(super) fn find(&mut self, before: Link, tokens: &[TokenId]) -> Option<(BlockId, Link)> {
        let block = self.lookup(before, tokens)?;
        let state = &mut self.blocks[block.index()];
        let link = state.published.as_ref().expect("indexed blocks are published").link;
        if state.references == 0 {
            self.evictable.remove(&state.released);
            self.held += 1;
        }
        state.references += 1;
        Some((block, link))
    }

    /// Returns how many leading full blocks of `tokens` are cached, and how many of those are
    /// unreferenced. Takes no references.
    pub fn peek_prefix(&self, tokens: &[TokenId]) -> (u32, u32) {
        let mut before = ROOT;
        let (mut found, mut unheld) = (0, 0);
        for chunk in tokens.chunks_exact(BLOCK_TOKENS as usize) {
            let Some(block) = self.lookup(before, chunk) else { break };
            let state = &self.blocks[block.index()];
            before = state.published.as_ref().expect("indexed blocks are published").link;
            found += 1;
            unheld += u32::from(state.references == 0);
        }
        (found, unheld)
    }

    fn lookup(&self, before: Link, tokens: &[TokenId]) -> Option<BlockId> {
        // the key type owns its tokens, hence one short-lived copy per lookup
        self.index.get(&(before, tokens.into())).copied()
    }

    /// Publishes a held block whose `tokens` are all computed to the prefix cache. Returns the
    /// link of the chain it ends; the existing one if another block already holds the same.
    pub(super) fn publish(&mut self, block: BlockId, before: Link, tokens: &[TokenId]) -> Link {
        debug_assert_eq!(tokens.len(), BLOCK_TOKENS as usize);
        if let Some(twin) = self.lookup(before, tokens) {
            return self.blocks[twin.index()].published.as_ref().expect("indexed blocks are published").link;
        }
        let link = self.next_link;
        self.next_link += 1;
        let state = &mut self.blocks[block.index()];
        assert!(
            state.references > 0 && state.published.is_none(),
            "only held, unpublished blocks are published"
        );
        state.published = Some(Published { before, tokens: tokens.into(), link });
        self.index.insert((before, tokens.into()), block);
        link
    }

    /// Drops one reference. An unreferenced block stays cached if it was published and is
    /// freed otherwise.
    pub(super) fn release(&mut self, block: BlockId) {
        let state = &mut self.blocks[block.index()];
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

    /// Asserts the pool's invariants; `tables` are the blocks of all tables that draw on it.
    ///
    /// # Panics
    /// If a block leaked, is miscounted, or is held and free at once.
    pub fn assert_conserved<T: AsRef<[BlockId]>>(&self, tables: impl IntoIterator<Item = T>) {
        let usage = self.usage();
        assert_eq!(usage.free + usage.cached + usage.held, usage.total, "blocks leaked: {usage:?}");
        let mut references = vec![0u32; self.blocks.len()];
        for table in tables {
            for &block in table.as_ref() {
                references[block.index()] += 1;
            }
        }
        for (block, state) in self.blocks.iter().enumerate() {
            assert_eq!(state.references, references[block], "block {block} is unreferenced or counted twice");
        }
    }
}
