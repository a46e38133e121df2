//! A drafting round: the rows that `draft_start` began and `draft_continue` goes on with.

use std::sync::Arc;

use super::attention_plan::{BLOCK_TOKENS, SequenceShape};
use super::batch_check::ensure;
use super::executor::{input_shape, token_history};
use super::ffi::kernels::DraftProposal;
use super::host_step::HostStep;
use super::runner::{Chooses, DeviceQueue, Runner};
use super::step_results::proposal;
use crate::executor::{DraftRow, ExecutorError, ExecutorInfo, Proposal};
use crate::kv::BlockId;
use crate::request::{RequestId, TokenId};
use crate::sampling::{SamplingParams, TokenHistory};

/// One row of the round.
#[derive(Debug)]
struct RoundRow {
    request: RequestId,
    blocks: Vec<BlockId>,
    sampling: Arc<SamplingParams>,
    /// What penalties look at; empty where there are none.
    history: TokenHistory,
    /// Position of the last proposal, which is the next input.
    position: u32,
    /// The last proposal; `None` when the row proposes no more.
    proposed: Option<TokenId>,
}

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
        rows: &[DraftRow],
        runner: &mut Runner,
        queue: &mut DeviceQueue,
        out: &mut Vec<Proposal>,
    ) -> Result<(), ExecutorError> {
        self.begin(rows, &mut runner.step);
        out.clear();
        if rows.is_empty() {
            return Ok(());
        }
        runner.run(Chooses::Proposals, queue)?;
        self.read_begun(rows, runner.results(), runner.model.spec().vocab_size, out)
    }

    /// Begins a round with these rows and puts them into a step.
    pub fn begin(&mut self, rows: &[DraftRow], step: &mut HostStep) {
        self.rows.truncate(rows.len());
        for (state, row) in self.rows.iter_mut().zip(rows) {
            state.restart(row);
        }
        let known = self.rows.len();
        self.rows.extend(rows[known..].iter().map(RoundRow::new));
        step.clear();
        for row in rows {
            step.push_tokens(&row.input.tokens);
            if row.propose {
                step.gather.push(step.tokens.len() as i32 - 1);
            }
        }
        step.plan.build(rows.iter().map(|row| input_shape(&row.input, 0, None)));
        for (row, state) in rows.iter().zip(&self.rows).filter(|(row, _)| row.propose) {
            step.sampling.push(&row.input.sampling, state.position, &state.history);
        }
    }

    /// Turns the results of a step that [`begin`](Self::begin) filled into proposals.
    ///
    /// # Errors
    /// [`ExecutorError::Device`] when they make no sense.
    pub fn read_begun(
        &mut self,
        rows: &[DraftRow],
        results: &[u32],
        vocab_size: usize,
        out: &mut Vec<Proposal>,
    ) -> Result<(), ExecutorError> {
        let mut next = 0;
        for (row, state) in rows.iter().zip(&mut self.rows) {
            if row.propose {
                out.push(state.take(proposal(results, next), vocab_size)?);
                next += 1;
            } else {
                out.push(Proposal::default());
            }
        }
        Ok(())
    }

    /// Checks which rows go on.
    ///
    /// # Errors
    /// [`ExecutorError::Malformed`] says which rule they break.
    pub fn check_keep(&self, keep: &[u32], info: &ExecutorInfo) -> Result<(), ExecutorError> {
        ensure(keep.windows(2).all(|pair| pair[0] < pair[1]), || "kept rows do not ascend".to_owned())?;
        for &index in keep {
            let row = self.rows.get(index as usize);
            let row = row.ok_or_else(|| {
                ExecutorError::Malformed(format!("row {index} of a round of {} rows", self.rows.len()))
            })?;
            let request = row.request;
            ensure(row.proposed.is_some(), || format!("request {request}: no proposal to go on from"))?;
            ensure(row.position < info.context_tokens_max, || {
                format!("request {request}: position {} of the context", row.position)
            })?;
            // the blocks before were checked with the positions before
            let block = row.blocks.get((row.position / BLOCK_TOKENS) as usize);
            let covered = block.is_some_and(|&block| block < info.draft_blocks);
            ensure(covered, || format!("request {request}: no block for position {}", row.position))?;
        }
        Ok(())
    }

    /// Feeds each kept row its last proposal; writes one proposal per kept row to `out`.
    ///
    /// # Errors
    /// [`ExecutorError::Device`].
    pub fn go_on(
        &mut self,
        keep: &[u32],
        runner: &mut Runner,
        queue: &mut DeviceQueue,
        out: &mut Vec<Proposal>,
    ) -> Result<(), ExecutorError> {
        self.proceed(keep, &mut runner.step);
        out.clear();
        if keep.is_empty() {
            return Ok(());
        }
        runner.run(Chooses::Proposals, queue)?;
        self.read_kept(keep, runner.results(), runner.model.spec().vocab_size, out)
    }

    /// Puts the kept rows' last proposals into a step.
    pub fn proceed(&mut self, keep: &[u32], step: &mut HostStep) {
        self.drop_others(keep);
        step.clear();
        for (row, &index) in keep.iter().enumerate() {
            let state = &mut self.rows[index as usize];
            let token = state.proposed.take().unwrap_or_default();
            if state.sampling.needs_history() {
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
        for &index in keep {
            let state = &mut self.rows[index as usize];
            state.position += 1;
            step.sampling.push(&state.sampling, state.position, &state.history);
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

    /// A row that was left out does not come back.
    fn drop_others(&mut self, keep: &[u32]) {
        let mut kept = keep.iter().peekable();
        for (index, row) in self.rows.iter_mut().enumerate() {
            if kept.next_if(|&&next| next as usize == index).is_none() {
                row.proposed = None;
            }
        }
    }
}

impl RoundRow {
    fn new(row: &DraftRow) -> RoundRow {
        let input = &row.input;
        RoundRow {
            request: input.request,
            blocks: input.blocks.clone(),
            sampling: Arc::clone(&input.sampling),
            history: token_history(input),
            position: input.start + input.tokens.len() as u32,
            proposed: None,
        }
    }

    /// Begins a round with another row, usually the next of the same request; memory is used
    /// again.
    fn restart(&mut self, row: &DraftRow) {
        let input = &row.input;
        self.request = input.request;
        self.blocks.clone_from(&input.blocks);
        if !Arc::ptr_eq(&self.sampling, &input.sampling) {
            self.sampling = Arc::clone(&input.sampling);
        }
        if input.sampling.needs_history() || !self.history.tokens().is_empty() {
            self.history = token_history(input);
        }
        self.position = input.start + input.tokens.len() as u32;
        self.proposed = None;
    }

    /// Takes what the device proposed. Only a token of the vocabulary may become an input.
    fn take(&mut self, from: DraftProposal, vocab_size: usize) -> Result<Proposal, ExecutorError> {
        let known = |token: i32| (0..vocab_size as i64).contains(&i64::from(token));
        if !known(from.token) || !known(from.runner_up) {
            let text = format!("the device's proposal for request {} is no token", self.request);
            return Err(ExecutorError::Device(text));
        }
        let finite = from.finite != 0;
        self.proposed = finite.then_some(from.token as TokenId);
        Ok(Proposal {
            token: from.token as TokenId,
            probability: from.probability,
            margin: from.margin,
            runner_up: from.runner_up as TokenId,
            finite,
        })
    }
}
