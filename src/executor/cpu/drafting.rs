//! A draft model: a round of proposals, each fed back or left.
//!
//! What is fed in a round stands behind the seed's input in its cache, in the order in which it is fed.
//! Each node sees the input and its ancestors. In a chain that is everything before it; in a tree the
//! accepted path is moved together when the round is settled.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;

use crate::protocol::{DraftForest, DraftNode, DraftSeed, ExecutorError, NodeId, Proposal, TokenMask};

use super::LOGIT_ROWS;
use super::forward::Model;
use super::pass::Pass;
use super::round::{RoundPlace, RoundRow};
use super::workers::Workers;

/// A draft model and its round in progress.
pub(crate) struct ModelDrafter {
    pub(crate) model: Model,
    rows: Vec<RoundRow>,
    /// Nodes that each row was fed.
    fed: Vec<u32>,
    nodes: HashMap<NodeId, FedNode>,
}

/// A node that was fed.
struct FedNode {
    row: usize,
    /// The slots of its ancestors behind the input, and its own.
    tail: Vec<u32>,
    /// Where what follows it stands.
    place: RoundPlace,
}

impl ModelDrafter {
    pub(crate) fn new(model: Model) -> ModelDrafter {
        ModelDrafter { model, rows: Vec::new(), fed: Vec::new(), nodes: HashMap::new() }
    }

    /// Feeds every seed's input; a proposal for each seed that wants one. Checked by the contract.
    pub(crate) fn start(
        &mut self,
        workers: &Workers,
        seeds: &[DraftSeed],
        forest: &mut DraftForest,
    ) -> Result<(), ExecutorError> {
        self.rows.clear();
        self.nodes.clear();
        let mut pass = Pass::default();
        for DraftSeed { input, limit, .. } in seeds {
            pass.push_chain(&input.blocks, &input.tokens, input.start, usize::from(*limit > 0));
        }
        self.model.forward(&workers.pool, &pass, None)?;
        self.rows.extend(seeds.iter().map(RoundRow::of));
        self.fed.clear();
        self.fed.resize(seeds.len(), 0);
        let proposing: Vec<usize> = (0..seeds.len()).filter(|&index| seeds[index].limit > 0).collect();
        let places: Vec<&RoundPlace> = proposing.iter().map(|&index| &self.rows[index].end).collect();
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
        let mut fed = Vec::with_capacity(nodes.len());
        for (&id, &seed) in nodes.iter().zip(seeds) {
            let node = forest.get(id).ok_or_else(|| unknown(id))?;
            fed.push((self.feed(seed as usize, node, forest.mask(id).cloned())?, node.proposal.token));
        }
        let mut pass = Pass::default();
        for (node, token) in &fed {
            let row = &self.rows[node.row];
            pass.push_node(&row.blocks, *token, row.end.position as usize, &node.tail);
        }
        self.model.forward(&workers.pool, &pass, None)?;
        let places: Vec<&RoundPlace> = fed.iter().map(|(node, _)| &node.place).collect();
        for (&id, proposal) in nodes.iter().zip(propose(&mut self.model, workers, &places)?) {
            forest.add_child(id, proposal);
        }
        self.nodes.extend(nodes.iter().copied().zip(fed.into_iter().map(|(node, _)| node)));
        Ok(())
    }

    /// Gives a node its slot, the next of its row.
    fn feed(
        &mut self,
        row: usize,
        node: &DraftNode,
        mask: Option<Arc<TokenMask>>,
    ) -> Result<FedNode, ExecutorError> {
        let end = &self.rows[row].end;
        let (mut tail, mut place) = match node.parent {
            None => (Vec::new(), end.clone()),
            Some(before) => {
                let before = self.nodes.get(&before).ok_or_else(|| unknown(before))?;
                (before.tail.clone(), before.place.clone())
            }
        };
        tail.push(end.position + self.fed[row]);
        self.fed[row] += 1;
        place.advance(node.proposal.token, mask);
        Ok(FedNode { row, tail, place })
    }

    /// Moves the keys and values of accepted nodes to right behind the input.
    pub(crate) fn settle(&mut self, accepted: &[NodeId]) {
        for node in accepted.iter().filter_map(|id| self.nodes.get(id)) {
            let row = &self.rows[node.row];
            let Some(&from) = node.tail.last() else { continue };
            // ascending depth, and no slot is left of where it goes: nothing is overwritten that moves
            let to = row.end.position as usize + node.tail.len() - 1;
            if from as usize != to {
                self.model.layers.cache.copy_slot(&row.blocks, from as usize, to);
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

fn unknown(id: NodeId) -> ExecutorError {
    ExecutorError::Malformed(format!("draft node {} was not fed", id.0))
}
