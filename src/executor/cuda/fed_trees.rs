//! What the rows of a drafting round are fed: for each a tree, level by level.
#![forbid(unsafe_code)]

use super::attention_plan::SequenceShape;
use super::host_step::HostStep;
use super::round_row::RoundRow;
use crate::protocol::{DraftForest, ExecutorError, NodeId};

/// The trees of a round. What is fed stands behind the input of its row in the drafter's cache, in the
/// order in which it is fed.
#[derive(Debug, Default)]
pub struct FedTrees {
    trees: Vec<RowTree>,
    /// By how many slots a node stands before the position of its token.
    ahead: u32,
    /// Of one call: the nodes' indices, row by row.
    order: Vec<usize>,
    levels: Vec<Level>,
}

/// The nodes of a row that one call feeds.
#[derive(Clone, Copy, Debug)]
struct Level {
    row: u32,
    nodes: usize,
}

impl FedTrees {
    /// Begins a round of so many rows. The cache holds their inputs, but for the last `ahead` tokens.
    pub fn begin(&mut self, rows: usize, ahead: u32) {
        self.trees.iter_mut().for_each(RowTree::clear);
        self.trees.resize_with(rows, RowTree::default);
        self.ahead = ahead;
    }

    /// Puts nodes into a step, row by row.
    ///
    /// # Errors
    /// [`ExecutorError::Malformed`] for a node that is unknown or follows one that was not fed.
    pub fn feed(
        &mut self,
        nodes: &[NodeId],
        rows: &[u32],
        states: &[RoundRow],
        forest: &DraftForest,
        step: &mut HostStep,
    ) -> Result<(), ExecutorError> {
        step.clear();
        self.order.clear();
        self.order.extend(0..nodes.len());
        self.order.sort_by_key(|&index| rows[index]);
        self.levels.clear();
        for (place, &index) in (0..).zip(&self.order) {
            let (row, id) = (rows[index], nodes[index]);
            let node = forest.get(id).ok_or_else(|| not_fed(id))?;
            match self.levels.last_mut() {
                Some(level) if level.row == row => level.nodes += 1,
                _ => self.levels.push(Level { row, nodes: 1 }),
            }
            self.trees[row as usize].feed(id, node.parent, place)?;
            step.tokens.push(node.proposal.token as i32);
            step.gather.push(place);
        }
        let (trees, ahead) = (&self.trees, self.ahead);
        step.plan.build(self.levels.iter().map(|level| {
            let (tree, state) = (&trees[level.row as usize], &states[level.row as usize]);
            tree.shape(state, state.position - ahead, level.nodes)
        }));
        for (place, &index) in self.order.iter().enumerate() {
            let state = &states[rows[index] as usize];
            let position = step.plan.positions[place] as u32 + ahead + 1;
            let behind = state.history_behind(nodes[index], forest);
            let mask = forest.mask(nodes[index]);
            let history = behind.as_ref().unwrap_or(&state.history);
            step.sampling.push_masked(&state.sampling, position, history, mask);
        }
        Ok(())
    }

    /// The index of each node of the last call, in the order of the step's rows.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// For each row of the last call, its row in the round, and the row of the call before that it
    /// follows; `None` behind the input.
    pub fn sources(&self) -> impl Iterator<Item = (u32, Option<i32>)> + '_ {
        self.levels.iter().flat_map(|&Level { row, nodes }| {
            let tree = &self.trees[row as usize];
            let parents = tree.parents[tree.parents.len() - nodes..].iter();
            parents.map(move |&parent| (row, parent.checked_sub(1).map(|node| tree.places[node as usize])))
        })
    }

    /// Where a row's node stands behind the input; `None` if it was not fed.
    pub fn place(&self, row: u32, id: NodeId) -> Option<u32> {
        self.trees.get(row as usize)?.place(id)
    }
}

/// What a row was fed in a round. Node `i` stands `i` places behind the input.
#[derive(Debug, Default)]
struct RowTree {
    nodes: Vec<NodeId>,
    /// For each of them what it follows: 0 is the input, `j > 0` node `j - 1`.
    parents: Vec<u32>,
    /// For each of them its row in the call that fed it.
    places: Vec<i32>,
}

impl RowTree {
    fn clear(&mut self) {
        self.nodes.clear();
        self.parents.clear();
        self.places.clear();
    }

    fn place(&self, id: NodeId) -> Option<u32> {
        self.nodes.iter().rposition(|&known| known == id).map(|place| place as u32)
    }

    fn feed(&mut self, id: NodeId, parent: Option<NodeId>, place: i32) -> Result<(), ExecutorError> {
        let parent = match parent {
            None => 0,
            Some(parent) => self.place(parent).ok_or_else(|| not_fed(parent))? + 1,
        };
        self.nodes.push(id);
        self.parents.push(parent);
        self.places.push(place);
        Ok(())
    }

    /// The last `nodes` nodes as the attention plan sees them, behind `input` slots. A chain is no tree:
    /// its rows see all before them.
    fn shape<'a>(&'a self, row: &'a RoundRow, input: u32, nodes: usize) -> SequenceShape<'a> {
        let fed = self.nodes.len();
        if (0..).zip(&self.parents).all(|(place, &parent)| place == parent) {
            let start = input + (fed - nodes) as u32;
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
            start: input - 1,
            tokens: fed + 1,
            drafts: fed,
            tree: Some(&self.parents),
            cached: fed + 1 - nodes,
            blocks: &row.blocks,
        }
    }
}

