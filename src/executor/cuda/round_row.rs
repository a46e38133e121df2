//! A sequence within a drafting round.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::ffi::kernels::DraftProposal;
use crate::protocol::{
    BlockId, DraftForest, DraftSeed, ExecutorError, NodeId, Proposal, RequestId, SamplingParams, TokenId,
};
use crate::sampling::TokenHistory;

/// Begins a round with a row for each of these seeds, in the memory of the last round's.
pub fn restart_rows(rows: &mut Vec<RoundRow>, seeds: &[DraftSeed]) {
    rows.truncate(seeds.len());
    for (row, seed) in rows.iter_mut().zip(seeds) {
        row.restart(seed);
    }
    let known = rows.len();
    rows.extend(seeds[known..].iter().map(RoundRow::new));
}

/// One row of the round.
#[derive(Debug)]
pub struct RoundRow {
    /// Whose row it is.
    pub request: RequestId,
    /// Its blocks.
    pub blocks: Vec<BlockId>,
    /// How it samples.
    pub sampling: Arc<SamplingParams>,
    /// What penalties look at; empty where there are none.
    pub history: TokenHistory,
    /// Position of the first proposal.
    pub position: u32,
}

impl RoundRow {
    /// The row of a seed.
    pub fn new(row: &DraftSeed) -> RoundRow {
        let input = &row.input;
        RoundRow {
            request: input.request,
            blocks: input.blocks.clone(),
            sampling: Arc::clone(&input.sampling),
            history: TokenHistory::of(input),
            position: input.start + input.tokens.len() as u32,
        }
    }

    /// Begins a round with another row, usually the next of the same request; memory is used
    /// again.
    fn restart(&mut self, row: &DraftSeed) {
        let input = &row.input;
        self.request = input.request;
        self.blocks.clone_from(&input.blocks);
        if !Arc::ptr_eq(&self.sampling, &input.sampling) {
            self.sampling = Arc::clone(&input.sampling);
        }
        if input.sampling.has_penalties() || !self.history.tokens().is_empty() {
            self.history = TokenHistory::of(input);
        }
        self.position = input.start + input.tokens.len() as u32;
    }

    /// The history behind a node, where penalties look at it.
    pub fn history_behind(&self, node: NodeId, forest: &DraftForest) -> Option<TokenHistory> {
        if !self.sampling.has_penalties() {
            return None;
        }
        let nodes = std::iter::successors(forest.get(node), |node| forest.get(node.parent?));
        let mut path: Vec<TokenId> = nodes.map(|node| node.proposal.token).collect();
        path.reverse();
        let mut history = self.history.clone();
        path.into_iter().for_each(|token| history.push(token));
        Some(history)
    }

    /// Takes what the device proposed. Only a token of the vocabulary may become an input.
    ///
    /// # Errors
    /// [`ExecutorError::Device`] when it is none.
    pub fn take(&self, from: DraftProposal, vocab_size: usize) -> Result<Proposal, ExecutorError> {
        let known = |token: i32| (0..vocab_size as i64).contains(&i64::from(token));
        if !known(from.token) || !known(from.runner_up) {
            let text = format!("the device's proposal for request {} is no token", self.request);
            return Err(ExecutorError::Device(text));
        }
        let finite = from.finite != 0;
        Ok(Proposal {
            token: from.token as TokenId,
            probability: from.probability,
            margin: from.margin,
            runner_up: from.runner_up as TokenId,
            finite,
        })
    }
}
