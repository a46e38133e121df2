//! Both models of the embedded pair against a float64 reference (assets/tiny/golden.json).

use std::sync::Arc;

use specserve::executor::cpu::{CpuExecutor, CpuOptions};
use specserve::executor::{Executor, Target};
use specserve::model::{ModelSource, load};
use specserve::protocol::{BlockId, ModelRole, RequestId, SamplingParams, SequenceInput, TokenId, VerifyRow};

/// Tolerance of a logit against the reference.
const TOLERANCE: f32 = 0.01;

#[derive(serde::Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    prompt: String,
    prompt_ids: Vec<TokenId>,
    greedy_ids: Vec<TokenId>,
    target_top8: (Vec<TokenId>, Vec<f32>),
    draft_top8: (Vec<TokenId>, Vec<f32>),
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../assets/tiny/golden.json")).expect("the golden file parses")
}

fn executor() -> CpuExecutor {
    let options = CpuOptions {
        threads: 2,
        target_blocks: 128,
        draft_blocks: 128,
        block_tokens: 16,
        batch_tokens_max: 512,
        batch_sequences_max: 16,
        draft_tokens_max: 16,
    };
    let model = |role| load(&ModelSource::EmbeddedTiny, role).expect("the embedded pair loads").loaded;
    CpuExecutor::new(options, model(ModelRole::Target), Some(model(ModelRole::Draft).into()))
        .expect("it fits")
}

fn input(tokens: &[TokenId], start: u32) -> SequenceInput {
    SequenceInput {
        request: RequestId(1),
        tokens: tokens.to_vec(),
        start,
        blocks: (0..128).rev().map(BlockId).collect(),
        sampling: Arc::new(SamplingParams::greedy()),
        history: None,
    }
}

fn assert_top8(logits: &[f32], (ids, expected): &(Vec<TokenId>, Vec<f32>), case: &str) {
    let ours: Vec<f32> = ids.iter().map(|&id| logits[id as usize]).collect();
    for ((id, ours), expected) in ids.iter().zip(&ours).zip(expected) {
        assert!((ours - expected).abs() < TOLERANCE, "{case}: token {id} has {ours}, expected {expected}");
    }
    for (ours, expected) in ours.windows(2).zip(expected.windows(2)) {
        let told_apart = expected[0] - expected[1] > TOLERANCE;
        assert!(!told_apart || ours[0] > ours[1], "{case}: the order {expected:?} became {ours:?}");
    }
}

#[test]
fn the_logits_after_each_prompt_are_the_references() {
    let mut executor = executor();
    for case in golden().cases {
        let prompt = input(&case.prompt_ids, 0);
        let target = executor.logits(ModelRole::Target, &prompt).expect("the target runs");
        assert_top8(&target, &case.target_top8, &case.prompt);
        let draft = executor.logits(ModelRole::Draft, &prompt).expect("the draft runs");
        assert_top8(&draft, &case.draft_top8, &case.prompt);
    }
}

#[test]
fn greedy_decoding_matches_the_reference() {
    let mut executor = executor();
    for case in golden().cases {
        let mut said: Vec<TokenId> = Vec::new();
        let mut next = input(&case.prompt_ids, 0);
        while said.len() < case.greedy_ids.len() {
            let end = next.start + next.tokens.len() as u32;
            let row = VerifyRow::decode(next);
            let mut verdicts = Vec::new();
            executor.verify(&[row], &mut verdicts).expect("the target runs");
            said.extend(&verdicts[0].tokens);
            next = input(&verdicts[0].tokens, end);
        }
        assert_eq!(said, case.greedy_ids, "{}", case.prompt);
    }
}
