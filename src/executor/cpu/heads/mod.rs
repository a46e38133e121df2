//! Draft heads: drafters that read hidden states of the target.
//!
//! A head keeps keys and values of every committed token, computed from the token's hidden states, in
//! a cache that is indexed by the target's blocks. So a prefix that the target has cached is cached
//! for the head as well, and a sequence that was not drafted for does not lag behind. The states since
//! the last round stay in [`HiddenStates`] until the head drafts or there is no room for more.
#![forbid(unsafe_code)]

mod block;
mod common;
mod eagle3;

use super::CpuError;
use super::forward::Model;
use super::hidden_states::HiddenStates;
use super::kernels::InstructionSet;
use super::workers::Workers;
use crate::model::DraftHead;
use crate::protocol::{DraftForest, DraftSeed, ExecutorError, NodeId};

use self::block::Block;
pub(crate) use self::common::HeadBounds;
use self::eagle3::Eagle3;

/// Tokens whose hidden states may wait beside those of the next call.
pub(super) const WAITING_TOKENS: usize = 1024;

/// A head of any kind and its round in progress.
pub(crate) struct HeadDrafter {
    pub(crate) states: HiddenStates,
    kind: Kind,
}

enum Kind {
    Eagle3(Box<Eagle3>),
    Block(Box<Block>),
}

impl HeadDrafter {
    /// Packs a head that was loaded for its target.
    pub(crate) fn new(
        head: &DraftHead,
        set: InstructionSet,
        bounds: HeadBounds,
    ) -> Result<HeadDrafter, CpuError> {
        let features = &head.interface().features;
        let layers = features.layers.as_deref().ok_or_else(|| {
            CpuError::Unsupported("the draft head was loaded without its target".to_owned())
        })?;
        let capacity = bounds.batch_tokens + WAITING_TOKENS;
        Ok(HeadDrafter {
            states: HiddenStates::new(layers, features.target_hidden_size, capacity),
            kind: match head {
                DraftHead::Eagle3(head) => Kind::Eagle3(Box::new(Eagle3::new(head, set, bounds)?)),
                DraftHead::Block(head) => Kind::Block(Box::new(Block::new(head, set, bounds)?)),
            },
        })
    }

    /// Bytes of the packed matrices of its own.
    pub(crate) fn weight_bytes(&self) -> usize {
        match &self.kind {
            Kind::Eagle3(head) => head.parts.weight_bytes(),
            Kind::Block(head) => head.weight_bytes(),
        }
    }

    /// Bytes of its cache.
    pub(crate) fn kv_bytes(&self) -> usize {
        let parts = match &self.kind {
            Kind::Eagle3(head) => &head.parts,
            Kind::Block(head) => &head.parts,
        };
        parts.layers.cache.bytes()
    }

    /// Has the head read what it has not, unless there is room for the states of `tokens` more;
    /// returns the row of the first of them.
    pub(crate) fn make_room(
        &mut self,
        workers: &Workers,
        target: &Model,
        tokens: usize,
    ) -> Result<usize, ExecutorError> {
        if !self.states.tokens.has_room(tokens) {
            match &mut self.kind {
                Kind::Eagle3(head) => head.read(&workers.pool, target, &mut self.states)?,
                Kind::Block(head) => head.read(&workers.pool, &mut self.states)?,
            }
            self.states.tokens.clear();
        }
        Ok(self.states.tokens.used())
    }

    /// The first proposals of each seed that wants some. Checked by the contract.
    pub(crate) fn start(
        &mut self,
        workers: &Workers,
        target: &Model,
        seeds: &[DraftSeed],
        forest: &mut DraftForest,
    ) -> Result<(), ExecutorError> {
        match &mut self.kind {
            Kind::Eagle3(head) => head.start(workers, target, &mut self.states, seeds, forest),
            Kind::Block(head) => head.start(workers, target, &mut self.states, seeds, forest),
        }
    }

    /// The logits over the draft tokens that the last proposals were chosen by.
    #[cfg(test)]
    pub(crate) fn logits(&self) -> super::forward::LogitRows<'_> {
        match &self.kind {
            Kind::Eagle3(head) => head.parts.logits(),
            Kind::Block(head) => head.parts.logits(),
        }
    }

    /// The row of the logits of the first proposal of a lone seed.
    #[cfg(test)]
    pub(crate) fn first_slot(&self) -> usize {
        match &self.kind {
            Kind::Eagle3(_) => 0,
            Kind::Block(head) => head.first_slot,
        }
    }

    /// What follows these nodes of these seeds; nothing from a head that drafts blocks.
    pub(crate) fn extend(
        &mut self,
        workers: &Workers,
        target: &Model,
        nodes: &[NodeId],
        seeds: &[u32],
        forest: &mut DraftForest,
    ) -> Result<(), ExecutorError> {
        match &mut self.kind {
            Kind::Eagle3(head) => head.extend(workers, target, nodes, seeds, forest),
            Kind::Block(_) => Ok(()),
        }
    }
}
