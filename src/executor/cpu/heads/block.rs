//! DFlash and DSpark heads: a block of tokens per pass. The formulas are in
//! [`crate::model::BlockHead`]'s module.
#![forbid(unsafe_code)]

use crate::executor::committed_states::Slot;
use crate::model::{BlockHead, ConfidenceHead, FeatureNorm};
use crate::protocol::{BlockId, DraftForest, DraftSeed, ExecutorError, NodeId, Proposal, TokenId};

use super::super::forward::Model;
use super::super::hidden_states::HiddenStates;
use super::super::kernels::InstructionSet;
use super::super::layers::PART_ROWS_MAX;
use super::super::packed::vector;
use super::super::pass::Pass;
use super::super::pool::{JobPanicked, Pool};
use super::super::round::RoundRow;
use super::super::rows::Rows;
use super::super::transformer::{Embedding, PackedAlone};
use super::super::workers::Workers;
use super::super::{CpuError, LOGIT_ROWS};
use super::common::{HeadBounds, Parts};

/// A DFlash or DSpark head.
pub(crate) struct Block {
    pub(super) parts: Parts,
    block_tokens: usize,
    mask_token: TokenId,
    /// Slot of the block that the first draft comes from.
    pub(super) first_slot: usize,
    markov: Option<Markov>,
    confidence: Option<Confidence>,
    /// For each sequence of a pass, cache blocks for the keys and values of the drafted block.
    scratch: Vec<Vec<BlockId>>,
    /// Normed final states of a group of sequences: slot after slot, and in each slot a row for each
    /// sequence.
    finals: Rows,
}

/// Corrects logits by the token before.
struct Markov {
    before: Embedding,
    rank: usize,
    correction: PackedAlone,
    /// The features of the tokens before, a row for each sequence of a group.
    features: Rows,
}

/// Predicts acceptance.
struct Confidence {
    of_state: Vec<f32>,
    /// Empty if it does not read the Markov feature.
    of_markov: Vec<f32>,
    bias: f32,
}

impl Confidence {
    fn new(head: &ConfidenceHead, hidden: usize) -> Confidence {
        let mut of_state = vector(&head.weight);
        let of_markov = of_state.split_off(hidden);
        Confidence { of_state, of_markov, bias: head.bias.as_ref().map_or(0.0, |bias| vector(bias)[0]) }
    }

    /// The chance that a draft is accepted if all before it are.
    fn of(&self, state: &[f32], markov: &[f32]) -> f32 {
        let dot = |weights: &[f32], x: &[f32]| weights.iter().zip(x).map(|(w, x)| w * x).sum::<f32>();
        let score = dot(&self.of_state, state) + dot(&self.of_markov, markov) + self.bias;
        1.0 / (1.0 + (-score).exp())
    }
}

/// A seed that drafts.
struct Anchored<'a> {
    seed: usize,
    anchor: TokenId,
    /// Position of the anchor: the tokens before it are the context.
    position: u32,
    blocks: &'a [BlockId],
    limit: usize,
    row: RoundRow,
    /// The last proposal's node and token.
    last: Option<(NodeId, TokenId)>,
}

impl Anchored<'_> {
    fn before(&self) -> TokenId {
        self.last.map_or(self.anchor, |(_, token)| token)
    }
}

impl Block {
    pub(crate) fn new(head: &BlockHead, set: InstructionSet, bounds: HeadBounds) -> Result<Block, CpuError> {
        let hidden = head.spec.hidden_size;
        let sequences = (PART_ROWS_MAX / head.block_tokens).min(bounds.sequences);
        let scratch_each = head.block_tokens.div_ceil(bounds.block_tokens);
        let scratch = (0..sequences).map(|sequence| {
            let first = bounds.blocks + sequence * scratch_each;
            (first..first + scratch_each).map(|block| BlockId(block as u32)).collect()
        });
        let with_scratch = HeadBounds {
            blocks: bounds.blocks + sequences * scratch_each,
            positions: bounds.positions + (1 + scratch_each) * bounds.block_tokens,
            ..bounds
        };
        let markov = head.markov.as_ref().map(|markov| {
            let rank = markov.w1.shape[1];
            let correction = PackedAlone::new(&markov.w2, set, bounds.threads)?;
            let features = Rows::new(LOGIT_ROWS, rank);
            Ok(Markov { before: Embedding::new(&markov.w1), rank, correction, features })
        });
        Ok(Block {
            parts: Parts::new(
                &head.spec,
                &head.interface,
                &FeatureNorm::Raw,
                &head.layers,
                set,
                with_scratch,
            )?,
            block_tokens: head.block_tokens,
            mask_token: head.mask_token,
            first_slot: usize::from(!head.sample_from_anchor),
            markov: markov.transpose()?,
            confidence: head.confidence.as_ref().map(|confidence| Confidence::new(confidence, hidden)),
            scratch: scratch.collect(),
            finals: Rows::new(LOGIT_ROWS, hidden),
        })
    }

