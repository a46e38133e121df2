use super::*;
use crate::executor::DraftChains;
use crate::protocol::{BLOCK_TOKENS, BlockId, Clock, Micros, SamplingParams};
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
        let accepted = executor.process.at(RequestId(3), position).accepted;
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
    let proposal = executor.propose(most, u32::MAX);
    assert!(proposal.token < VOCAB_SIZE && proposal.runner_up < VOCAB_SIZE);
}
