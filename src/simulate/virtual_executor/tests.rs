use super::*;
use crate::executor::DraftChains;
use crate::protocol::{BLOCK_TOKENS, BlockId, Clock, Micros, SamplingParams};
use crate::timing::cost_model::HeadTerms;
use crate::timing::profile::tests::gpu_like;

fn executor(acceptance: f64) -> (VirtualExecutor, Arc<VirtualClock>) {
    let clock = Arc::new(VirtualClock::default());
    let options = VirtualOptions {
        info: ExecutorInfo {
            backend: "virtual".to_owned(),
            device: "none".to_owned(),
            vocab_size: VOCAB_SIZE,
            context_tokens_max: 4096,
            block_tokens: BLOCK_TOKENS,
            target_blocks: 64,
            drafter: Some(crate::protocol::DrafterNeeds::kv_cache(64)),
            batch_tokens_max: 512,
            batch_sequences_max: 16,
            draft_tokens_max: 8,
            sampled_rows_max: u32::MAX,
            memory: crate::protocol::ExecutorMemory::default(),
        },
        cost: gpu_like().cost_model().unwrap(),
        error: TimeError::NONE,
        acceptance: AcceptanceOptions::geometric(acceptance),
        seed: 9,
    };
    (VirtualExecutor::new(options, clock.clone()), clock)
}

fn input(start: u32, tokens: Vec<TokenId>) -> SequenceInput {
    let sampling = Arc::new(SamplingParams::greedy());
    SequenceInput {
        request: RequestId(3),
        tokens,
        start,
        blocks: (0..16).map(BlockId).collect(),
        sampling,
        history: None,
    }
}

fn verify(executor: &mut VirtualExecutor, row: VerifyRow) -> Verdict {
    let mut out = Vec::new();
    executor.verify(&[row], &mut out).unwrap();
    out.pop().unwrap()
}

fn decode(position: u32, drafts: &[TokenId], tree: Option<Vec<u32>>) -> VerifyRow {
    let mut tokens = vec![right_token(RequestId(3), position)];
    tokens.extend_from_slice(drafts);
    VerifyRow { drafts: drafts.len() as u32, tree, ..VerifyRow::decode(input(position, tokens)) }
}

#[test]
fn what_is_emitted_is_the_same_whatever_is_drafted() {
    let (mut executor, _) = executor(0.5);
    let right = |position| right_token(RequestId(3), position);
    let plain = verify(&mut executor, decode(10, &[], None));
    assert_eq!((plain.accepted, plain.tokens), (0, vec![right(11)]));
    let drafts = [right(11), right(12), right(13) ^ WRONG_BIT, right(14)];
    let chain = verify(&mut executor, decode(10, &drafts, None));
    assert_eq!((chain.accepted, chain.tokens), (2, vec![right(11), right(12), right(13)]));
    let tree = verify(&mut executor, decode(10, &[1, right(11), right(12)], Some(vec![0, 0, 2])));
    assert_eq!((tree.accepted, tree.path), (2, vec![1, 2]));
}

#[test]
fn a_proposal_is_right_exactly_where_the_process_says_so() {
    let mut executor_chains = DraftChains::default();
    let (mut executor, _) = executor(0.5);
    let (mut out, mut all, mut right) = (Vec::new(), Vec::new(), 0);
    let row = DraftSeed { row: 0, input: input(0, vec![1; 10]), limit: 8, mask: None };
    executor_chains.start(&mut executor, &[row], &mut out).unwrap();
    all.append(&mut out);
    for _ in 0..199 {
        executor_chains.extend(&mut executor, &[0], &mut out).unwrap();
        all.append(&mut out);
    }
    for (offset, proposal) in all.iter().enumerate() {
        let position = 10 + offset as u32;
        let accepted =
            executor.process.draft(RequestId(3), 10, offset as u32).expect("one is drawn").accepted;
        assert_eq!(proposal.token == right_token(RequestId(3), position), accepted);
        assert_ne!(proposal.token, proposal.runner_up);
        right += u32::from(accepted);
    }
    assert!((70..130).contains(&right), "{right} of 200");
}

