//! A drafting round: the rows that a first call began and further calls go on with.
#![forbid(unsafe_code)]

use super::fed_trees::FedTrees;
use super::host_step::{HostStep, input_shape};
use super::round_row::{RoundRow, restart_rows};
use super::runner::{DeviceQueue, Runner, StepOutput};
use super::step_results::proposal;
use crate::protocol::{Compaction, DraftForest, DraftSeed, ExecutorError, NodeId, Proposal};

/// The state of a round; empty before the first.
#[derive(Debug, Default)]
pub struct DraftRound {
    rows: Vec<RoundRow>,
    /// What each of them was fed.
    trees: FedTrees,
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
        self.trees.begin(rows.len(), 0);
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

    /// Feeds these nodes of these rows; writes one proposal per node to `out`.
    ///
    /// # Errors
    /// [`ExecutorError::Device`]; [`ExecutorError::Malformed`] for a node whose parent was not fed.
    pub fn go_on(
        &mut self,
        nodes: &[NodeId],
        rows: &[u32],
        forest: &DraftForest,
        runner: &mut Runner,
        queue: &mut DeviceQueue,
        out: &mut Vec<Proposal>,
    ) -> Result<(), ExecutorError> {
        self.proceed(nodes, rows, forest, &mut runner.step)?;
        out.clear();
        if nodes.is_empty() {
            return Ok(());
        }
        runner.run(StepOutput::Proposals, queue)?;
        self.read_fed(rows, runner.results(), runner.model.spec().vocab_size, out)
    }

    /// Puts nodes into a step, row by row.
    ///
    /// # Errors
    /// [`ExecutorError::Malformed`].
    pub fn proceed(
        &mut self,
        nodes: &[NodeId],
        rows: &[u32],
        forest: &DraftForest,
        step: &mut HostStep,
    ) -> Result<(), ExecutorError> {
        self.trees.feed(nodes, rows, &self.rows, forest, step)
    }

    /// Turns the results of a step that [`proceed`](Self::proceed) filled into proposals, in the order of
    /// the nodes.
    ///
    /// # Errors
    /// [`ExecutorError::Device`] when they make no sense.
    pub fn read_fed(
        &mut self,
        rows: &[u32],
        results: &[u32],
        vocab_size: usize,
        out: &mut Vec<Proposal>,
    ) -> Result<(), ExecutorError> {
        out.resize(rows.len(), Proposal::default());
        for (place, &index) in self.trees.order().iter().enumerate() {
            out[index] = self.rows[rows[index] as usize].take(proposal(results, place), vocab_size)?;
        }
        Ok(())
    }

    /// The moves that bring accepted nodes together right behind what the round began with. `accepted`
    /// is ascending.
    pub fn settle(&self, accepted: &[NodeId], forest: &DraftForest) -> Vec<Compaction> {
        let mut paths: Vec<(u32, Vec<u32>)> = Vec::new();
        for &id in accepted {
            let Some(seed) = forest.get(id).map(|node| node.seed) else { continue };
            let Some(place) = self.trees.place(seed, id) else { continue };
            match paths.iter_mut().find(|(row, _)| *row == seed) {
                Some((_, path)) => path.push(place),
                None => paths.push((seed, vec![place])),
            }
        }
        let moves = paths.into_iter().filter(|(_, path)| (0..).zip(path).any(|(to, &from)| from != to));
        let compaction = |(row, path): (u32, Vec<u32>)| {
            let row = &self.rows[row as usize];
            Compaction { blocks: row.blocks.clone(), first: row.position, path }
        };
        moves.map(compaction).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

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

    /// Results of a token each, with another as the runner-up.
    fn results(tokens: &[u32]) -> Vec<u32> {
        tokens.iter().flat_map(|&token| [token, token + 1, 0, 0, 1]).collect()
    }

    #[test]
    fn a_round_goes_on_from_its_proposals_and_starts_anew_with_other_rows() {
        let mut step = HostStep::new(AttentionRoom::for_rows(8, 2, 64, 64));
        let mut round = DraftRound::default();
        let rows = [row(1, &[4, 5], 13, &[3]), row(2, &[6], 15, &[1, 2])];
        let proposals = begin(&mut round, &rows, &mut step, &results(&[41, 51]));
        assert_eq!((step.gather.clone(), proposals[1].token), (vec![1, 2], 51));

        let mut forest = DraftForest::default();
        let roots: Vec<NodeId> = (0..).zip(&proposals).map(|(row, &one)| forest.add_root(row, one)).collect();
        round.proceed(&roots[1..], &[1], &forest, &mut step).expect("it is the latest");
        assert_eq!((&step.tokens[..], &step.gather[..]), (&[51][..], &[0][..]));
        assert_eq!((&step.plan.positions[..], &step.plan.slots[..]), (&[16][..], &[2 * 16][..]));
        assert_eq!(step.sampling.rows()[0].position, 17);

        let again = begin(&mut round, &[row(3, &[7], 40, &[5, 6, 7])], &mut step, &results(&[41]));
        forest.clear();
        let root = forest.add_root(0, again[0]);
        round.proceed(&[root], &[0], &forest, &mut step).expect("it is the latest");
        assert_eq!((step.tokens[0], step.plan.positions[0], step.plan.slots[0]), (41, 41, 7 * 16 + 9));
    }

    #[test]
    fn proposals_come_back_by_node_and_an_accepted_path_is_moved_together() {
        let mut step = HostStep::new(AttentionRoom::for_rows(8, 2, 64, 64));
        let mut round = DraftRound::default();
        let rows = [row(1, &[4], 20, &[3, 8]), row(2, &[6], 30, &[1, 2, 4])];
        let proposals = begin(&mut round, &rows, &mut step, &results(&[41, 51]));
        let mut forest = DraftForest::default();
        let [first, second] = [0, 1].map(|row| forest.add_root(row, proposals[row as usize]));
        let beside = forest.add_runner_up(first);
        round.proceed(&[first, second, beside], &[0, 1, 0], &forest, &mut step).expect("known");
        let mut out = Vec::new();
        round.read_fed(&[0, 1, 0], &results(&[61, 71, 81]), 100, &mut out).expect("tokens");
        assert_eq!(out.iter().map(|one| one.token).collect::<Vec<_>>(), [61, 81, 71]);

        let behind_beside = forest.add_child(beside, out[2]);
        round.proceed(&[behind_beside], &[0], &forest, &mut step).expect("known");
        let moves = round.settle(&[second, beside, behind_beside], &forest);
        assert_eq!(moves.len(), 1, "the second row's is where it belongs");
        assert_eq!((moves[0].first, &moves[0].path[..]), (21, &[1, 2][..]));
        assert!(round.settle(&[first], &forest).is_empty());
    }
}
