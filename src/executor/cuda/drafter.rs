//! What drafts on a GPU.
#![forbid(unsafe_code)]

use super::draft_round::DraftRound;
use super::heads::HeadDrafter;
use super::runner::{DeviceQueue, Runner};
use crate::protocol::{Compaction, DraftForest, DraftSeed, ExecutorError, NodeId, Proposal};

/// A draft model or a draft head, with its round in progress.
pub enum CudaDrafter {
    /// A model with its own cache.
    Model(Box<ModelDrafter>),
    /// A head that reads hidden states of the target.
    Head(Box<HeadDrafter>),
}

impl CudaDrafter {
    /// Graphs captured so far.
    pub fn graph_count(&self) -> usize {
        match self {
            CudaDrafter::Model(draft) => draft.runner.graph_count(),
            CudaDrafter::Head(head) => head.graph_count(),
        }
    }
}

/// A draft model: a round of proposals, each fed back until its row is left out.
pub struct ModelDrafter {
    /// The model.
    pub runner: Runner,
    round: DraftRound,
    /// Room for one call's proposals, reused.
    proposals: Vec<Proposal>,
}

impl ModelDrafter {
    /// Drafts with a model.
    pub fn new(runner: Runner) -> ModelDrafter {
        ModelDrafter { runner, round: DraftRound::default(), proposals: Vec::new() }
    }

    /// Feeds every seed's input; a proposal for each seed that wants one. Checked by the contract.
    ///
    /// # Errors
    /// [`ExecutorError::Device`].
    pub fn start(
        &mut self,
        seeds: &[DraftSeed],
        queue: &mut DeviceQueue,
        forest: &mut DraftForest,
    ) -> Result<(), ExecutorError> {
        self.round.start(seeds, &mut self.runner, queue, &mut self.proposals)?;
        let proposed = seeds.iter().zip(&self.proposals).enumerate().filter(|(_, (seed, _))| seed.limit > 0);
        for (index, (_, &proposal)) in proposed {
            forest.add_root(index as u32, proposal);
        }
        Ok(())
    }

    /// Feeds these nodes of these seeds; adds a proposal after each node.
    ///
    /// # Errors
    /// [`ExecutorError::Device`].
    pub fn extend(
        &mut self,
        nodes: &[NodeId],
        seeds: &[u32],
        queue: &mut DeviceQueue,
        forest: &mut DraftForest,
    ) -> Result<(), ExecutorError> {
        self.round.go_on(nodes, seeds, forest, &mut self.runner, queue, &mut self.proposals)?;
        for (&node, &proposal) in nodes.iter().zip(&self.proposals) {
            forest.add_child(node, proposal);
        }
        Ok(())
    }

    /// The moves in the draft model's cache that bring accepted nodes together; `accepted` is ascending.
    pub fn settle(&self, accepted: &[NodeId], forest: &DraftForest) -> Vec<Compaction> {
        self.round.settle(accepted, forest)
    }
}