#[test]
fn a_call_takes_what_the_profile_says() {
    let (mut executor, clock) = executor(0.5);
    let cost = gpu_like().cost_model().unwrap();
    let passed = |work: fn(&mut VirtualExecutor), executor: &mut VirtualExecutor| {
        let before = clock.now();
        work(executor);
        clock.now() - before
    };
    let plain = passed(|one| _ = verify(one, decode(100, &[], None)), &mut executor);
    let work = Work { rows: 1, context_tokens: 101, attended_tokens: 101, ..Work::default() };
    assert_eq!(plain, Micros(cost.target.micros(&work) as u64));
    let chunk = || VerifyRow::prefill(input(32, vec![1; 64]), Some(1));
    let prefill = clock.now();
    assert!(verify(&mut executor, chunk()).tokens.is_empty());
    let work =
        Work { prefill_tokens: 64, prefill_attended_tokens: prefill_attended(32, 64), ..Work::default() };
    let expected = cost.target.micros(&work);
    assert!(((clock.now() - prefill).0 as f64 - expected).abs() <= 1.0);
    let host = passed(VirtualExecutor::spend_host_time, &mut executor);
    assert!((host.0 as f64 - cost.host_us).abs() <= 1.0);
}

#[test]
fn all_tokens_are_in_the_vocabulary_right_and_wrong_ones() {
    let (mut executor, _) = executor(0.5);
    let most = RequestId(u64::from(u32::MAX));
    let prompt = VirtualExecutor::prompt(most, 1000);
    assert!(prompt.iter().all(|&token| token < VOCAB_SIZE));
    let proposal = executor.propose(most, u32::MAX, 0).expect("one is drawn");
    assert!(proposal.token < VOCAB_SIZE && proposal.runner_up < VOCAB_SIZE);
}

/// With a draft head that makes so many drafts per call.
fn with_head(drafts_per_call: u32) -> (VirtualExecutor, Arc<VirtualClock>) {
    let mut profile = gpu_like();
    let draft = profile.draft.as_mut().unwrap();
    draft.round_us = 100.0;
    draft.head = Some(HeadTerms { drafts_per_call, state_token_us: 3.0 });
    let cost = profile.cost_model().unwrap();
    let (like, clock) = executor(0.9);
    let info =
        ExecutorInfo { drafter: cost.draft.as_ref().map(|draft| drafter_of(draft, 64)), ..like.info.clone() };
    let options = VirtualOptions {
        info,
        cost,
        error: TimeError::NONE,
        acceptance: AcceptanceOptions::geometric(0.9),
        seed: 9,
    };
    (VirtualExecutor::new(options, clock.clone()), clock)
}

/// Proposals of a round's first call and of a second one, and the time of each in microseconds.
fn round(executor: &mut VirtualExecutor, clock: &VirtualClock) -> [(usize, u64); 2] {
    let mut forest = DraftForest::default();
    let seed = DraftSeed { row: 0, input: input(100, vec![1]), limit: 5, mask: None };
    let start = clock.now();
    executor.start(&[seed], &mut forest).unwrap();
    let first = (forest.len(), (clock.now() - start).0);
    let (start, last) = (clock.now(), NodeId(forest.len() as u32 - 1));
    executor.extend(&[last], &mut forest).unwrap();
    [first, (forest.len() - first.0, (clock.now() - start).0)]
}

#[test]
fn a_head_makes_as_many_drafts_per_call_as_its_profile_says() {
    let (mut chain, chain_clock) = with_head(1);
    let [first, second] = round(&mut chain, &chain_clock);
    assert_eq!((first.0, second.0), (1, 1));
    assert!(first.1 > second.1 + 90 && second.1 > 400, "{first:?} {second:?}");
    let (mut block, block_clock) = with_head(4);
    assert_eq!(round(&mut block, &block_clock), [(4, first.1), (0, 0)]);
}

#[test]
fn a_round_reads_the_states_of_what_was_committed_since_the_last_one() {
    let (mut executor, clock) = with_head(1);
    let [(_, at_rest_us), _] = round(&mut executor, &clock);
    verify(&mut executor, VerifyRow::prefill(input(32, vec![1; 64]), Some(1)));
    let drafts = [11, 12].map(|position| right_token(RequestId(3), position));
    assert_eq!(verify(&mut executor, decode(10, &drafts, None)).accepted, 2);
    let [(_, us), _] = round(&mut executor, &clock);
    assert!((us - at_rest_us).abs_diff(3 * (64 + 3 - 1)) <= 1, "{us} {at_rest_us}");
    assert_eq!(round(&mut executor, &clock)[0].1, at_rest_us);
}
