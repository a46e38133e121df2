//! The batch contract, played against any executor: every good batch passes, and every broken rule
//! is refused as malformed and leaves the executor usable.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::sync::Arc;

use specserve::executor::Executor;
use specserve::protocol::{
    BlockId, Compaction, DraftForest, DraftSeed, ExecutorError, ExecutorInfo, History, NodeId, Proposal,
    RequestId, SamplingParams, SequenceInput, Verdict, VerifyRow,
};

/// Plays [`Target`](specserve::executor::Target)'s side.
///
/// # Panics
/// When the executor takes a malformed batch, refuses a good one or stops working.
pub fn check_target(executor: &mut dyn Executor) {
    let batches = Batches::of(executor);
    for (what, rows) in batches.good_rows() {
        let mut out = vec![Verdict::default(); 3];
        assert_eq!(executor.target().verify(&rows, &mut out), Ok(()), "{what}");
        assert_eq!(out.len(), rows.len(), "{what}");
    }
    for (what, rows) in batches.bad_rows() {
        assert_refused(what, executor.target().verify(&rows, &mut Vec::new()));
        assert_usable(what, executor, &batches);
    }
    assert_eq!(executor.target().compact(&batches.good_moves()), Ok(()));
    for (what, moves) in batches.bad_moves() {
        assert_refused(what, executor.target().compact(&moves));
        assert_usable(what, executor, &batches);
    }
}

/// Plays [`Drafter`](specserve::executor::Drafter)'s side, for a drafter that proposes one token per
/// seed and call.
///
/// # Panics
/// As [`check_target`], and without a drafter.
pub fn check_drafter(executor: &mut dyn Executor) {
    let batches = Batches::of(executor);
    for (what, seeds) in batches.bad_seeds() {
        assert_seeds_refused(what, executor, &seeds);
        let mut forged = forged();
        let drafter = executor.drafter().expect("a draft model");
        assert_refused("a round that was refused", drafter.extend(&[NodeId(0)], &mut forged));
        play_round(executor, &batches);
        assert_usable(what, executor, &batches);
    }
    for (what, nodes) in BAD_NODES {
        let mut forest = batches.start_round(executor);
        let nodes: Vec<NodeId> = nodes.iter().copied().map(NodeId).collect();
        let drafter = executor.drafter().expect("a draft model");
        assert_refused(what, drafter.extend(&nodes, &mut forest));
        assert_eq!(forest.len(), 2, "{what}");
        assert_eq!(drafter.extend(&[NodeId(0), NodeId(1)], &mut forest), Ok(()), "{what}: the round goes on");
        assert_usable(what, executor, &batches);
    }
    match batches.info.drafter.as_ref().is_some_and(|needs| needs.branches) {
        true => trees_are_fed_level_by_level(executor, &batches),
        false => left_out_stays_out(executor, &batches),
    }
    unusable_nodes_are_refused(executor, &batches);
    rounds_end_with_blocks(executor, &batches);
}

/// Plays [`Drafter`](specserve::executor::Drafter)'s side, for a drafter that proposes whole chains.
///
/// # Panics
/// As [`check_target`], and without a drafter.
pub fn check_block_drafter(executor: &mut dyn Executor) {
    let batches = Batches::of(executor);
    for (what, seeds) in batches.bad_seeds() {
        assert_seeds_refused(what, executor, &seeds);
        let limit = batches.info.draft_tokens_max;
        let mut forest = batches.start_round(executor);
        let of_seed = |seed: u32| forest.since(0).filter(|(_, node)| node.seed == seed).count() as u32;
        assert_eq!([0, 1, 2].map(of_seed), [limit, limit, 0], "{what}");
        let drafter = executor.drafter().expect("a drafter");
        assert_eq!(drafter.extend(&[NodeId(limit - 1)], &mut forest), Ok(()));
        assert_eq!(forest.len() as u32, 2 * limit, "chains are complete from the start");
        assert_usable(what, executor, &batches);
    }
}

fn assert_seeds_refused(what: &str, executor: &mut dyn Executor, seeds: &[DraftSeed]) {
    let mut forest = DraftForest::default();
    assert_refused(what, executor.drafter().expect("a drafter").start(seeds, &mut forest));
    assert!(forest.is_empty(), "{what}: {forest:?}");
}

