//! A drafting round: the rows that a first call began and further calls go on with.
#![forbid(unsafe_code)]

use super::attention_plan::SequenceShape;
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
    trees: Vec<RowTree>,
    /// Of one call: the nodes' indices, row by row.
    order: Vec<usize>,
    levels: Vec<Level>,
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
        self.trees.iter_mut().for_each(RowTree::clear);
        self.trees.resize_with(rows.len(), RowTree::default);
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
        step.clear();
        self.order.clear();
        self.order.extend(0..nodes.len());
        self.order.sort_by_key(|&index| rows[index]);
        self.levels.clear();
        for (place, &index) in self.order.iter().enumerate() {
            let (row, id) = (rows[index], nodes[index]);
            let node = forest.get(id).copied().ok_or_else(|| unknown(id))?;
            let state = &mut self.rows[row as usize];
            match self.levels.last_mut() {
                Some(level) if level.row == row => level.nodes += 1,
                _ => self.levels.push(Level { row, nodes: 1 }),
            }
            self.trees[row as usize].feed(id, node.parent)?;
            step.tokens.push(node.proposal.token as i32);
            step.gather.push(place as i32);
            state.proposed = None;
        }
        let (states, trees) = (&self.rows, &self.trees);
        step.plan.build(
            self.levels
                .iter()
                .map(|level| trees[level.row as usize].shape(&states[level.row as usize], level.nodes)),
        );
        for (place, &index) in self.order.iter().enumerate() {
            let state = &mut self.rows[rows[index] as usize];
            let position = step.plan.positions[place] as u32 + 1;
            let behind = state.history_behind(nodes[index], forest);
            let mask = forest.mask(nodes[index]);
            let history = behind.as_ref().unwrap_or(&state.history);
            step.sampling.push_masked(&state.sampling, position, history, mask);
        }
        Ok(())
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
        for (place, &index) in self.order.iter().enumerate() {
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
            let Some(place) = self.trees.get(seed as usize).and_then(|tree| tree.place(id)) else { continue };
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

/// The nodes of a row that one call feeds.
#[derive(Clone, Copy, Debug)]
struct Level {
    row: u32,
    nodes: usize,
}

/// What a row was fed in a round. Node `i` stands `i` places behind the input.
#[derive(Debug, Default)]
struct RowTree {
    nodes: Vec<NodeId>,
    /// For each of them what it follows: 0 is the input, `j > 0` node `j - 1`.
    parents: Vec<u32>,
}

impl RowTree {
    fn clear(&mut self) {
        self.nodes.clear();
        self.parents.clear();
    }

    fn place(&self, id: NodeId) -> Option<u32> {
        self.nodes.iter().rposition(|&known| known == id).map(|place| place as u32)
    }

    fn feed(&mut self, id: NodeId, parent: Option<NodeId>) -> Result<(), ExecutorError> {
        let parent = match parent {
            None => 0,
            Some(parent) => self.place(parent).ok_or_else(|| unknown(parent))? + 1,
        };
        self.nodes.push(id);
        self.parents.push(parent);
        Ok(())
    }

    /// The last `nodes` nodes as the attention plan sees them. A chain is no tree: its rows see all
    /// before them.
    fn shape<'a>(&'a self, row: &'a RoundRow, nodes: usize) -> SequenceShape<'a> {
        let fed = self.nodes.len();
        if (0..).zip(&self.parents).all(|(place, &parent)| place == parent) {
            let start = row.position + (fed - nodes) as u32;
            return SequenceShape {
                start,
                tokens: nodes,
                drafts: 0,
                tree: None,
                cached: 0,
                blocks: &row.blocks,
            };
        }
        SequenceShape {
            start: row.position - 1,
            tokens: fed + 1,
            drafts: fed,
            tree: Some(&self.parents),
            cached: fed + 1 - nodes,
            blocks: &row.blocks,
        }
    }
}

fn unknown(id: NodeId) -> ExecutorError {
    ExecutorError::Malformed(format!("draft node {} was not fed", id.0))
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
    fn a_tree_is_fed_level_by_level_and_moved_together_along_what_was_accepted() {
        let mut step = HostStep::new(AttentionRoom::for_rows(8, 2, 64, 64));
        let mut round = DraftRound::default();
        let rows = [row(1, &[4], 20, &[3, 8]), row(2, &[6], 30, &[1, 2, 4])];
        let proposals = begin(&mut round, &rows, &mut step, &results(&[41, 51]));
        let mut forest = DraftForest::default();
        let [first, second] = [0, 1].map(|row| forest.add_root(row, proposals[row as usize]));
        let beside = forest.add_runner_up(first);
        // both rows' choices and the first one's runner-up, which comes last by its number
        round.proceed(&[first, second, beside], &[0, 1, 0], &forest, &mut step).expect("known");
        assert_eq!(step.tokens, [41, 42, 51]);
        assert_eq!(
            (&step.plan.positions[..], &step.plan.masks[..]),
            (&[21, 21, 31][..], &[0b11, 0b101, 0b1][..])
        );
        assert_eq!(step.plan.slots, [8 * 16 + 5, 8 * 16 + 6, 2 * 16 + 15]);
        let mut out = Vec::new();
        round.read_fed(&[0, 1, 0], &results(&[61, 71, 81]), 100, &mut out).expect("tokens");
        assert_eq!(out.iter().map(|one| one.token).collect::<Vec<_>>(), [61, 81, 71]);

        let behind_beside = forest.add_child(beside, out[2]);
        round.proceed(&[behind_beside], &[0], &forest, &mut step).expect("known");
        assert_eq!((step.plan.positions[0], step.plan.masks[0]), (22, 0b1101));
        assert_eq!((step.plan.slots[0], step.sampling.rows()[0].position), (8 * 16 + 7, 23));

        let moves = round.settle(&[second, beside, behind_beside], &forest);
        assert_eq!(moves.len(), 1, "the second row's is where it belongs");
        assert_eq!((moves[0].first, &moves[0].path[..]), (21, &[1, 2][..]));
        assert!(round.settle(&[first], &forest).is_empty());
        let stranger = forest.add_child(behind_beside, out[0]);
        let behind = forest.add_child(stranger, out[0]);
        assert!(round.proceed(&[behind], &[0], &forest, &mut step).is_err(), "its parent was not fed");
    }
}
