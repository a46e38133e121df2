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
use super::super::round::RoundRow;
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
    /// One per seed.
    rows: Vec<RoundRow>,
    /// For each seed, the state that its next pass takes: the fused one, or the output of the pass
    /// before it.
    carried: Rows,
    /// Normed final states of the last pass, in its order.
    finals: Rows,
    /// The embedding of one token.
    embedded: Vec<f32>,
}

/// One row of a pass of the chain.
#[derive(Clone, Copy, Debug)]
struct Link {
    /// Its seed, which carries its state.
    seed: usize,
    /// The token that follows the state's.
    token: TokenId,
    /// The position of the state.
    position: u32,
}

/// Where the state of a row of a pass is.
#[derive(Clone, Copy)]
enum State {
    /// In the row of the same index that was fused last.
    Fused,
    /// In the seed.
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
            rows: Vec::new(),
            carried: Rows::new(bounds.sequences, hidden),
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

    /// Fuses the states of these tokens for the seeds of these links.
    fn carry(
        &mut self,
        pool: &Pool,
        states: &HiddenStates,
        tokens: &[Committed],
        links: &[Link],
    ) -> Result<(), JobPanicked> {
        let hidden = self.hidden();
        for (tokens, links) in tokens.chunks(PART_ROWS_MAX).zip(links.chunks(PART_ROWS_MAX)) {
            self.parts.fuse(pool, states, tokens)?;
            for (index, link) in links.iter().enumerate() {
                let fused = self.parts.fusion.fused(index, hidden);
                self.carried.row_mut(link.seed)[..hidden].copy_from_slice(fused);
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
            State::Carried(seed) => &self.carried.row(seed)[..hidden],
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
        self.rows.clear();
        self.rows.extend(seeds.iter().map(RoundRow::of));
        let block_tokens = self.parts.layers.cache.shape.block_tokens;
        let proposing = seeds.iter().enumerate().filter(|(_, seed)| seed.limit > 0);
        let first_links = proposing.filter_map(|(index, seed)| first_link(states, index, seed, block_tokens));
        // their keys and values are computed in the pass
        let (tokens, links): (Vec<Committed>, Vec<Link>) = first_links.unzip();
        self.read(&workers.pool, target, states)?;
        self.carry(&workers.pool, states, &tokens, &links)?;
        for (link, proposal) in links.iter().zip(self.pass(workers, target, &links)?) {
            forest.add_root(link.seed as u32, proposal);
        }
        Ok(())
    }

    /// Feeds each of these seeds the token of its latest node; adds a proposal after each node.
    pub(crate) fn extend(
        &mut self,
        workers: &Workers,
        target: &Model,
        nodes: &[NodeId],
        seeds: &[u32],
        forest: &mut DraftForest,
    ) -> Result<(), ExecutorError> {
        let mut links = Vec::with_capacity(nodes.len());
        for (&id, &seed) in nodes.iter().zip(seeds) {
            let Some(node) = forest.get(id) else { continue };
            let (seed, token) = (seed as usize, node.proposal.token);
            let row = &mut self.rows[seed];
            // the state of a token that was proposed stands where the proposal before it does
            links.push(Link { seed, token, position: row.end.position - 1 });
            row.end.advance(token, forest.mask(id).cloned());
        }
        for (&node, proposal) in nodes.iter().zip(self.pass(workers, target, &links)?) {
            forest.add_child(node, proposal);
        }
        Ok(())
    }

    /// One pass over some links; the proposal of each.
    fn pass(
        &mut self,
        workers: &Workers,
        target: &Model,
        links: &[Link],
    ) -> Result<Vec<Proposal>, ExecutorError> {
        for (part, links) in links.chunks(PART_ROWS_MAX).enumerate() {
            self.pass_part(&workers.pool, target, links, part * PART_ROWS_MAX)?;
        }
        self.propose(workers, target, links)
    }

    /// At most [`PART_ROWS_MAX`] links through the layer; final states from row `first_final` on.
    fn pass_part(
        &mut self,
        pool: &Pool,
        target: &Model,
        links: &[Link],
        first_final: usize,
    ) -> Result<(), JobPanicked> {
        let hidden = self.hidden();
        for (index, link) in links.iter().enumerate() {
            self.write_input(target, index, link.token, State::Carried(link.seed));
            let (layers, carried) = (&mut self.parts.layers, &self.carried.row(link.seed)[..hidden]);
            let norm = layers.vector_norm();
            match self.norm_before_residual {
                true => norm.write(&self.parts.fusion.hidden_norm, carried, layers.stream_mut(index)),
                false => layers.stream_mut(index).copy_from_slice(carried),
            }
        }
        let mut pass = Pass::default();
        for link in links {
            pass.push_chain(&self.rows[link.seed].blocks, &[link.token], link.position, 1);
        }
        let layers = &mut self.parts.layers;
        layers.project(pool, &pass, 0..links.len(), LAYER)?;
        let tiles = layers.tiles(&pass, (0..links.len()).collect(), pool);
        layers.attention(pool, &pass, &tiles, 0, LAYER)?;
        layers.mlp(pool, links.len(), LAYER)?;
        let norm = layers.vector_norm();
        for (index, link) in links.iter().enumerate() {
            let output = layers.stream(index);
            let normed = &mut self.finals.row_mut(first_final + index)[..hidden];
            norm.write(&self.parts.final_norm, output, normed);
            let next = if self.norm_output { normed } else { output };
            self.carried.row_mut(link.seed)[..hidden].copy_from_slice(next);
        }
        Ok(())
    }

    /// The proposals that follow from the final states of these links.
    fn propose(
        &mut self,
        workers: &Workers,
        target: &Model,
        links: &[Link],
    ) -> Result<Vec<Proposal>, ExecutorError> {
        let mut proposals = Vec::with_capacity(links.len());
        for links in links.chunks(LOGIT_ROWS) {
            let first = proposals.len();
            self.parts.compute_logits(&workers.pool, target, &mut self.finals, first, links.len())?;
            let (logits, vocabulary) = (self.parts.logits(), self.parts.vocabulary.as_ref());
            let rows = &self.rows;
            proposals.extend(workers.sample(links.len(), |index, sampler| {
                rows[links[index].seed].end.propose(sampler, logits.row(index), vocabulary)
            })?);
        }
        Ok(proposals)
    }
}

/// The states of the token before a seed's last one, if they are there, and the link that takes them.
/// They count as read.
fn first_link(
    states: &mut HiddenStates,
    seed: usize,
    one: &DraftSeed,
    block_tokens: usize,
) -> Option<(Committed, Link)> {
    let (&token, before) = one.input.tokens.split_last()?;
    let position = (one.input.start as usize + before.len()).checked_sub(1)?;
    let slot = Slot::of(&one.input.blocks, position, block_tokens);
    let state = states.tokens.claim(slot, position, token)?;
    Some((state, Link { seed, token, position: position as u32 }))
}