/// Nodes that the first call of [`Batches::start_round`] can't be followed by.
const BAD_NODES: [(&str, &[u32]); 4] = [
    ("an unknown node", &[2]),
    ("a node twice", &[0, 0]),
    ("nodes out of order", &[1, 0]),
    ("a good node before a bad one", &[0, 7]),
];

fn forged() -> DraftForest {
    let mut forest = DraftForest::default();
    forest.add_root(0, Proposal { finite: true, ..Proposal::default() });
    forest
}

fn assert_refused(what: &str, result: Result<(), ExecutorError>) {
    assert!(matches!(result, Err(ExecutorError::Malformed(_))), "{what}: {result:?}");
}

/// A plain row still gets its token, and old verdicts are cleared.
fn assert_usable(what: &str, executor: &mut dyn Executor, batches: &Batches) {
    let mut out = vec![Verdict::default(); 2];
    executor.target().verify(&[batches.row(0, 3)], &mut out).expect("a good row");
    assert!(matches!(&out[..], [verdict] if verdict.finite && verdict.tokens.len() == 1), "{what}: {out:?}");
}

/// As many proposals for two seeds as may be verified.
fn play_round(executor: &mut dyn Executor, batches: &Batches) {
    let mut forest = batches.start_round(executor);
    let drafter = executor.drafter().expect("a draft model");
    for call in 1..batches.info.draft_tokens_max {
        let ends = [NodeId(2 * call - 2), NodeId(2 * call - 1)];
        assert_eq!(drafter.extend(&ends, &mut forest), Ok(()), "call {call}");
        assert_eq!(forest.len() as u32, 2 * call + 2);
    }
}

fn left_out_stays_out(executor: &mut dyn Executor, batches: &Batches) {
    let mut forest = batches.start_round(executor);
    let drafter = executor.drafter().expect("a draft model");
    assert_eq!(drafter.extend(&[NodeId(1)], &mut forest), Ok(()));
    assert_refused("a seed that was left out", drafter.extend(&[NodeId(0)], &mut forest));
    assert_refused("a node that has a child", drafter.extend(&[NodeId(1)], &mut forest));
    assert_eq!(drafter.extend(&[NodeId(2)], &mut forest), Ok(()));
}

fn trees_are_fed_level_by_level(executor: &mut dyn Executor, batches: &Batches) {
    let mut forest = batches.start_round(executor);
    let runner_up = forest.add_runner_up(NodeId(0));
    let behind_runner_up = forest.add_child(runner_up, Proposal { finite: true, ..Proposal::default() });
    let drafter = executor.drafter().expect("a draft model");
    assert_refused("a node behind one that was not fed", drafter.extend(&[behind_runner_up], &mut forest));
    assert_refused("nodes out of order", drafter.extend(&[runner_up, NodeId(0)], &mut forest));
    let known = forest.len() as u32;
    let several = [NodeId(0), runner_up];
    assert_eq!(drafter.extend(&several, &mut forest), Ok(()), "a choice and its runner-up");
    assert_eq!(forest.len() as u32, known + 2);
    assert_refused("a node that was fed before", drafter.extend(&[runner_up], &mut forest));
    assert_refused("a node that was left out", drafter.extend(&[NodeId(1)], &mut forest));
    let behind_both = [behind_runner_up, NodeId(known)];
    assert_eq!(drafter.extend(&behind_both, &mut forest), Ok(()), "two branches of a seed");
    assert_eq!(forest.len() as u32, known + 4);
    assert_eq!(drafter.settle(&[runner_up, behind_runner_up], &forest), Ok(()));
    assert_usable("a settled tree", executor, batches);
}

fn unusable_nodes_are_refused(executor: &mut dyn Executor, batches: &Batches) {
    let mut forest = batches.start_round(executor);
    let good = Proposal { finite: true, ..Proposal::default() };
    let no_token = Proposal { token: batches.info.vocab_size, ..good };
    let bad = [
        ("a proposal that is not finite", forest.add_root(0, Proposal { finite: false, ..good })),
        ("a proposal outside the vocabulary", forest.add_root(0, no_token)),
        ("a seed that does not propose", forest.add_root(2, good)),
        ("a seed that does not exist", forest.add_root(3, good)),
    ];
    let drafter = executor.drafter().expect("a draft model");
    for (what, node) in bad {
        assert_refused(what, drafter.extend(&[node], &mut forest));
    }
    assert_eq!(drafter.extend(&[NodeId(0)], &mut forest), Ok(()));
}