fn not_fed(id: NodeId) -> ExecutorError {
    ExecutorError::Malformed(format!("draft node {} was not fed", id.0))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::attention_plan::AttentionRoom;
    use super::*;
    use crate::protocol::{BlockId, DraftSeed, Proposal, RequestId, SamplingParams, SequenceInput};

    /// A row whose next token stands at `position`.
    fn row(position: u32, blocks: &[u32]) -> RoundRow {
        let input = SequenceInput {
            request: RequestId(1),
            tokens: vec![4],
            start: position - 1,
            blocks: blocks.iter().copied().map(BlockId).collect(),
            sampling: Arc::new(SamplingParams::greedy()),
            history: None,
        };
        RoundRow::new(&DraftSeed { row: 0, input, limit: 1, mask: None })
    }

    /// A choice of the drafter; its runner-up is the next token.
    fn choice(token: u32) -> Proposal {
        Proposal { token, runner_up: token + 1, finite: true, ..Proposal::default() }
    }

    /// The trees, and a step, positions and slots of which stand in the caller's asserts.
    struct Fixture {
        trees: FedTrees,
        rows: [RoundRow; 2],
        forest: DraftForest,
        step: HostStep,
    }

    impl Fixture {
        fn new(ahead: u32) -> Fixture {
            let mut trees = FedTrees::default();
            trees.begin(2, ahead);
            let step = HostStep::new(AttentionRoom::for_rows(8, 2, 64, 64));
            Fixture {
                trees,
                rows: [row(21, &[3, 8]), row(31, &[1, 2, 4])],
                forest: DraftForest::default(),
                step,
            }
        }

        fn feed(&mut self, nodes: &[NodeId], rows: &[u32]) -> Result<(), ExecutorError> {
            self.trees.feed(nodes, rows, &self.rows, &self.forest, &mut self.step)
        }
    }

    #[test]
    fn a_tree_is_fed_level_by_level_and_its_masks_show_ancestors_only() {
        let mut round = Fixture::new(0);
        let [first, second] = [0, 1].map(|row| round.forest.add_root(row, choice(41 + 10 * row)));
        let beside = round.forest.add_runner_up(first);
        // both rows' choices and the first one's runner-up, which comes last by its number
        round.feed(&[first, second, beside], &[0, 1, 0]).expect("known");
        assert_eq!((&round.step.tokens[..], round.trees.order()), (&[41, 42, 51][..], &[0, 2, 1][..]));
        assert_eq!(
            (&round.step.plan.positions[..], &round.step.plan.masks[..]),
            (&[21, 21, 31][..], &[0b11, 0b101, 0b1][..])
        );
        assert_eq!(round.step.plan.slots, [8 * 16 + 5, 8 * 16 + 6, 2 * 16 + 15]);
        let sources: Vec<_> = round.trees.sources().collect();
        assert_eq!(sources, [(0, None), (0, None), (1, None)], "behind the input");

        let behind = round.forest.add_child(beside, choice(81));
        round.feed(&[behind], &[0]).expect("known");
        assert_eq!((round.step.plan.positions[0], round.step.plan.masks[0]), (22, 0b1101));
        assert_eq!((round.step.plan.slots[0], round.step.sampling.rows()[0].position), (8 * 16 + 7, 23));
        assert_eq!(
            round.trees.sources().collect::<Vec<_>>(),
            [(0, Some(1))],
            "the second row of the call before"
        );
        assert_eq!([first, beside, behind].map(|id| round.trees.place(0, id)), [Some(0), Some(1), Some(2)]);

        let stranger = round.forest.add_child(behind, choice(5));
        let behind_stranger = round.forest.add_child(stranger, choice(6));
        assert!(round.feed(&[behind_stranger], &[0]).is_err(), "its parent was not fed");
    }

    #[test]
    fn what_stands_ahead_is_fed_where_the_token_before_it_stands() {
        let mut round = Fixture::new(1);
        let [first, second] = [0, 1].map(|row| round.forest.add_root(row, choice(41 + 10 * row)));
        round.feed(&[first, second], &[0, 1]).expect("known");
        assert_eq!(
            (&round.step.plan.positions[..], &round.step.plan.slots[..]),
            (&[20, 30][..], &[8 * 16 + 4, 2 * 16 + 14][..])
        );
        let sampled: Vec<i32> = round.step.sampling.rows().iter().map(|row| row.position).collect();
        assert_eq!(sampled, [22, 32], "the tokens behind the roots");
        let next = round.forest.add_child(second, choice(61));
        let beside = round.forest.add_runner_up(next);
        round.feed(&[next, beside], &[1, 1]).expect("known");
        assert_eq!(round.trees.sources().collect::<Vec<_>>(), [(1, Some(1)), (1, Some(1))]);
        assert_eq!(
            (&round.step.plan.positions[..], &round.step.plan.slots[..]),
            (&[31, 31][..], &[2 * 16 + 15, 4 * 16][..])
        );
        assert_eq!(round.step.plan.masks, [0b111, 0b1011], "the token before the tree, the root, itself");
    }
}
