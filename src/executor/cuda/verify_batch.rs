//! A verification batch: from rows to the device's arrays, and from its results to verdicts.
#![forbid(unsafe_code)]

use super::ffi::kernels::VerifySequence;
use super::host_step::{HostStep, input_shape};
use super::runner::{DeviceQueue, Runner, StepOutput};
use super::sampling_rows::{SamplingRows, adjusts};
use super::step_results::VerdictResults;
use crate::protocol::{ExecutorError, Verdict, VerifyRow};
use crate::sampling::TokenHistory;

/// Runs checked rows and writes one verdict per row to `out`. `states` says where the rows' hidden states
/// go: the row of the first, and how many.
///
/// # Errors
/// [`ExecutorError::Device`], also when the device's results make no sense.
pub fn run(
    rows: &[VerifyRow],
    states: [i32; 2],
    runner: &mut Runner,
    queue: &mut DeviceQueue,
    out: &mut Vec<Verdict>,
) -> Result<(), ExecutorError> {
    out.clear();
    if rows.is_empty() {
        return Ok(());
    }
    fill(rows, &mut runner.step);
    runner.step.states = states;
    runner.run(StepOutput::Verdicts, queue)?;
    read(rows, &runner.step, runner.verdicts(), runner.model.spec().vocab_size as u32, out)
}

/// Puts a batch's rows into a step.
pub fn fill(rows: &[VerifyRow], step: &mut HostStep) {
    step.clear();
    for row in rows {
        step.push_tokens(&row.input.tokens);
    }
    step.plan.build(rows.iter().map(|row| input_shape(&row.input, row.drafts, row.tree.as_deref())));
    let mut first_row = 0;
    for row in rows {
        if row.samples() {
            fill_row(row, first_row, step);
        }
        first_row += row.input.tokens.len();
    }
}

/// The rows of logits of one sequence: behind its last committed token and behind each draft.
fn fill_row(row: &VerifyRow, first_row: usize, step: &mut HostStep) {
    let drafts = row.drafts as usize;
    let root = first_row + row.input.tokens.len() - drafts - 1;
    let verify = &mut step.verify;
    let sequence = verify.sequences.len() as i32;
    verify.sequences.push(VerifySequence {
        first_row: step.gather.len() as i32,
        drafts: drafts as i32,
        tree: i32::from(row.tree.is_some()),
    });
    verify.sequence_of.extend(std::iter::repeat_n(sequence, drafts + 1));
    verify.drafts.push(-1);
    verify.drafts.extend_from_slice(&step.tokens[root + 1..=root + drafts]);
    verify.parents.push(0);
    match &row.tree {
        Some(parents) => verify.parents.extend(parents.iter().map(|&parent| parent as i32)),
        None => verify.parents.extend(0..drafts as i32),
    }
    step.gather.extend(root as i32..=(root + drafts) as i32);
    fill_sampling(row, &step.plan.positions[root..=root + drafts], &mut step.sampling);
}

/// How the rows of logits behind these positions are sampled.
fn fill_sampling(row: &VerifyRow, positions: &[i32], sampling: &mut SamplingRows) {
    let params = &row.input.sampling;
    if !adjusts(params) && row.masks.is_empty() {
        sampling.push_unadjusted(params, positions.iter().map(|position| position + 1));
        return;
    }
    let mut history = PathHistory::new(row);
    for (node, &position) in positions.iter().enumerate() {
        sampling.push_masked(params, position as u32 + 1, history.at(node), row.mask(node));
    }
}

/// The parent of a draft's node.
fn parent_of(row: &VerifyRow, node: usize) -> usize {
    row.tree.as_ref().map_or(node - 1, |parents| parents[node - 1] as usize)
}

/// The tokens up to each node, for penalties; nothing where they are off.
struct PathHistory<'a> {
    row: &'a VerifyRow,
    history: TokenHistory,
    committed: usize,
}

