//! What the contract knows of the drafting round in progress.

use crate::protocol::{BlockId, DraftForest, DraftSeed, ExecutorInfo, NodeId, RequestId};

/// The seeds of a round, and how often it was extended. Keeps its memory from round to round.
#[derive(Clone, Debug, Default)]
pub(super) struct Round {
    seeds: Vec<Seed>,
    /// Of each seed, the blocks from the one that holds its first proposal on.
    blocks: Vec<BlockId>,
    extensions: u32,
    /// For each node of the forest so far, whether it was fed.
    fed: Vec<bool>,
}

#[derive(Clone, Copy, Debug)]
struct Seed {
    request: RequestId,
    proposes: bool,
    /// Position of the first proposal.
    end: u32,
    /// Nodes that it was fed.
    fed: u32,
    /// The block that the current call writes to on its behalf, with the call's number.
    writes: Option<(u32, BlockId)>,
    /// Range in [`Round::blocks`].
    blocks: (usize, usize),
}

impl Round {
    pub fn clear(&mut self) {
        self.seeds.clear();
        self.blocks.clear();
        self.extensions = 0;
        self.fed.clear();
    }

    pub fn push(&mut self, seed: &DraftSeed, block_tokens: u32) {
        let input = &seed.input;
        let end = input.start + input.tokens.len() as u32;
        let first = self.blocks.len();
        let ahead = input.blocks.get((end / block_tokens) as usize..);
        self.blocks.extend_from_slice(ahead.unwrap_or_default());
        self.seeds.push(Seed {
            request: input.request,
            proposes: seed.limit > 0,
            end,
            fed: 0,
            writes: None,
            blocks: (first, self.blocks.len()),
        });
    }

    /// The seed of a node that the next call may feed.
    pub fn seed_of(&self, id: NodeId, forest: &DraftForest, info: &ExecutorInfo) -> Result<u32, String> {
        let node = forest.get(id).ok_or_else(|| format!("no draft node {}", id.0))?;
        let seed = self.seeds.get(node.seed as usize).filter(|seed| seed.proposes);
        if seed.is_none() {
            return Err(format!("node {} of seed {}, which does not propose", id.0, node.seed));
        }
        // a seed's nodes are fed level by level: what was left out of a call stays out
        if node.depth != self.extensions || node.parent.is_some_and(|parent| !self.was_fed(parent)) {
            return Err(format!(
                "node {} does not follow what the last call fed to seed {}",
                id.0, node.seed
            ));
        }
        let branches = info.drafter.as_ref().is_some_and(|needs| needs.branches);
        if node.rank > 0 && !branches {
            return Err(format!("node {} is not the choice of the drafter for seed {}", id.0, node.seed));
        }
        if self.was_fed(id) {
            return Err(format!("node {} of seed {} was fed before", id.0, node.seed));
        }
        if !node.proposal.finite || node.proposal.token >= info.vocab_size {
            return Err(format!("node {} of seed {} is no token to extend", id.0, node.seed));
        }
        Ok(node.seed)
    }

    /// Request of a seed and the place of what is fed to it next: behind its input and all that it was
    /// fed in this round.
    pub fn next_input(&self, seed: u32) -> (RequestId, u32) {
        let seed = &self.seeds[seed as usize];
        (seed.request, seed.end.saturating_add(seed.fed))
    }

    /// Notes that a call feeds a node.
    pub fn feed(&mut self, id: NodeId, seed: u32) {
        self.seeds[seed as usize].fed += 1;
        let index = id.0 as usize;
        if self.fed.len() <= index {
            self.fed.resize(index + 1, false);
        }
        self.fed[index] = true;
    }

    fn was_fed(&self, id: NodeId) -> bool {
        self.fed.get(id.0 as usize).copied().unwrap_or(false)
    }

    /// Undoes [`feed`](Self::feed).
    pub fn take_back(&mut self, id: NodeId, seed: u32) {
        self.seeds[seed as usize].fed -= 1;
        self.seeds[seed as usize].writes = None;
        self.fed[id.0 as usize] = false;
    }

    /// Notes that the current call writes to a block on behalf of a seed; whether it did already.
    pub fn writes(&mut self, seed: u32, block: BlockId) -> bool {
        let write = Some((self.extensions, block));
        std::mem::replace(&mut self.seeds[seed as usize].writes, write) == write
    }

    /// The block of a position behind a seed's input.
    pub fn block(&self, seed: u32, position: u32, block_tokens: u32) -> Option<BlockId> {
        let seed = &self.seeds[seed as usize];
        let ahead = position / block_tokens - seed.end / block_tokens;
        self.blocks[seed.blocks.0..seed.blocks.1].get(ahead as usize).copied()
    }

    pub fn extended(&mut self) {
        self.extensions += 1;
    }
}
