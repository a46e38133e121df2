use std::sync::Arc;

use super::*;
use crate::protocol::{DrafterNeeds, Proposal, SamplingParams, TokenMask};

fn info() -> ExecutorInfo {
    ExecutorInfo {
        backend: "test".to_owned(),
        device: "test".to_owned(),
        vocab_size: 100,
        context_tokens_max: 64,
        block_tokens: 16,
        target_blocks: 8,
        drafter: Some(DrafterNeeds::kv_cache(8)),
        batch_tokens_max: 40,
        batch_sequences_max: 2,
        draft_tokens_max: 4,
        sampled_rows_max: u32::MAX,
        memory: crate::protocol::ExecutorMemory::default(),
    }
}

fn ids(blocks: &[u32]) -> Vec<BlockId> {
    blocks.iter().copied().map(BlockId).collect()
}

fn input(start: u32, tokens: usize) -> SequenceInput {
    SequenceInput {
        request: RequestId(7),
        tokens: vec![1; tokens],
        start,
        blocks: ids(&[0, 1, 2, 3]),
        sampling: Arc::new(SamplingParams::greedy()),
        history: None,
    }
}

fn row(start: u32, tokens: usize, drafts: u32) -> VerifyRow {
    VerifyRow { drafts, ..VerifyRow::decode(input(start, tokens)) }
}

fn seed(start: u32, blocks: &[u32]) -> DraftSeed {
    DraftSeed {
        row: 0,
        input: SequenceInput { blocks: ids(blocks), ..input(start, 1) },
        limit: 1,
        mask: None,
    }
}