impl<'a> PathHistory<'a> {
    fn new(row: &'a VerifyRow) -> PathHistory<'a> {
        let history = TokenHistory::of(&row.input);
        PathHistory { row, committed: history.tokens().len(), history }
    }

    fn at(&mut self, node: usize) -> &TokenHistory {
        if !self.row.input.sampling.has_penalties() {
            return &self.history;
        }
        self.history.truncate(self.committed);
        let mut path = Vec::new();
        let mut at = node;
        while at > 0 {
            path.push(at);
            at = parent_of(self.row, at);
        }
        let root = self.row.input.tokens.len() - self.row.drafts as usize - 1;
        for node in path.into_iter().rev() {
            self.history.push(self.row.input.tokens[root + node]);
        }
        &self.history
    }
}

/// Turns a step's results into one verdict per row of its batch, put behind those in `out`.
///
/// # Errors
/// [`ExecutorError::Device`] when the results make no sense.
pub fn read(
    rows: &[VerifyRow],
    step: &HostStep,
    results: VerdictResults,
    vocab_size: u32,
    out: &mut Vec<Verdict>,
) -> Result<(), ExecutorError> {
    let mut sequence = 0;
    for row in rows {
        if !row.samples() {
            out.push(Verdict { finite: true, ..Verdict::default() });
            continue;
        }
        let first_row = step.verify.sequences[sequence].first_row as usize;
        let verdict = read_row(row, results, sequence, first_row);
        let verdict = verdict.filter(|verdict| verdict.tokens.iter().all(|&token| token < vocab_size));
        let Some(verdict) = verdict else {
            let text = format!("the device's verdict on request {} makes no sense", row.input.request);
            return Err(ExecutorError::Device(text));
        };
        out.push(verdict);
        sequence += 1;
    }
    Ok(())
}

/// `None` when the device's numbers can't be a verdict on this row.
fn read_row(row: &VerifyRow, results: VerdictResults, sequence: usize, first_row: usize) -> Option<Verdict> {
    let (outcome, tokens, path) = results.outcome(sequence, first_row);
    if outcome.finite == 0 {
        return Some(Verdict::default());
    }
    let accepted = usize::try_from(outcome.accepted).ok().filter(|&count| count <= row.drafts as usize)?;
    let path = match row.tree {
        Some(_) => path[..accepted].to_vec(),
        None => Vec::new(),
    };
    let ascending = path.windows(2).all(|pair| pair[0] < pair[1]);
    let known = path.last().is_none_or(|&last| last < row.drafts);
    let tokens = tokens[..=accepted].to_vec();
    (ascending && known).then_some(Verdict { tokens, accepted: accepted as u32, path, finite: true })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::attention_plan::AttentionRoom;
    use super::super::step_results::VerdictWords;
    use super::*;
    use crate::protocol::{BlockId, RequestId, SamplingParams, SequenceInput};

    fn row(start: u32, tokens: &[u32], drafts: u32, tree: Option<Vec<u32>>) -> VerifyRow {
        let input = SequenceInput {
            request: RequestId(1),
            tokens: tokens.to_vec(),
            start,
            blocks: (0..4).map(BlockId).collect(),
            sampling: Arc::new(SamplingParams::greedy()),
            history: None,
        };
        VerifyRow { drafts, tree, ..VerifyRow::decode(input) }
    }

    /// A prefill chunk that does not sample, a chain of two drafts, a tree of two siblings.
    fn batch() -> (Vec<VerifyRow>, HostStep) {
        let chunk = VerifyRow { next: Some(4), ..row(0, &[1, 2, 3], 0, None) };
        let rows = vec![chunk, row(20, &[4, 50, 51], 2, None), row(9, &[5, 60, 61], 2, Some(vec![0, 0]))];
        let mut step = HostStep::new(AttentionRoom::for_rows(8, 2, 64, 64));
        fill(&rows, &mut step);
        (rows, step)
    }

    fn verdicts(words: &[u32]) -> Result<Vec<Verdict>, ExecutorError> {
        let (rows, step) = batch();
        let mut out = Vec::new();
        let results = VerdictResults::new(words, VerdictWords::of(2, 6));
        read(&rows, &step, results, 100, &mut out).map(|()| out)
    }

    #[test]
    fn each_node_of_a_sequence_that_samples_has_a_row_of_logits() {
        let (_, step) = batch();
        assert_eq!(step.tokens, [1, 2, 3, 4, 50, 51, 5, 60, 61]);
        assert_eq!(step.gather, [3, 4, 5, 6, 7, 8]);
        assert_eq!(step.verify.sequence_of, [0, 0, 0, 1, 1, 1]);
        assert_eq!(step.verify.drafts, [-1, 50, 51, -1, 60, 61]);
        assert_eq!(step.verify.parents, [0, 0, 1, 0, 0, 0]);
        let sequences: Vec<_> =
            step.verify.sequences.iter().map(|one| (one.first_row, one.drafts, one.tree)).collect();
        assert_eq!(sequences, [(0, 2, 0), (3, 2, 1)]);
        let positions: Vec<i32> = step.sampling.rows().iter().map(|row| row.position).collect();
        assert_eq!(positions, [21, 22, 23, 10, 11, 11], "siblings stand at one position");
    }

    #[test]
    fn results_become_one_verdict_per_row() {
        // outcomes (accepted, finite), then tokens of six rows, then their paths
        let words = [1, 1, 1, 1, 50, 7, 0, 61, 8, 0, 0, 0, 0, 1, 0, 0];
        let chain = Verdict { tokens: vec![50, 7], accepted: 1, path: vec![], finite: true };
        let tree = Verdict { tokens: vec![61, 8], accepted: 1, path: vec![1], finite: true };
        let silent = Verdict { finite: true, ..Verdict::default() };
        assert_eq!(verdicts(&words), Ok(vec![silent, chain, tree]));
    }

    #[test]
    fn a_row_that_is_not_finite_has_no_tokens_and_nonsense_is_refused() {
        let good = [1, 1, 1, 1, 50, 7, 0, 61, 8, 0, 0, 0, 0, 1, 0, 0];
        let with = |index: usize, word: u32| {
            let mut words = good;
            words[index] = word;
            verdicts(&words)
        };
        assert_eq!(with(1, 0).expect("an outcome")[1], Verdict::default());
        assert!(matches!(with(0, 3), Err(ExecutorError::Device(_))), "three of two drafts");
        assert!(matches!(with(0, u32::MAX), Err(ExecutorError::Device(_))), "less than none");
        assert!(matches!(with(5, 100), Err(ExecutorError::Device(_))), "no token of the vocabulary");
        assert!(matches!(with(13, 2), Err(ExecutorError::Device(_))), "a node without a draft");
    }
}
