//! A draft model: a round of proposals, each fed back or left. When a round of trees is settled, the
//! accepted path is moved together in its cache.
#![forbid(unsafe_code)]

use crate::protocol::{DraftForest, DraftSeed, ExecutorError, NodeId, Proposal};

use super::LOGIT_ROWS;
use super::forward::Model;
use super::pass::Pass;
use super::round::{Round, RoundPlace};
use super::workers::Workers;

/// A draft model and its round in progress.
pub(crate) struct ModelDrafter {
    pub(crate) model: Model,
    round: Round,
}

impl ModelDrafter {
    pub(crate) fn new(model: Model) -> ModelDrafter {
        ModelDrafter { model, round: Round::default() }
    }

    /// Feeds every seed's input; a proposal for each seed that wants one. Checked by the contract.
    pub(crate) fn start(
        &mut self,
        workers: &Workers,
        seeds: &[DraftSeed],
        forest: &mut DraftForest,
    ) -> Result<(), ExecutorError> {
        self.round.begin(seeds, 0);
        let mut pass = Pass::default();
        for DraftSeed { input, limit, .. } in seeds {
            pass.push_chain(&input.blocks, &input.tokens, input.start, usize::from(*limit > 0));
        }
        self.model.forward(&workers.pool, &pass, None)?;
        let proposing: Vec<usize> = (0..seeds.len()).filter(|&index| seeds[index].limit > 0).collect();
        let places: Vec<&RoundPlace> = proposing.iter().map(|&index| &self.round.rows[index].end).collect();
        for (&seed, proposal) in proposing.iter().zip(propose(&mut self.model, workers, &places)?) {
            forest.add_root(seed as u32, proposal);
        }
        Ok(())
    }

    /// Feeds these nodes of these seeds; adds a proposal after each.
    pub(crate) fn extend(
        &mut self,
        workers: &Workers,
        nodes: &[NodeId],
        seeds: &[u32],
        forest: &mut DraftForest,
    ) -> Result<(), ExecutorError> {
        self.round.feed(nodes, seeds, forest)?;
        let mut pass = Pass::default();
        let mut places = Vec::with_capacity(nodes.len());
        for &id in nodes {
            let node = self.round.node(id)?;
            let blocks = &self.round.rows[node.row].blocks;
            pass.push_node(blocks, node.token, self.round.input_slots(node.row) as usize, &node.tail);
            places.push(&node.place);
        }
        self.model.forward(&workers.pool, &pass, None)?;
        for (&id, proposal) in nodes.iter().zip(propose(&mut self.model, workers, &places)?) {
            forest.add_child(id, proposal);
        }
        Ok(())
    }

    /// Moves the keys and values of accepted nodes to right behind the input.
    pub(crate) fn settle(&mut self, accepted: &[NodeId]) {
        for node in accepted.iter().filter_map(|&id| self.round.node(id).ok()) {
            let Some(&from) = node.tail.last() else { continue };
            // ascending depth, and no slot is left of where it goes: nothing is overwritten that moves
            let to = self.round.input_slots(node.row) as usize + node.tail.len() - 1;
            if from as usize != to {
                self.model.layers.cache.copy_slot(&self.round.rows[node.row].blocks, from as usize, to);
            }
        }
    }
}

/// A proposal for each of these places, whose features the model holds in order.
fn propose(
    model: &mut Model,
    workers: &Workers,
    places: &[&RoundPlace],
) -> Result<Vec<Proposal>, ExecutorError> {
    let mut proposals = Vec::with_capacity(places.len());
    for group in places.chunks(LOGIT_ROWS) {
        let first = proposals.len();
        let logits = model.logits(&workers.pool, first..first + group.len())?;
        proposals.extend(
            workers.sample(group.len(), |index, sampler| {
                group[index].propose(sampler, logits.row(index), None)
            })?,
        );
    }
    Ok(proposals)
}
