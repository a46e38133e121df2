//! A draft model: a round of proposals, each fed back until its row is left out.
#![forbid(unsafe_code)]

use crate::protocol::{DraftForest, DraftSeed, ExecutorError, NodeId, Proposal};

use super::LOGIT_ROWS;
use super::forward::Model;
use super::pass::Pass;
use super::round::RoundRow;
use super::workers::Workers;

/// A draft model and its round in progress.
pub(crate) struct ModelDrafter {
    pub(crate) model: Model,
    rows: Vec<RoundRow>,
}

impl ModelDrafter {
    pub(crate) fn new(model: Model) -> ModelDrafter {
        ModelDrafter { model, rows: Vec::new() }
    }

    /// Feeds every seed's input; a proposal for each seed that wants one. Checked by the contract.
    pub(crate) fn start(
        &mut self,
        workers: &Workers,
        seeds: &[DraftSeed],
        forest: &mut DraftForest,
    ) -> Result<(), ExecutorError> {
        self.rows.clear();
        let mut pass = Pass::default();
        for DraftSeed { input, limit, .. } in seeds {
            pass.push_chain(&input.blocks, &input.tokens, input.start, usize::from(*limit > 0));
        }
        self.model.forward(&workers.pool, &pass, None)?;
        self.rows.extend(seeds.iter().map(RoundRow::of));
        let proposing: Vec<usize> = (0..seeds.len()).filter(|&index| seeds[index].limit > 0).collect();
        for (&seed, proposal) in proposing.iter().zip(self.propose(workers, &proposing)?) {
            forest.add_root(seed as u32, proposal);
        }
        Ok(())
    }

    /// Feeds each of these seeds the token of its latest node; adds a proposal after each node.
    pub(crate) fn extend(
        &mut self,
        workers: &Workers,
        nodes: &[NodeId],
        seeds: &[u32],
        forest: &mut DraftForest,
    ) -> Result<(), ExecutorError> {
        let kept: Vec<usize> = seeds.iter().map(|&seed| seed as usize).collect();
        let tokens = nodes.iter().filter_map(|&node| Some(forest.get(node)?.proposal.token));
        let mut pass = Pass::default();
        for (&index, token) in kept.iter().zip(tokens.clone()) {
            pass.push_chain(&self.rows[index].blocks, &[token], self.rows[index].next, 1);
        }
        self.model.forward(&workers.pool, &pass, None)?;
        for ((&index, token), &node) in kept.iter().zip(tokens).zip(nodes) {
            self.rows[index].advance(token, forest.mask(node).cloned());
        }
        for (&node, proposal) in nodes.iter().zip(self.propose(workers, &kept)?) {
            forest.add_child(node, proposal);
        }
        Ok(())
    }

    /// One proposal for each of these rows of the round, whose features the model holds in order.
    fn propose(&mut self, workers: &Workers, rows: &[usize]) -> Result<Vec<Proposal>, ExecutorError> {
        let mut proposals = Vec::with_capacity(rows.len());
        for group in rows.chunks(LOGIT_ROWS) {
            let first = proposals.len();
            let logits = self.model.logits(&workers.pool, first..first + group.len())?;
            let round = &self.rows;
            proposals.extend(workers.sample(group.len(), |index, sampler| {
                round[group[index]].propose(sampler, logits.row(index), None)
            })?);
        }
        Ok(proposals)
    }
}