fn text<T: std::fmt::Debug>(result: Result<T, ExecutorError>) -> String {
    match result {
        Err(ExecutorError::Malformed(what)) => what,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

fn refused(row: &VerifyRow) -> String {
    let what = text(BatchContract::new(&info()).verify(std::slice::from_ref(row)));
    assert!(what.contains("request 7"), "{what:?} does not name the request");
    what
}

#[test]
fn a_good_row_passes_and_each_broken_rule_is_named() {
    assert_eq!(BatchContract::new(&info()).verify(&[row(59, 5, 4)]), Ok(()));
    assert!(refused(&row(0, 0, 0)).contains("no input tokens"));
    assert!(refused(&row(60, 5, 4)).contains("context has 64"));
    assert!(refused(&row(0, 41, 0)).contains("at most 40"));
    assert!(refused(&row(0, 6, 5)).contains("5 drafts, at most 4"));
    assert!(refused(&row(0, 2, 2)).contains("2 drafts among 2"));
    assert!(refused(&VerifyRow { next: Some(0), ..row(0, 2, 1) }).contains("does not sample"));
    let mut bad = row(0, 2, 0);
    bad.input.tokens[1] = 100;
    assert!(refused(&bad).contains("vocabulary"));
    bad = row(0, 17, 0);
    bad.input.blocks = ids(&[0]);
    assert!(refused(&bad).contains("the blocks cover 16"));
    bad.input.blocks = ids(&[0, 8]);
    assert!(refused(&bad).contains("block 8 is outside the pool of 8"));
    bad.input.blocks = ids(&[0, 0]);
    assert!(refused(&bad).contains("write to block 0"));
    for (parents, what) in
        [(vec![0], "1 parents for 2 drafts"), (vec![0, 2], "draft 1 stands before"), (vec![1, 0], "draft 0")]
    {
        assert!(refused(&VerifyRow { tree: Some(parents), ..row(0, 3, 2) }).contains(what));
    }
}

#[test]
fn masks_are_one_per_node_and_for_the_whole_vocabulary() {
    let masked = |masks| VerifyRow { masks, ..row(0, 2, 1) };
    let whole = Some(Arc::new(TokenMask::none(100)));
    let other = Some(Arc::new(TokenMask::none(101)));
    assert!(refused(&masked(vec![None; 3])).contains("3 masks for 1 drafts"));
    assert!(refused(&masked(vec![whole.clone(), other])).contains("another vocabulary"));
    let seed = DraftSeed { mask: Some(Arc::new(TokenMask::none(99))), ..seed(0, &[0]) };
    let what = text(BatchContract::new(&info()).start(std::slice::from_ref(&seed)));
    assert!(what.contains("another vocabulary"), "{what}");
    let good = masked(vec![whole, None]);
    assert_eq!(BatchContract::new(&info()).verify(&[good]), Ok(()));
}

#[test]
fn too_many_sequences_and_a_missing_draft_are_refused() {
    let mut contract = BatchContract::new(&info());
    let rows = [row(0, 1, 0), row(16, 1, 0), row(32, 1, 0)];
    assert_eq!(contract.verify(&rows[..2]), Ok(()));
    assert!(text(contract.verify(&rows)).contains("3 sequences, at most 2"));
    let mut contract = BatchContract::new(&ExecutorInfo { drafter: None, ..info() });
    assert!(text(contract.start(&[seed(0, &[0])])).contains("no drafter"));
    assert!(text(contract.logits(ModelRole::Draft, &input(0, 1))).contains("no draft model"));
    assert_eq!(contract.logits(ModelRole::Target, &input(0, 1)), Ok(()));
}

#[test]
fn tokens_are_counted_over_the_batch_and_blocks_written_once_in_it() {
    let mut contract = BatchContract::new(&info());
    let other = |blocks: &[u32], start, tokens| {
        let mut row = row(start, tokens, 0);
        row.input.blocks = ids(blocks);
        row
    };
    let [long, rest] = [other(&[0, 1], 0, 32), other(&[2], 0, 8)];
    assert_eq!(contract.verify(&[long.clone(), rest]), Ok(()));
    assert!(text(contract.verify(&[long, other(&[2], 0, 9)])).contains("41 input tokens"));
    let two = [other(&[5], 0, 1), other(&[6, 5], 17, 1)];
    assert!(text(contract.verify(&two)).contains("write to block 5"));
    // two sequences may read one prefix, and the next batch may write what this one wrote
    let shared = [other(&[5, 1], 17, 1), other(&[5, 2], 17, 1)];
    assert_eq!(contract.verify(&shared), Ok(()));
    assert_eq!(contract.verify(&shared), Ok(()));
}

#[test]
fn penalties_need_a_history_that_ends_with_the_committed_tokens() {
    let with = |tokens: usize, prompt_tokens: u32| {
        let mut row = row(3, 3, 2);
        row.input.sampling = Arc::new(SamplingParams { presence_penalty: 0.5, ..SamplingParams::greedy() });
        row.input.history = Some(History { tokens: vec![1; tokens], prompt_tokens });
        row
    };
    assert_eq!(BatchContract::new(&info()).verify(&[with(4, 4)]), Ok(()));
    assert!(refused(&with(6, 2)).contains("a history of 6 tokens, 4 are committed"));
    assert!(refused(&with(4, 5)).contains("a prompt of 5 of 4"));
    let mut bad = with(4, 2);
    bad.input.history.as_mut().expect("is set").tokens[0] = 100;
    assert!(refused(&bad).contains("history is outside the vocabulary"));
    bad.input.history = None;
    assert!(refused(&bad).contains("need a history"));
    bad.drafts = 0;
    bad.next = Some(0);
    assert_eq!(BatchContract::new(&info()).verify(&[bad]), Ok(()), "nothing is sampled");
}

#[test]
fn a_compaction_stays_inside_its_blocks() {
    let mut contract = BatchContract::new(&info());
    let good = Compaction { blocks: ids(&[0, 1]), first: 28, path: vec![0, 3] };
    assert_eq!(contract.compact(std::slice::from_ref(&good)), Ok(()));
    assert_eq!(contract.compact(&[Compaction { path: Vec::new(), ..good.clone() }, good.clone()]), Ok(()));
    let mut refused = |bad: Compaction| text(contract.compact(&[bad]));
    assert!(refused(Compaction { first: 29, ..good.clone() }).contains("the blocks cover 32"));
    assert!(refused(Compaction { path: vec![1, 1], ..good.clone() }).contains("not ascending"));
    assert!(refused(Compaction { path: vec![2, 1], ..good.clone() }).contains("not ascending"));
    assert!(refused(Compaction { path: vec![4], ..good.clone() }).contains("at most 4"));
    assert!(refused(Compaction { first: 64, ..good.clone() }).contains("the context has 64"));
    assert!(refused(Compaction { blocks: ids(&[0, 8]), ..good.clone() }).contains("outside the pool"));
    assert!(text(contract.compact(&[good.clone(), good])).contains("write to block 1"));
}

#[test]
fn rows_that_are_sampled_are_bounded_over_the_batch() {
    let two = |drafts: u32| {
        let mut other = row(0, drafts as usize + 1, drafts);
        other.input.blocks = ids(&[4, 5, 6, 7]);
        [row(0, drafts as usize + 1, drafts), other]
    };
    let mut contract = BatchContract::new(&ExecutorInfo { sampled_rows_max: 6, ..info() });
    assert_eq!(contract.verify(&two(2)), Ok(()));
    assert!(text(contract.verify(&two(3))).contains("8 rows that are sampled, at most 6"));
}

/// A contract in a round of these seeds, and their first nodes.
fn round(seeds: &[DraftSeed]) -> (BatchContract, DraftForest) {
    let mut contract = BatchContract::new(&ExecutorInfo { batch_sequences_max: 4, ..info() });
    let mut forest = DraftForest::default();
    contract.start(seeds).expect("good seeds");
    for seed in 0..seeds.len() as u32 {
        forest.add_root(seed, Proposal { finite: true, ..Proposal::default() });
    }
    (contract, forest)
}

#[test]
fn a_row_that_was_left_out_or_has_no_block_does_not_go_on() {
    let mut seeds = Vec::new();
    assert!(BatchContract::new(&info()).start(&[seed(15, &[1, 8])]).is_err(), "a block beyond the pool");
    let (mut contract, mut forest) = round(&[seed(15, &[3]), seed(15, &[1, 7]), seed(15, &[2, 6])]);
    let mut extend = |nodes: &[u32], forest: &DraftForest| {
        let nodes: Vec<NodeId> = nodes.iter().copied().map(NodeId).collect();
        contract.extend(&nodes, forest, &mut seeds).map(|()| seeds.clone())
    };
    assert!(text(extend(&[0], &forest)).contains("no block for position 16"));
    assert!(text(extend(&[2, 1], &forest)).contains("out of order"));
    assert!(text(extend(&[1, 1], &forest)).contains("was fed before"));
    let beside = forest.add_runner_up(NodeId(1));
    assert!(text(extend(&[beside.0], &forest)).contains("not the choice"));
    assert!(text(extend(&[4], &forest)).contains("no draft node 4"));
    assert_eq!(extend(&[1], &forest), Ok(vec![1]));
    for old in [1, 2] {
        assert!(text(extend(&[old], &forest)).contains("does not follow what the last call fed"));
    }
    let next = forest.add_child(NodeId(1), Proposal { finite: true, ..Proposal::default() });
    assert_eq!(extend(&[next.0], &forest), Ok(vec![1]));
}

#[test]
fn only_a_token_of_a_seed_that_proposes_is_extended_and_only_inside_the_context() {
    let catch_up = DraftSeed { limit: 0, ..seed(4, &[0]) };
    let (mut contract, mut forest) =
        round(&[catch_up, seed(62, &[1, 2, 3, 4]), seed(7, &[5]), seed(8, &[6])]);
    let mut seeds = Vec::new();
    let mut extend = |id: NodeId, forest: &DraftForest| contract.extend(&[id], forest, &mut seeds);
    assert!(text(extend(NodeId(0), &forest)).contains("does not propose"));
    let infinite = forest.add_root(2, Proposal::default());
    let unknown = forest.add_root(3, Proposal { token: 100, finite: true, ..Proposal::default() });
    let foreign = forest.add_root(4, Proposal { finite: true, ..Proposal::default() });
    for id in [infinite, unknown] {
        assert!(text(extend(id, &forest)).contains("no token"));
    }
    assert!(text(extend(foreign, &forest)).contains("seed 4, which does not propose"));
    assert_eq!(extend(NodeId(1), &forest), Ok(()), "position 63");
    let last = forest.add_child(NodeId(1), Proposal { finite: true, ..Proposal::default() });
    assert!(text(extend(last, &forest)).contains("the context has 64"));
}

#[test]
fn seeds_are_bounded_as_rows_are_and_refused_ones_end_the_round() {
    let (mut contract, forest) = round(&[seed(0, &[0])]);
    let mut refused = |bad: DraftSeed| text(contract.start(&[bad]));
    assert!(refused(DraftSeed { limit: 5, ..seed(0, &[0]) }).contains("5 proposals, at most 4"));
    assert!(refused(seed(16, &[0])).contains("the blocks cover 16"));
    let mut penalized = seed(0, &[0]);
    penalized.input.sampling = Arc::new(SamplingParams { presence_penalty: 0.5, ..SamplingParams::greedy() });
    assert!(refused(penalized.clone()).contains("penalties need a history"));
    assert_eq!(contract.start(&[DraftSeed { limit: 0, ..penalized }]), Ok(()), "it only fills the cache");
    assert!(contract.extend(&[NodeId(0)], &forest, &mut Vec::new()).is_err());
}

#[test]
fn a_drafter_without_a_pool_needs_no_blocks_but_the_tokens_it_asked_for() {
    let mut contract = BatchContract::new(&ExecutorInfo { drafter: Some(DrafterNeeds::tokens()), ..info() });
    let mut one = seed(3, &[]);
    assert!(text(contract.start(std::slice::from_ref(&one))).contains("drafter needs a history"));
    one.input.history = Some(History { tokens: vec![1; 4], prompt_tokens: 4 });
    assert_eq!(contract.start(&[one]), Ok(()));
}