fn rounds_end_with_blocks(executor: &mut dyn Executor, batches: &Batches) {
    let block_tokens = batches.info.block_tokens;
    let seed = |blocks: Vec<u32>| DraftSeed {
        row: 0,
        input: batches.input(blocks, 0, block_tokens - 1),
        limit: batches.info.draft_tokens_max,
        mask: None,
    };
    let seeds = [seed(vec![0]), seed(vec![1, 0])];
    feed(executor, &seeds);
    let drafter = executor.drafter().expect("a draft model");
    let mut forest = DraftForest::default();
    assert_eq!(drafter.start(&seeds, &mut forest), Ok(()), "0 is not written yet");
    let both = [NodeId(0), NodeId(1)];
    assert_eq!(drafter.extend(&both, &mut forest), Ok(()), "the last slots of the first blocks");
    assert_refused("a position without a block", drafter.extend(&[NodeId(2)], &mut forest));
    assert_eq!(drafter.extend(&[NodeId(3)], &mut forest), Ok(()));
    assert_usable("the end of the blocks", executor, batches);
}

/// Runs the target over all but the last token of each seed, whose hidden states a head reads.
fn feed(executor: &mut dyn Executor, seeds: &[DraftSeed]) {
    let rows: Vec<VerifyRow> = seeds
        .iter()
        .map(|seed| {
            let mut input = seed.input.clone();
            let next = input.tokens.pop();
            VerifyRow::prefill(input, next)
        })
        .collect();
    executor.target().verify(&rows, &mut Vec::new()).expect("good rows");
}

/// Batches made to an executor's measure, good ones and such that break one rule each.
struct Batches {
    info: ExecutorInfo,
}

impl Batches {
    /// # Panics
    /// When the executor's bounds leave no room to break each of them alone.
    fn of(executor: &dyn Executor) -> Batches {
        let info = executor.info().clone();
        let context_blocks = info.context_tokens_max.div_ceil(info.block_tokens) + 1;
        let pool = if info.has_draft_model() {
            info.target_blocks.min(info.draft_blocks())
        } else {
            info.target_blocks
        };
        assert!(context_blocks <= pool, "the pool holds more than the context");
        assert!(info.batch_sequences_max >= 3 && info.batch_sequences_max < pool);
        let rows = info.batch_tokens_max / info.block_tokens + 1;
        assert!(
            rows <= info.batch_sequences_max && rows <= pool,
            "a batch of blocks exceeds the tokens first"
        );
        assert!(info.draft_tokens_max >= 4 && info.draft_tokens_max + 2 < info.block_tokens);
        assert!(info.batch_tokens_max > info.batch_sequences_max, "one token each fits");
        Batches { info }
    }

    fn input(&self, blocks: Vec<u32>, start: u32, tokens: u32) -> SequenceInput {
        SequenceInput {
            request: RequestId(7),
            tokens: (0..tokens).map(|token| token % self.info.vocab_size).collect(),
            start,
            blocks: blocks.into_iter().map(BlockId).collect(),
            sampling: Arc::new(SamplingParams::greedy()),
            history: None,
        }
    }

    /// The first `tokens` tokens of a sequence in one block.
    fn row(&self, block: u32, tokens: u32) -> VerifyRow {
        let input = self.input(vec![block], 0, tokens);
        VerifyRow::decode(input)
    }

    fn chain(&self, tokens: u32, drafts: u32) -> VerifyRow {
        VerifyRow { drafts, ..self.row(0, tokens) }
    }

    fn tree(&self, parents: &[u32]) -> VerifyRow {
        VerifyRow { tree: Some(parents.to_vec()), ..self.chain(5, 3) }
    }

    fn at(&self, blocks: Vec<u32>, start: u32, tokens: u32) -> VerifyRow {
        VerifyRow { input: self.input(blocks, start, tokens), ..self.row(0, 1) }
    }

