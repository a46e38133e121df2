//! The draft's side: a round of proposals, each fed back until its row is left out.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::executor::contract::no_drafter;
use crate::protocol::{BlockId, DraftSeed, ExecutorError, Proposal, SamplingParams, TokenId, TokenMask};
use crate::sampling::TokenHistory;

use super::pass::Pass;
use super::{CpuExecutor, LOGIT_ROWS, pooled};

/// The rows of the current drafting round.
#[derive(Debug, Default)]
pub(crate) struct Round {
    rows: Vec<RoundRow>,
}

#[derive(Debug)]
struct RoundRow {
    blocks: Vec<BlockId>,
    sampling: Arc<SamplingParams>,
    /// Committed tokens and what was proposed and fed back, where penalties look at them.
    history: TokenHistory,
    /// The tokens that the next proposal may be; `None`: any.
    mask: Option<Arc<TokenMask>>,
    /// Position of the next input: that of the last proposal.
    next: u32,
}

impl CpuExecutor {
    /// Feeds every seed's input; a proposal for each seed that wants one, with its index.
    pub(crate) fn start_round(&mut self, seeds: &[DraftSeed]) -> Result<Vec<(u32, Proposal)>, ExecutorError> {
        self.round.rows.clear();
        self.contract.start(seeds)?;
        let draft = self.draft.as_mut().ok_or_else(no_drafter)?;
        let mut pass = Pass::default();
        for DraftSeed { input, limit, .. } in seeds {
            pass.push_chain(&input.blocks, &input.tokens, input.start, usize::from(*limit > 0));
        }
        draft.forward(&self.pool, &pass)?;
        self.round.rows.extend(seeds.iter().map(|DraftSeed { input, mask, .. }| RoundRow {
            blocks: input.blocks.clone(),
            sampling: Arc::clone(&input.sampling),
            history: TokenHistory::of(input),
            mask: mask.clone(),
            next: input.start + input.tokens.len() as u32,
        }));
        let proposing: Vec<usize> = (0..seeds.len()).filter(|&index| seeds[index].limit > 0).collect();
        let proposals = self.propose(&proposing)?;
        Ok(proposing.into_iter().map(|index| index as u32).zip(proposals).collect())
    }

    /// Feeds each kept row the token of its last proposal; one new proposal for each, in order.
    /// `mask(i)` says what the proposal of `kept[i]` may be.
    pub(crate) fn continue_round(
        &mut self,
        kept: &[u32],
        tokens: impl Iterator<Item = TokenId> + Clone,
        mask: impl Fn(usize) -> Option<Arc<TokenMask>>,
    ) -> Result<Vec<Proposal>, ExecutorError> {
        let draft = self.draft.as_mut().ok_or_else(no_drafter)?;
        let rows = &mut self.round.rows;
        let kept: Vec<usize> = kept.iter().map(|&index| index as usize).collect();
        let mut pass = Pass::default();
        for (&index, token) in kept.iter().zip(tokens.clone()) {
            let row = &rows[index];
            pass.push_chain(&row.blocks, &[token], row.next, 1);
        }
        draft.forward(&self.pool, &pass)?;
        for (position, (&index, token)) in kept.iter().zip(tokens).enumerate() {
            let row = &mut rows[index];
            row.next += 1;
            row.mask = mask(position);
            if row.sampling.has_penalties() {
                row.history.push(token);
            }
        }
        self.propose(&kept)
    }

    /// One proposal for each of these rows of the round, whose features the draft holds in order.
    fn propose(&mut self, rows: &[usize]) -> Result<Vec<Proposal>, ExecutorError> {
        let draft = self.draft.as_mut().ok_or_else(no_drafter)?;
        let mut proposals = Vec::with_capacity(rows.len());
        for group in rows.chunks(LOGIT_ROWS) {
            let first = proposals.len();
            let logits = draft.logits(&self.pool, first..first + group.len())?;
            let round = &self.round;
            proposals.extend(pooled(&self.pool, &self.samplers, group.len(), |index, sampler| {
                let row = &round.rows[group[index]];
                let mask = row.mask.as_deref();
                sampler.propose_allowed(logits.row(index), mask, &row.sampling, row.next, &row.history)
            })?);
        }
        Ok(proposals)
    }
}