    /// Bytes of the packed matrices of its own.
    pub(crate) fn weight_bytes(&self) -> usize {
        self.parts.weight_bytes() + self.markov.as_ref().map_or(0, |markov| markov.correction.arena.bytes())
    }

    /// Computes keys and values of all unread states.
    pub(crate) fn read(&mut self, pool: &Pool, states: &mut HiddenStates) -> Result<(), JobPanicked> {
        let hidden = self.parts.layers.spec.hidden_size;
        for tokens in states.tokens.read().chunks(PART_ROWS_MAX) {
            self.parts.fuse(pool, states, tokens)?;
            let Parts { layers, fusion, .. } = &mut self.parts;
            let norm = layers.vector_norm();
            for index in 0..tokens.len() {
                let input = &mut layers.attention_input_mut(index)[..hidden];
                norm.write(&fusion.hidden_norm, fusion.fused(index, hidden), input);
            }
            let places: Vec<(usize, Slot)> =
                tokens.iter().map(|token| (token.position, token.slot)).collect();
            for layer in 0..layers.spec.layers {
                layers.write_keys_and_values(pool, &places, layer)?;
            }
        }
        Ok(())
    }

    /// All proposals of each seed that wants some.
    pub(crate) fn start(
        &mut self,
        workers: &Workers,
        target: &Model,
        states: &mut HiddenStates,
        seeds: &[DraftSeed],
        forest: &mut DraftForest,
    ) -> Result<(), ExecutorError> {
        self.read(&workers.pool, states)?;
        let drafts_max = self.block_tokens - self.first_slot;
        let mut anchored: Vec<Anchored<'_>> =
            seeds.iter().enumerate().filter_map(|(seed, one)| anchor(seed, one, drafts_max)).collect();
        let in_pass = self.scratch.len();
        for sequences in anchored.chunks_mut(in_pass) {
            self.pass(&workers.pool, target, sequences)?;
            let in_group = LOGIT_ROWS / self.block_tokens;
            let mut first = 0;
            for group in sequences.chunks_mut(in_group) {
                self.collect_finals(first, group.len());
                first += group.len();
                self.propose(workers, target, group, forest)?;
            }
        }
        Ok(())
    }

