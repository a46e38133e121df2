//! Drafters of chains: one proposal per seed and call, each behind the one before.
#![forbid(unsafe_code)]

use super::Drafter;
use crate::protocol::{DraftForest, DraftSeed, ExecutorError, NodeId, Proposal};

/// A drafter driven as chains, by the index of each seed: what a caller that never branches needs.
#[derive(Debug, Default)]
pub struct DraftChains {
    forest: DraftForest,
    /// For each seed, its latest node.
    ends: Vec<Option<NodeId>>,
}

impl DraftChains {
    /// [`Drafter::start`]; writes one proposal per seed to `out`, a default one where there is
    /// none.
    ///
    /// # Errors
    /// The drafter's.
    pub fn start(
        &mut self,
        drafter: &mut dyn Drafter,
        seeds: &[DraftSeed],
        out: &mut Vec<Proposal>,
    ) -> Result<(), ExecutorError> {
        self.forest.clear();
        self.ends.clear();
        self.ends.resize(seeds.len(), None);
        drafter.start(seeds, &mut self.forest)?;
        out.clear();
        out.resize(seeds.len(), Proposal::default());
        for (id, node) in self.forest.since(0) {
            out[node.seed as usize] = node.proposal;
            self.ends[node.seed as usize] = Some(id);
        }
        Ok(())
    }

    /// [`Drafter::extend`] of the latest nodes of these seeds; writes one proposal for each to
    /// `out`.
    ///
    /// # Errors
    /// The drafter's, and [`ExecutorError::Malformed`] for a seed without a proposal.
    pub fn extend(
        &mut self,
        drafter: &mut dyn Drafter,
        seeds: &[u32],
        out: &mut Vec<Proposal>,
    ) -> Result<(), ExecutorError> {
        let end = |&seed: &u32| self.ends.get(seed as usize).copied().flatten();
        let nodes: Option<Vec<NodeId>> = seeds.iter().map(end).collect();
        let nodes = nodes.ok_or_else(|| ExecutorError::Malformed(format!("no proposals for {seeds:?}")))?;
        let known = self.forest.len();
        drafter.extend(&nodes, &mut self.forest)?;
        out.clear();
        for (id, node) in self.forest.since(known) {
            out.push(node.proposal);
            self.ends[node.seed as usize] = Some(id);
        }
        Ok(())
    }
}
