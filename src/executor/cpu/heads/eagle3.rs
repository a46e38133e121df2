//! EAGLE-3 heads: a token per pass. The formulas are in [`crate::model::Eagle3Head`]'s module.
#![forbid(unsafe_code)]

use crate::executor::committed_states::{Committed, Slot};
use crate::model::Eagle3Head;
use crate::protocol::{DraftForest, DraftSeed, ExecutorError, NodeId, Proposal, TokenId};

use super::super::forward::Model;
use super::super::hidden_states::HiddenStates;
use super::super::kernels::InstructionSet;
use super::super::layers::PART_ROWS_MAX;
use super::super::packed::vector;
use super::super::pass::Pass;
use super::super::pool::{JobPanicked, Pool};
use super::super::round::{Round, RoundPlace};
use super::super::rows::Rows;
use super::super::workers::Workers;
use super::super::{CpuError, LOGIT_ROWS};
use super::common::{HeadBounds, Parts};

/// The head's only layer.
const LAYER: usize = 0;

/// An EAGLE-3 head and its round in progress.
pub(crate) struct Eagle3 {
    pub(super) parts: Parts,
    /// Norm of the embedding.
    embedding_norm: Vec<f32>,
    norm_before_residual: bool,
    norm_output: bool,
    round: Round,
    /// For each seed that drafts, its row in the first pass.
    firsts: Vec<usize>,
    /// The states that the next pass takes: fused ones, or the output of the pass before it.
    carried: Rows,
    /// The output of the pass that runs.
    carries: Rows,
    /// Normed final states of the last pass, in its order.
    finals: Rows,
    /// The embedding of one token.
    embedded: Vec<f32>,
}

/// One row of a pass.
#[derive(Clone, Debug)]
struct Link {
    seed: usize,
    /// The token that follows the state's.
    token: TokenId,
    /// Row of the state among those that were carried.
    source: usize,
    /// Slots of the seed that it sees from the first on ...
    prefix: u32,
    /// ... and those of the drafts before it, with its own.
    tail: Vec<u32>,
}

/// Where the state of a row of a pass is.
#[derive(Clone, Copy)]
enum State {
    /// In the row of the same index that was fused last.
    Fused,
    /// In this row of those that were carried.
    Carried(usize),
}

impl Eagle3 {
    pub(crate) fn new(
        head: &Eagle3Head,
        set: InstructionSet,
        bounds: HeadBounds,
    ) -> Result<Eagle3, CpuError> {
        let layers = std::slice::from_ref(&head.layer);
        let hidden = head.spec.hidden_size;
        Ok(Eagle3 {
            parts: Parts::new(&head.spec, &head.interface, &head.feature_norm, layers, set, bounds)?,
            embedding_norm: vector(&head.layer.attention_norm),
            norm_before_residual: head.norm_before_residual,
            norm_output: head.norm_output,
            round: Round::default(),
            firsts: Vec::new(),
            carried: Rows::new(bounds.sequences, hidden),
            carries: Rows::new(bounds.sequences, hidden),
            finals: Rows::new(bounds.sequences, hidden),
            embedded: vec![0.0; hidden],
        })
    }

    fn hidden(&self) -> usize {
        self.parts.layers.spec.hidden_size
    }

    /// Computes keys and values of all unread states.
    pub(crate) fn read(
        &mut self,
        pool: &Pool,
        target: &Model,
        states: &mut HiddenStates,
    ) -> Result<(), JobPanicked> {
        for tokens in states.tokens.read().chunks(PART_ROWS_MAX) {
            self.parts.fuse(pool, states, tokens)?;
            for (index, token) in tokens.iter().enumerate() {
                self.write_input(target, index, token.next, State::Fused);
            }
            let places: Vec<(usize, Slot)> =
                tokens.iter().map(|token| (token.position, token.slot)).collect();
            self.parts.layers.write_keys_and_values(pool, &places, LAYER)?;
        }
        Ok(())
    }