    /// The blocks of some sequences through all layers.
    fn pass(&mut self, pool: &Pool, target: &Model, sequences: &[Anchored<'_>]) -> Result<(), JobPanicked> {
        let in_block = self.parts.layers.cache.shape.block_tokens;
        let tables: Vec<Vec<BlockId>> = sequences
            .iter()
            .zip(&self.scratch)
            .map(|(one, scratch)| {
                let context = (one.position as usize).div_ceil(in_block);
                [&one.blocks[..context], scratch].concat()
            })
            .collect();
        let mut tokens = vec![self.mask_token; self.block_tokens];
        let mut pass = Pass::default();
        for (one, table) in sequences.iter().zip(&tables) {
            tokens[0] = one.anchor;
            pass.push_block(table, &tokens, one.position as usize, in_block);
        }
        let rows = pass.rows.len();
        for (index, row) in pass.rows.iter().enumerate() {
            self.parts.embed_stream(target, row.token, index);
        }
        let layers = &mut self.parts.layers;
        let tiles = layers.tiles(&pass, (0..rows).collect(), pool);
        for layer in 0..layers.spec.layers {
            layers.norm_attention_input(pool, rows, layer)?;
            layers.project(pool, &pass, 0..rows, layer)?;
            layers.attention(pool, &pass, &tiles, 0, layer)?;
            layers.mlp(pool, rows, layer)?;
        }
        Ok(())
    }

    /// Norms the final states of `group` sequences of the last pass from sequence `first` on.
    fn collect_finals(&mut self, first: usize, group: usize) {
        let layers = &self.parts.layers;
        let (norm, hidden) = (layers.vector_norm(), layers.spec.hidden_size);
        for sequence in 0..group {
            for slot in 0..self.block_tokens {
                let state = layers.stream((first + sequence) * self.block_tokens + slot);
                let normed = &mut self.finals.row_mut(slot * group + sequence)[..hidden];
                norm.write(&self.parts.final_norm, state, normed);
            }
        }
    }

    /// Chooses the drafts of a group, slot by slot.
    fn propose(
        &mut self,
        workers: &Workers,
        target: &Model,
        group: &mut [Anchored<'_>],
        forest: &mut DraftForest,
    ) -> Result<(), ExecutorError> {
        let count = group.len();
        let rows = self.block_tokens * count;
        self.parts.compute_logits(&workers.pool, target, &mut self.finals, 0, rows)?;
        let longest = group.iter().map(|one| one.limit).max().unwrap_or(0);
        for draft in 0..longest {
            let first_row = (self.first_slot + draft) * count;
            self.correct(&workers.pool, group, first_row)?;
            let (logits, vocabulary) = (self.parts.logits(), self.parts.vocabulary.as_ref());
            let proposals = workers.sample(count, |index, sampler| {
                group[index].row.end.propose(sampler, logits.row(first_row + index), vocabulary)
            })?;
            for (index, (one, mut proposal)) in group.iter_mut().zip(proposals).enumerate() {
                if draft >= one.limit {
                    continue;
                }
                if let Some(confidence) = self.confidence(index, first_row + index) {
                    proposal.probability = confidence;
                }
                one.add(proposal, forest);
            }
        }
        Ok(())
    }

    /// Adds the Markov head's correction to a slot's logits.
    fn correct(&mut self, pool: &Pool, group: &[Anchored<'_>], first_row: usize) -> Result<(), JobPanicked> {
        let Some(Markov { before, rank, correction, features }) = &mut self.markov else { return Ok(()) };
        for (index, one) in group.iter().enumerate() {
            before.write(one.before(), &mut features.row_mut(index)[..*rank]);
        }
        self.parts.add_to_logits(pool, correction, features, first_row, group.len())
    }

    /// What the confidence head says of a draft: `sequence` within its group, `row` of its final
    /// state.
    fn confidence(&self, sequence: usize, row: usize) -> Option<f32> {
        let confidence = self.confidence.as_ref()?;
        let hidden = self.parts.layers.spec.hidden_size;
        let markov = self.markov.as_ref().map(|markov| &markov.features.row(sequence)[..markov.rank]);
        Some(confidence.of(&self.finals.row(row)[..hidden], markov.unwrap_or(&[])))
    }
}

impl Anchored<'_> {
    /// Adds the next proposal. Behind one that is not finite there is none.
    fn add(&mut self, proposal: Proposal, forest: &mut DraftForest) {
        let node = match self.last {
            None => forest.add_root(self.seed as u32, proposal),
            Some((parent, _)) => forest.add_child(parent, proposal),
        };
        self.last = Some((node, proposal.token));
        self.row.end.advance(proposal.token, None);
        if !proposal.finite {
            self.limit = 0;
        }
    }
}

/// A seed that wants drafts and has a context.
fn anchor(seed: usize, one: &DraftSeed, drafts_max: usize) -> Option<Anchored<'_>> {
    let (&anchor, before) = one.input.tokens.split_last()?;
    let position = one.input.start + before.len() as u32;
    (one.limit > 0 && position > 0).then(|| Anchored {
        seed,
        anchor,
        position,
        blocks: &one.input.blocks,
        limit: drafts_max.min(one.limit as usize),
        row: RoundRow::of(one),
        last: None,
    })
}