    /// Prefill chunks of a block each with so many tokens together.
    fn chunks(&self, tokens: u32) -> Vec<VerifyRow> {
        let block = self.info.block_tokens;
        (0..tokens.div_ceil(block))
            .map(|index| {
                let row = self.row(index, block.min(tokens - index * block));
                VerifyRow::prefill(row.input, Some(0))
            })
            .collect()
    }

    /// A row with penalties, whose history has so many tokens.
    fn penalized(&self, history: Option<u32>) -> VerifyRow {
        let mut row = self.chain(5, 2);
        row.input.sampling = Arc::new(SamplingParams { presence_penalty: 0.5, ..SamplingParams::greedy() });
        row.input.history =
            history.map(|tokens| History { tokens: (0..tokens).collect(), prompt_tokens: tokens.min(2) });
        row
    }

    fn good_rows(&self) -> Vec<(&'static str, Vec<VerifyRow>)> {
        let (info, context) = (&self.info, self.info.context_tokens_max);
        let covering = (0..context.div_ceil(info.block_tokens)).collect();
        let ones = (0..info.batch_sequences_max).map(|block| self.row(block, 1));
        let block = info.block_tokens;
        vec![
            ("an empty batch", vec![]),
            ("a prompt", vec![self.row(0, 3)]),
            ("as many drafts as may be", vec![self.chain(info.draft_tokens_max + 1, info.draft_tokens_max)]),
            ("a tree", vec![self.tree(&[0, 0, 2])]),
            ("a history", vec![self.penalized(Some(3))]),
            ("as many sequences as may be", ones.collect()),
            ("as many tokens as may be", self.chunks(info.batch_tokens_max)),
            ("the last position of the context", vec![self.at(covering, context - 1, 1)]),
            ("a shared prefix", vec![self.at(vec![0, 1], block, 1), self.at(vec![0, 2], block, 1)]),
        ]
    }

    fn bad_rows(&self) -> Vec<(&'static str, Vec<VerifyRow>)> {
        let (info, most) = (&self.info, self.info.draft_tokens_max);
        let bare = |parents: &[u32]| vec![self.tree(parents)];
        let mut unknown_history = self.penalized(Some(3));
        unknown_history.input.history = Some(History { tokens: vec![info.vocab_size; 3], prompt_tokens: 1 });
        let mut long_prompt = self.penalized(Some(3));
        long_prompt.input.history = Some(History { tokens: vec![0; 3], prompt_tokens: 4 });
        let mut bad: Vec<_> = self
            .bad_inputs()
            .into_iter()
            .map(|(what, inputs)| {
                (what, inputs.into_iter().map(|input| VerifyRow { input, ..self.row(0, 1) }).collect())
            })
            .collect();
        bad.extend([
            ("too many drafts", vec![self.chain(most + 2, most + 1)]),
            ("nothing but drafts", vec![self.chain(2, 2)]),
            ("drafts that are not sampled", vec![VerifyRow { next: Some(0), ..self.chain(3, 2) }]),
            ("too few parents", bare(&[0, 0])),
            ("too many parents", bare(&[0, 0, 0, 0])),
            ("a draft that is its own parent", bare(&[0, 2, 0])),
            ("a parent behind its child", bare(&[0, 3, 0])),
            ("penalties without a history", vec![self.penalized(None)]),
            ("a history with the drafts", vec![self.penalized(Some(5))]),
            ("a history outside the vocabulary", vec![unknown_history]),
            ("a prompt longer than the history", vec![long_prompt]),
            ("a bad row behind a good one", vec![self.row(1, 1), self.chain(2, 2)]),
            (
                "a next token outside the vocabulary",
                vec![VerifyRow { next: Some(info.vocab_size), ..self.row(0, 1) }],
            ),
        ]);
        bad
    }

