//! The target's side of a step: forward pass, sampling, verdicts.
#![forbid(unsafe_code)]

use std::ops::Range;

use crate::protocol::{ExecutorError, SequenceInput, Verdict, VerifyRow};
use crate::sampling::{SampledToken, Sampler, TokenHistory, walk_chain, walk_tree};

use super::forward::LogitRows;
use super::pass::Pass;
use super::{CpuDrafter, CpuExecutor, LOGIT_ROWS};

impl CpuExecutor {
    pub(crate) fn verify_rows(
        &mut self,
        rows: &[VerifyRow],
        out: &mut Vec<Verdict>,
    ) -> Result<(), ExecutorError> {
        self.contract.verify(rows)?;
        let first_state = self.make_room_for_states(rows)?;
        let states = self.drafter.as_mut().and_then(CpuDrafter::states_mut);
        self.target.forward(&self.workers.pool, &target_pass(rows), states)?;
        self.judge(rows, out)?;
        if let Some(states) = self.drafter.as_mut().and_then(CpuDrafter::states_mut) {
            states.tokens.commit(first_state, rows, out, self.info.block_tokens as usize);
        }
        Ok(())
    }

    /// Has the draft head read what waits for it, if its states leave no room for those of `rows`;
    /// returns where they will start.
    fn make_room_for_states(&mut self, rows: &[VerifyRow]) -> Result<usize, ExecutorError> {
        let Some(CpuDrafter::Head(head)) = &mut self.drafter else { return Ok(0) };
        head.make_room(&self.workers, &self.target, rows.iter().map(|row| row.input.tokens.len()).sum())
    }

    /// Samples behind the rows' tokens, whose features the target holds.
    fn judge(&mut self, rows: &[VerifyRow], out: &mut Vec<Verdict>) -> Result<(), ExecutorError> {
        out.clear();
        out.extend(rows.iter().map(|row| Verdict { finite: !row.samples(), ..Verdict::default() }));
        let sampled: Vec<usize> = (0..rows.len()).filter(|&row| rows[row].samples()).collect();
        let mut feature = 0;
        for group in groups(&sampled, |row| nodes(&rows[row])) {
            let features: usize = group.iter().map(|&row| nodes(&rows[row])).sum();
            let logits = self.target.logits(&self.workers.pool, feature..feature + features)?;
            feature += features;
            let firsts = first_rows(group.iter().map(|&row| nodes(&rows[row])));
            let verdicts = self.workers.sample(group.len(), |index, sampler| {
                verdict(&rows[group[index]], logits, firsts[index], sampler)
            })?;
            group.iter().zip(verdicts).for_each(|(&row, verdict)| out[row] = verdict);
        }
        Ok(())
    }
}

/// Tokens that the target samples for a row: one after the last committed token and each draft.
fn nodes(row: &VerifyRow) -> usize {
    row.drafts as usize + 1
}

pub(crate) fn target_pass(rows: &[VerifyRow]) -> Pass<'_> {
    let mut pass = Pass::default();
    for row in rows {
        let SequenceInput { blocks, tokens, start, .. } = &row.input;
        match &row.tree {
            Some(parents) => pass.push_tree(blocks, tokens, *start, parents),
            None => pass.push_chain(blocks, tokens, *start, if row.samples() { nodes(row) } else { 0 }),
        }
    }
    pass
}

/// Cuts sequences into groups whose logits fit in the buffer together; one that is larger
/// than [`LOGIT_ROWS`] is a group of its own.
fn groups(sampled: &[usize], nodes: impl Fn(usize) -> usize) -> Vec<&[usize]> {
    let mut groups = Vec::new();
    let mut rest = sampled;
    while !rest.is_empty() {
        let mut room = LOGIT_ROWS;
        let fitting = rest.iter().take_while(|&&row| {
            let fits = nodes(row) <= room;
            room = room.saturating_sub(nodes(row));
            fits
        });
        let (group, others) = rest.split_at(fitting.count().max(1));
        groups.push(group);
        rest = others;
    }
    groups
}

fn first_rows(nodes: impl Iterator<Item = usize>) -> Vec<usize> {
    nodes
        .scan(0, |next, count| {
            let first = *next;
            *next += count;
            Some(first)
        })
        .collect()
}

/// Walks one row's drafts. `first` is the row of logits after its last committed token.
fn verdict(row: &VerifyRow, logits: LogitRows<'_>, first: usize, sampler: &mut Sampler) -> Verdict {
    let input = &row.input;
    let committed = input.tokens.len() - row.drafts as usize;
    let drafts = &input.tokens[committed..];
    let mut history = TokenHistory::of(input);
    let base = history.tokens().len();
    let position = input.start as usize + committed;
    let mut sample = |node: usize, path: Range<usize>, draft: &dyn Fn(usize) -> usize| -> SampledToken {
        let depth = path.len();
        if input.sampling.has_penalties() {
            history.truncate(base);
            path.for_each(|step| history.push(drafts[draft(step)]));
        }
        let (logits, position) = (logits.row(first + node), (position + depth) as u32);
        let mask = row.mask(node).map(AsRef::as_ref);
        sampler.sample_allowed(logits, mask, &input.sampling, position, &history)
    };
    match &row.tree {
        None => walk_chain(drafts, |node| sample(node, 0..node, &|step| step)),
        Some(parents) => {
            walk_tree(drafts, parents, |node, path| sample(node, 0..path.len(), &|step| path[step]))
        }
    }
}
