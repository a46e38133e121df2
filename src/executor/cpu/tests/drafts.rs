//! Drafting rounds.

use super::*;
use crate::protocol::{History, Proposal, TokenMask};

fn draft_row(blocks: &[u32], tokens: &[TokenId], start: u32, propose: bool) -> DraftSeed {
    DraftSeed { row: 0, input: input(blocks, tokens, start), limit: if propose { 8 } else { 0 }, mask: None }
}

/// A pair whose draft is its target.
fn twins() -> CpuExecutor {
    CpuExecutor::new(options(2), target(), Some(target().into())).unwrap()
}

fn sampling(temperature: f32, repetition_penalty: f32) -> Arc<SamplingParams> {
    Arc::new(SamplingParams { temperature, repetition_penalty, seed: 11, ..SamplingParams::greedy() })
}

#[test]
fn a_draft_that_is_the_target_has_every_token_accepted() {
    let mut executor_chains = DraftChains::default();
    let tokens = text(9, 20);
    for (temperature, penalty) in [(0.0, 1.0), (0.8, 1.0), (0.8, 1.3)] {
        let mut executor = twins();
        let mut row = draft_row(&[3, 1, 2], &tokens, 0, true);
        row.input.sampling = sampling(temperature, penalty);
        row.input.history = Some(History { tokens: tokens.clone(), prompt_tokens: 15 });
        let mut proposals = Vec::new();
        executor_chains.start(&mut executor, std::slice::from_ref(&row), &mut proposals).unwrap();
        let mut drafts = vec![proposals[0].token];
        for _ in 1..6 {
            executor_chains.extend(&mut executor, &[0], &mut proposals).unwrap();
            drafts.push(proposals[0].token);
        }
        row.input.tokens.extend(&drafts);
        let row = VerifyRow { drafts: 6, ..VerifyRow::decode(row.input) };
        let verdict = verify(&mut executor, &[row])[0].clone();
        assert_eq!((verdict.accepted, &verdict.tokens[..6]), (6, &drafts[..]), "temperature {temperature}");
    }
}

#[test]
fn rows_go_on_alone_as_they_would_together() {
    let mut some_chains = DraftChains::default();
    let mut alone_chains = DraftChains::default();
    let rows: Vec<DraftSeed> = (0..5).map(|i| draft_row(&[i], &text(i, 3 + i), 0, true)).collect();
    let (mut some, mut proposals) = (executor(2), Vec::new());
    some_chains.start(&mut some, &rows, &mut proposals).unwrap();
    some_chains.extend(&mut some, &[1, 3, 4], &mut proposals).unwrap();
    some_chains.extend(&mut some, &[3], &mut proposals).unwrap();
    let (mut alone, mut expected) = (executor(1), Vec::new());
    alone_chains.start(&mut alone, &rows[3..4], &mut expected).unwrap();
    alone_chains.extend(&mut alone, &[0], &mut expected).unwrap();
    alone_chains.extend(&mut alone, &[0], &mut expected).unwrap();
    assert_eq!(proposals, expected);
}

#[test]
fn a_row_that_only_catches_up_proposes_nothing_and_fills_the_cache() {
    let mut executor_chains = DraftChains::default();
    let tokens = text(4, 9);
    let (mut executor, mut proposals) = (executor(2), Vec::new());
    let rows = [draft_row(&[0], &tokens[..8], 0, false), draft_row(&[1], &tokens, 0, true)];
    executor_chains.start(&mut executor, &rows, &mut proposals).unwrap();
    assert_eq!(proposals[0], Proposal::default());
    let whole = proposals[1];
    executor_chains.start(&mut executor, &[draft_row(&[0], &tokens[8..], 8, true)], &mut proposals).unwrap();
    assert_eq!(proposals[0], whole);
}

#[test]
fn without_a_draft_model_drafting_is_malformed() {
    let mut executor_chains = DraftChains::default();
    let mut executor = CpuExecutor::new(options(1), target(), None).unwrap();
    assert_eq!(executor.info().draft_blocks(), 0);
    let started = executor_chains.start(&mut executor, &[draft_row(&[0], &[1], 0, true)], &mut Vec::new());
    assert!(matches!(started, Err(ExecutorError::Malformed(_))));
}

/// A twin drafts what the target says, so all drafts are accepted iff the two are masked alike.
#[test]
fn masked_drafts_of_a_twin_are_accepted_and_obey_their_masks() {
    let tokens = text(9, 20);
    let mask = |node: u32| Arc::new(TokenMask::from_fn(VOCAB as u32, |token| token % 5 == node % 5));
    for temperature in [0.0, 0.8] {
        let mut executor = twins();
        let mut seed = draft_row(&[3, 1, 2], &tokens, 0, true);
        seed.input.sampling = sampling(temperature, 1.0);
        seed.mask = Some(mask(0));
        let mut forest = DraftForest::default();
        executor.start(std::slice::from_ref(&seed), &mut forest).unwrap();
        for node in 0..3 {
            forest.constrain(NodeId(node), mask(node + 1));
            executor.extend(&[NodeId(node)], &mut forest).unwrap();
        }
        let drafts: Vec<TokenId> = forest.since(0).map(|(_, node)| node.proposal.token).collect();
        assert!((0..).zip(&drafts).all(|(node, draft)| draft % 5 == node), "{drafts:?}");
        let mut row = chain(&[3, 1, 2], &[&tokens[..], &drafts].concat(), 0, 4);
        row.input.sampling = seed.input.sampling.clone();
        row.masks = (0..5).map(|node| Some(mask(node))).collect();
        let verdict = verify(&mut executor, std::slice::from_ref(&row))[0].clone();
        assert_eq!((verdict.accepted, &verdict.tokens[..4]), (4, &drafts[..]), "temperature {temperature}");
        assert_eq!(verdict.tokens[4] % 5, 4);
        // a draft that its mask forbids is rejected, and nothing allowed is not finite
        row.masks[2] = Some(mask(3));
        assert_eq!(verify(&mut executor, std::slice::from_ref(&row))[0].accepted, 2);
        row.masks[2] = Some(Arc::new(TokenMask::none(VOCAB as u32)));
        assert_eq!(verify(&mut executor, &[row])[0], Verdict::default());
    }
}