    /// Fuses the states of these tokens: one carried row for each.
    fn carry(&mut self, pool: &Pool, states: &HiddenStates, tokens: &[Committed]) -> Result<(), JobPanicked> {
        let hidden = self.hidden();
        for (part, tokens) in tokens.chunks(PART_ROWS_MAX).enumerate() {
            self.parts.fuse(pool, states, tokens)?;
            for index in 0..tokens.len() {
                let fused = self.parts.fusion.fused(index, hidden);
                self.carried.row_mut(part * PART_ROWS_MAX + index)[..hidden].copy_from_slice(fused);
            }
        }
        Ok(())
    }

    /// Writes the input of the attention for row `index` of a pass: the norms of the token's
    /// embedding and of the state before it.
    fn write_input(&mut self, target: &Model, index: usize, token: TokenId, state: State) {
        let hidden = self.hidden();
        self.parts.embed(target, token, &mut self.embedded);
        let Parts { layers, fusion, .. } = &mut self.parts;
        let state = match state {
            State::Fused => fusion.fused(index, hidden),
            State::Carried(row) => &self.carried.row(row)[..hidden],
        };
        let norm = layers.vector_norm();
        let input = &mut layers.attention_input_mut(index)[..2 * hidden];
        let (of_embedding, of_state) = input.split_at_mut(hidden);
        norm.write(&self.embedding_norm, &self.embedded, of_embedding);
        norm.write(&fusion.hidden_norm, state, of_state);
    }

    /// The first proposal of each seed that wants one, if the states of the token before its last one
    /// are there.
    pub(crate) fn start(
        &mut self,
        workers: &Workers,
        target: &Model,
        states: &mut HiddenStates,
        seeds: &[DraftSeed],
        forest: &mut DraftForest,
    ) -> Result<(), ExecutorError> {
        // the state of a token that is fed stands where the proposal before it does
        self.round.begin(seeds, 1);
        self.firsts.clear();
        self.firsts.resize(seeds.len(), 0);
        let block_tokens = self.parts.layers.cache.shape.block_tokens;
        let (mut tokens, mut links) = (Vec::new(), Vec::new());
        for (index, seed) in seeds.iter().enumerate().filter(|(_, seed)| seed.limit > 0) {
            // its keys and values are computed in the pass
            let Some(token) = link(states, seed, block_tokens) else { continue };
            let (prefix, source) = (token.position as u32, tokens.len());
            self.firsts[index] = source;
            links.push(Link { seed: index, token: token.next, source, prefix, tail: vec![prefix] });
            tokens.push(token);
        }
        self.read(&workers.pool, target, states)?;
        self.carry(&workers.pool, states, &tokens)?;
        self.pass(&workers.pool, target, &links)?;
        let places: Vec<&RoundPlace> = links.iter().map(|link| &self.round.rows[link.seed].end).collect();
        let proposals = propose(&mut self.parts, &mut self.finals, workers, target, &places)?;
        for (link, proposal) in links.iter().zip(proposals) {
            forest.add_root(link.seed as u32, proposal);
        }
        Ok(())
    }

    /// Feeds these nodes of these seeds; adds a proposal after each.
    pub(crate) fn extend(
        &mut self,
        workers: &Workers,
        target: &Model,
        nodes: &[NodeId],
        seeds: &[u32],
        forest: &mut DraftForest,
    ) -> Result<(), ExecutorError> {
        self.round.feed(nodes, seeds, forest)?;
        let mut links = Vec::with_capacity(nodes.len());
        for &id in nodes {
            let node = self.round.node(id)?;
            let source = match node.parent {
                None => self.firsts[node.row],
                Some(parent) => self.round.node(parent)?.in_call,
            };
            let prefix = self.round.input_slots(node.row);
            let tail = node.tail.clone();
            links.push(Link { seed: node.row, token: node.token, source, prefix, tail });
        }
        self.pass(&workers.pool, target, &links)?;
        let fed = nodes.iter().map(|&id| self.round.node(id).map(|node| &node.place));
        let places = fed.collect::<Result<Vec<&RoundPlace>, ExecutorError>>()?;
        let proposals = propose(&mut self.parts, &mut self.finals, workers, target, &places)?;
        for (&node, proposal) in nodes.iter().zip(proposals) {
            forest.add_child(node, proposal);
        }
        Ok(())
    }