    /// Inputs that neither model takes.
    fn bad_inputs(&self) -> Vec<(&'static str, Vec<SequenceInput>)> {
        let (info, block) = (&self.info, self.info.block_tokens);
        let pool = info.target_blocks.max(info.draft_blocks());
        let context = info.context_tokens_max;
        let beyond = (0..context.div_ceil(block) + 1).collect();
        let one = |block: u32| self.input(vec![block], 0, 1);
        let unknown = SequenceInput { tokens: vec![0, info.vocab_size], ..one(0) };
        vec![
            ("no tokens", vec![self.input(vec![0], 0, 0)]),
            ("a token outside the vocabulary", vec![unknown]),
            ("too many sequences", (0..=info.batch_sequences_max).map(one).collect()),
            (
                "too many tokens",
                self.chunks(info.batch_tokens_max + 1).into_iter().map(|row| row.input).collect(),
            ),
            ("a position outside the context", vec![self.input(beyond, context, 1)]),
            ("a position without a block", vec![self.input(vec![0], 0, block + 1)]),
            ("an empty block table", vec![self.input(Vec::new(), 0, 1)]),
            ("a block outside the pool", vec![one(pool)]),
            ("two inputs that write one block", vec![one(3), self.input(vec![1, 3], block, 1)]),
            ("an input that writes a block twice", vec![self.input(vec![2, 2], 0, block + 1)]),
        ]
    }

    fn good_moves(&self) -> Vec<Compaction> {
        let nothing = Compaction { blocks: vec![BlockId(0), BlockId(1)], first: 3, path: Vec::new() };
        vec![nothing.clone(), Compaction { first: self.info.block_tokens - 1, path: vec![0, 2], ..nothing }]
    }

    fn bad_moves(&self) -> Vec<(&'static str, Vec<Compaction>)> {
        let (info, block) = (&self.info, self.info.block_tokens);
        let one =
            |path: &[u32]| Compaction { blocks: vec![BlockId(0), BlockId(1)], first: 3, path: path.to_vec() };
        let beyond = (0..info.context_tokens_max.div_ceil(block) + 1).map(BlockId).collect();
        vec![
            ("a path that repeats", vec![one(&[1, 1])]),
            ("a path that descends", vec![one(&[2, 1])]),
            ("a path of more than the drafts", vec![one(&[info.draft_tokens_max])]),
            ("a path without a block", vec![Compaction { first: 2 * block - 1, ..one(&[0, 1]) }]),
            (
                "a path outside the context",
                vec![Compaction { blocks: beyond, first: info.context_tokens_max, ..one(&[0]) }],
            ),
            (
                "a path outside the pool",
                vec![Compaction { blocks: vec![BlockId(info.target_blocks)], ..one(&[0]) }],
            ),
            ("two paths in one block", vec![one(&[0]), one(&[1])]),
            ("too many paths", vec![one(&[]); info.batch_sequences_max as usize + 1]),
        ]
    }

    fn bad_seeds(&self) -> Vec<(&'static str, Vec<DraftSeed>)> {
        let limit = self.info.draft_tokens_max;
        let seed = |input: SequenceInput| DraftSeed { row: 0, input, limit, mask: None };
        let mut bad: Vec<_> = self
            .bad_inputs()
            .into_iter()
            .map(|(what, inputs)| (what, inputs.into_iter().map(seed).collect()))
            .collect();
        let good = self.input(vec![0], 0, 5);
        bad.extend([
            ("a limit above the drafts", vec![DraftSeed { limit: limit + 1, ..seed(good) }]),
            ("penalties without a history", vec![seed(self.penalized(None).input)]),
            ("a history that ends too early", vec![seed(self.penalized(Some(3)).input)]),
        ]);
        bad
    }

    /// Begins a round of two seeds that propose and one that catches up; nodes 0 and 1 are the
    /// first proposals.
    fn start_round(&self, executor: &mut dyn Executor) -> DraftForest {
        let limit = self.info.draft_tokens_max;
        let seed = |block: u32, limit: u32| DraftSeed {
            row: 0,
            input: self.input(vec![block], 0, 2),
            limit,
            mask: None,
        };
        let mut forest = DraftForest::default();
        let seeds = [seed(0, limit), seed(1, limit), seed(2, 0)];
        feed(executor, &seeds[..2]);
        let drafter = executor.drafter().expect("a drafter");
        assert_eq!(drafter.start(&seeds, &mut forest), Ok(()));
        let roots = forest.since(0).filter(|(_, node)| node.depth == 0).count();
        assert_eq!(roots, 2, "one first proposal for each seed that wants one");
        forest
    }
}
