//! A drafting round: the rows that a first call began and further calls go on with.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::attention_plan::SequenceShape;
use super::host_step::{HostStep, input_shape};
use super::round_row::{RoundRow, restart_rows};
use super::runner::{DeviceQueue, Runner, StepOutput};
use super::step_results::proposal;
use crate::protocol::{DraftSeed, ExecutorError, Proposal, TokenMask};

/// The state of a round; empty before the first.
#[derive(Debug, Default)]
pub struct DraftRound {
    rows: Vec<RoundRow>,
}

impl DraftRound {
    /// Runs the draft model over checked rows; writes one proposal per row to `out`.
    ///
    /// # Errors
    /// [`ExecutorError::Device`].
    pub fn start(
        &mut self,
        rows: &[DraftSeed],
        runner: &mut Runner,
        queue: &mut DeviceQueue,
        out: &mut Vec<Proposal>,
    ) -> Result<(), ExecutorError> {
        self.begin(rows, &mut runner.step);
        out.clear();
        if rows.is_empty() {
            return Ok(());
        }
        runner.run(StepOutput::Proposals, queue)?;
        self.read_begun(rows, runner.results(), runner.model.spec().vocab_size, out)
    }

    /// Begins a round with these rows and puts them into a step.
    pub fn begin(&mut self, rows: &[DraftSeed], step: &mut HostStep) {
        restart_rows(&mut self.rows, rows);
        step.clear();
        for row in rows {
            step.push_tokens(&row.input.tokens);
            if row.limit > 0 {
                step.gather.push(step.tokens.len() as i32 - 1);
            }
        }
        step.plan.build(rows.iter().map(|row| input_shape(&row.input, 0, None)));
        for (row, state) in rows.iter().zip(&self.rows).filter(|(row, _)| row.limit > 0) {
            let mask = row.mask.as_ref();
            step.sampling.push_masked(&row.input.sampling, state.position, &state.history, mask);
        }
    }

    /// Turns the results of a step that [`begin`](Self::begin) filled into proposals.
    ///
    /// # Errors
    /// [`ExecutorError::Device`] when they make no sense.
    pub fn read_begun(
        &mut self,
        rows: &[DraftSeed],
        results: &[u32],
        vocab_size: usize,
        out: &mut Vec<Proposal>,
    ) -> Result<(), ExecutorError> {
        let mut next = 0;
        for (row, state) in rows.iter().zip(&mut self.rows) {
            if row.limit > 0 {
                out.push(state.take(proposal(results, next), vocab_size)?);
                next += 1;
            } else {
                out.push(Proposal::default());
            }
        }
        Ok(())
    }

    /// Feeds each kept row its last proposal; writes one proposal per kept row to `out`. `mask(i)`
    /// says what the proposal of `keep[i]` may be.
    ///
    /// # Errors
    /// [`ExecutorError::Device`].
    pub fn go_on(
        &mut self,
        keep: &[u32],
        mask: impl Fn(usize) -> Option<Arc<TokenMask>>,
        runner: &mut Runner,
        queue: &mut DeviceQueue,
        out: &mut Vec<Proposal>,
    ) -> Result<(), ExecutorError> {
        self.proceed(keep, mask, &mut runner.step);
        out.clear();
        if keep.is_empty() {
            return Ok(());
        }
        runner.run(StepOutput::Proposals, queue)?;
        self.read_kept(keep, runner.results(), runner.model.spec().vocab_size, out)
    }

    /// Puts the kept rows' last proposals into a step.
    pub fn proceed(
        &mut self,
        keep: &[u32],
        mask: impl Fn(usize) -> Option<Arc<TokenMask>>,
        step: &mut HostStep,
    ) {
        step.clear();
        for (row, &index) in keep.iter().enumerate() {
            let state = &mut self.rows[index as usize];
            let token = state.proposed.take().unwrap_or_default();
            if state.sampling.has_penalties() {
                state.history.push(token);
            }
            step.tokens.push(token as i32);
            step.gather.push(row as i32);
        }
        let rows = &self.rows;
        step.plan.build(keep.iter().map(|&index| {
            let state = &rows[index as usize];
            SequenceShape { start: state.position, tokens: 1, drafts: 0, tree: None, blocks: &state.blocks }
        }));
        for (row, &index) in keep.iter().enumerate() {
            let state = &mut self.rows[index as usize];
            state.position += 1;
            let mask = mask(row);
            step.sampling.push_masked(&state.sampling, state.position, &state.history, mask.as_ref());
        }
    }

    /// Turns the results of a step that [`proceed`](Self::proceed) filled into proposals.
    ///
    /// # Errors
    /// [`ExecutorError::Device`] when they make no sense.
    pub fn read_kept(
        &mut self,
        keep: &[u32],
        results: &[u32],
        vocab_size: usize,
        out: &mut Vec<Proposal>,
    ) -> Result<(), ExecutorError> {
        for (row, &index) in keep.iter().enumerate() {
            out.push(self.rows[index as usize].take(proposal(results, row), vocab_size)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::attention_plan::AttentionRoom;
    use super::*;
    use crate::protocol::{BlockId, RequestId, SamplingParams, SequenceInput};

    fn row(request: u64, tokens: &[u32], start: u32, blocks: &[u32]) -> DraftSeed {
        let input = SequenceInput {
            request: RequestId(request),
            tokens: tokens.to_vec(),
            start,
            blocks: blocks.iter().copied().map(BlockId).collect(),
            sampling: Arc::new(SamplingParams::greedy()),
            history: None,
        };
        DraftSeed { row: 0, input, limit: 1, mask: None }
    }

    fn begin(
        round: &mut DraftRound,
        rows: &[DraftSeed],
        step: &mut HostStep,
        results: &[u32],
    ) -> Vec<Proposal> {
        let mut out = Vec::new();
        round.begin(rows, step);
        round.read_begun(rows, results, 100, &mut out).expect("tokens of the vocabulary");
        out
    }

    #[test]
    fn a_round_goes_on_from_its_proposals_and_starts_anew_with_other_rows() {
        let mut step = HostStep::new(AttentionRoom::for_rows(8, 2, 64, 64));
        let mut round = DraftRound::default();
        let rows = [row(1, &[4, 5], 13, &[3]), row(2, &[6], 15, &[1, 2])];
        let results = [41, 42, 0, 0, 1, 51, 52, 0, 0, 1];
        let proposals = begin(&mut round, &rows, &mut step, &results);
        assert_eq!((step.gather.clone(), proposals[1].token), (vec![1, 2], 51));

        round.proceed(&[1], |_| None, &mut step);
        assert_eq!((&step.tokens[..], &step.gather[..]), (&[51][..], &[0][..]));
        assert_eq!((&step.plan.positions[..], &step.plan.slots[..]), (&[16][..], &[2 * 16][..]));
        assert_eq!(step.sampling.rows()[0].position, 17);

        begin(&mut round, &[row(3, &[7], 40, &[5, 6, 7])], &mut step, &results);
        round.proceed(&[0], |_| None, &mut step);
        assert_eq!((step.tokens[0], step.plan.positions[0], step.plan.slots[0]), (41, 41, 7 * 16 + 9));
    }
}