    /// One pass over some links; afterwards their output is what is carried.
    fn pass(&mut self, pool: &Pool, target: &Model, links: &[Link]) -> Result<(), JobPanicked> {
        for (part, links) in links.chunks(PART_ROWS_MAX).enumerate() {
            self.pass_part(pool, target, links, part * PART_ROWS_MAX)?;
        }
        std::mem::swap(&mut self.carried, &mut self.carries);
        Ok(())
    }

    /// At most [`PART_ROWS_MAX`] links through the layer; final states and output from row `first`
    /// on.
    fn pass_part(
        &mut self,
        pool: &Pool,
        target: &Model,
        links: &[Link],
        first: usize,
    ) -> Result<(), JobPanicked> {
        let hidden = self.hidden();
        for (index, link) in links.iter().enumerate() {
            self.write_input(target, index, link.token, State::Carried(link.source));
            let (layers, carried) = (&mut self.parts.layers, &self.carried.row(link.source)[..hidden]);
            let norm = layers.vector_norm();
            match self.norm_before_residual {
                true => norm.write(&self.parts.fusion.hidden_norm, carried, layers.stream_mut(index)),
                false => layers.stream_mut(index).copy_from_slice(carried),
            }
        }
        let mut pass = Pass::default();
        for link in links {
            let blocks = &self.round.rows[link.seed].blocks;
            pass.push_node(blocks, link.token, link.prefix as usize, &link.tail);
        }
        let layers = &mut self.parts.layers;
        layers.project(pool, &pass, 0..links.len(), LAYER)?;
        let tiles = layers.tiles(&pass, (0..links.len()).collect(), pool);
        layers.attention(pool, &pass, &tiles, 0, LAYER)?;
        layers.mlp(pool, links.len(), LAYER)?;
        let norm = layers.vector_norm();
        for index in 0..links.len() {
            let output = layers.stream(index);
            let normed = &mut self.finals.row_mut(first + index)[..hidden];
            norm.write(&self.parts.final_norm, output, normed);
            let next = if self.norm_output { normed } else { output };
            self.carries.row_mut(first + index)[..hidden].copy_from_slice(next);
        }
        Ok(())
    }
}

/// A proposal for each of these places, whose final states are there in order.
fn propose(
    parts: &mut Parts,
    finals: &mut Rows,
    workers: &Workers,
    target: &Model,
    places: &[&RoundPlace],
) -> Result<Vec<Proposal>, ExecutorError> {
    let mut proposals = Vec::with_capacity(places.len());
    for group in places.chunks(LOGIT_ROWS) {
        let first = proposals.len();
        parts.compute_logits(&workers.pool, target, finals, first, group.len())?;
        let (logits, vocabulary) = (parts.logits(), parts.vocabulary.as_ref());
        proposals.extend(workers.sample(group.len(), |index, sampler| {
            group[index].propose(sampler, logits.row(index), vocabulary)
        })?);
    }
    Ok(proposals)
}

/// The token before a seed's last one, if its states are there. It counts as read.
fn link(states: &mut HiddenStates, seed: &DraftSeed, block_tokens: usize) -> Option<Committed> {
    let (&token, before) = seed.input.tokens.split_last()?;
    let position = (seed.input.start as usize + before.len()).checked_sub(1)?;
    let slot = Slot::of(&seed.input.blocks, position, block_tokens);
    states.tokens.claim(slot, position, token)
}
