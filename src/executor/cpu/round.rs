//! The sequences of a drafting round, as drafters of every kind keep them.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;

use crate::protocol::{
    BlockId, DraftForest, DraftSeed, ExecutorError, NodeId, Proposal, SamplingParams, TokenId, TokenMask,
};
use crate::sampling::{DraftVocabulary, Sampler, TokenHistory};

/// The round in progress of a drafter that is fed its nodes, level by level.
///
/// What is fed stands behind the input of its seed in the drafter's cache, in the order in which it is
/// fed. Each node sees the input and its ancestors. In a chain that is everything before it.
#[derive(Debug, Default)]
pub(crate) struct Round {
    /// One per seed.
    pub(crate) rows: Vec<RoundRow>,
    /// Nodes that each row was fed.
    fed: Vec<u32>,
    nodes: HashMap<NodeId, FedNode>,
    /// By how many slots a node stands before the position of its token.
    ahead: u32,
}

/// A node that was fed.
#[derive(Debug)]
pub(crate) struct FedNode {
    /// Index of its row.
    pub(crate) row: usize,
    /// What it follows; `None`: the input.
    pub(crate) parent: Option<NodeId>,
    pub(crate) token: TokenId,
    /// Its place among the nodes of the call that fed it.
    pub(crate) in_call: usize,
    /// The slots of its ancestors behind the input, and its own.
    pub(crate) tail: Vec<u32>,
    /// Where what follows it stands.
    pub(crate) place: RoundPlace,
}

impl Round {
    /// Begins with a row for each of these seeds. The cache holds their inputs, but for the last `ahead`
    /// tokens.
    pub(crate) fn begin(&mut self, seeds: &[DraftSeed], ahead: u32) {
        self.rows.clear();
        self.rows.extend(seeds.iter().map(RoundRow::of));
        self.fed.clear();
        self.fed.resize(seeds.len(), 0);
        self.nodes.clear();
        self.ahead = ahead;
    }

    /// Slots of a row's input.
    pub(crate) fn input_slots(&self, row: usize) -> u32 {
        self.rows[row].end.position - self.ahead
    }

    /// Gives these nodes of these seeds their slots.
    ///
    /// # Errors
    /// [`ExecutorError::Malformed`] for a node that is unknown or follows one that was not fed.
    pub(crate) fn feed(
        &mut self,
        ids: &[NodeId],
        seeds: &[u32],
        forest: &DraftForest,
    ) -> Result<(), ExecutorError> {
        for (in_call, (&id, &seed)) in ids.iter().zip(seeds).enumerate() {
            let (node, row) = (forest.get(id).ok_or_else(|| not_fed(id))?, seed as usize);
            let (mut tail, mut place) = match node.parent {
                None => (Vec::new(), self.rows[row].end.clone()),
                Some(parent) => {
                    let parent = self.node(parent)?;
                    (parent.tail.clone(), parent.place.clone())
                }
            };
            tail.push(self.input_slots(row) + self.fed[row]);
            self.fed[row] += 1;
            let (parent, token) = (node.parent, node.proposal.token);
            place.advance(token, forest.mask(id).cloned());
            self.nodes.insert(id, FedNode { row, parent, token, in_call, tail, place });
        }
        Ok(())
    }

    /// A node that was fed.
    ///
    /// # Errors
    /// [`ExecutorError::Malformed`] for one that was not.
    pub(crate) fn node(&self, id: NodeId) -> Result<&FedNode, ExecutorError> {
        self.nodes.get(&id).ok_or_else(|| not_fed(id))
    }
}

fn not_fed(id: NodeId) -> ExecutorError {
    ExecutorError::Malformed(format!("draft node {} was not fed", id.0))
}

/// One seed's sequence within a round.
#[derive(Debug)]
pub(crate) struct RoundRow {
    pub(crate) blocks: Vec<BlockId>,
    /// Where its next proposal stands.
    pub(crate) end: RoundPlace,
}

/// A place behind a seed's input: what decides on the proposal there beside the logits.
#[derive(Clone, Debug)]
pub(crate) struct RoundPlace {
    sampling: Arc<SamplingParams>,
    /// Committed tokens and what was proposed and fed back, where penalties look at them.
    history: TokenHistory,
    /// The tokens that the proposal may be; `None`: any.
    mask: Option<Arc<TokenMask>>,
    /// Its position.
    pub(crate) position: u32,
}

impl RoundRow {
    /// The sequence after the seed's input.
    pub(crate) fn of(seed: &DraftSeed) -> RoundRow {
        let input = &seed.input;
        let end = RoundPlace {
            sampling: Arc::clone(&input.sampling),
            history: TokenHistory::of(input),
            mask: seed.mask.clone(),
            position: input.start + input.tokens.len() as u32,
        };
        RoundRow { blocks: input.blocks.clone(), end }
    }
}

impl RoundPlace {
    /// Goes on by a proposal; `mask` says what may follow it.
    pub(crate) fn advance(&mut self, token: TokenId, mask: Option<Arc<TokenMask>>) {
        self.position += 1;
        self.mask = mask;
        if self.sampling.has_penalties() {
            self.history.push(token);
        }
    }

    /// The proposal, from the drafter's logits over the target's tokens, or over those of
    /// `vocabulary`.
    pub(crate) fn propose(
        &self,
        sampler: &mut Sampler,
        logits: &[f32],
        vocabulary: Option<&DraftVocabulary>,
    ) -> Proposal {
        let (mask, params, history) = (self.mask.as_deref(), &*self.sampling, &self.history);
        match vocabulary {
            None => sampler.propose_allowed(logits, mask, params, self.position, history),
            Some(vocabulary) => {
                sampler.propose_mapped(logits, vocabulary, mask, params, self.position, history)
            }
        }
    }
}
