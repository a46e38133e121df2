//! Draft heads that make all drafts of a step in one call.

use super::*;
use crate::policy::tests::world::{BLOCK_US, cost_of_blocks};

fn learner() -> SpecServeLearner {
    SpecServeLearner::new(cost_of_blocks(BLOCK_US), None, SpecServeOptions::default())
}

fn planned(call_us: f64, requests: usize) -> StepDecision {
    let policy = SpecServe::new(cost_of_blocks(call_us), None, SpecServeOptions::default());
    let view = StepView { decoding: vec![row(100, None); requests], ..StepView::default() };
    policy.plan(&view, &mut Scratch::default())
}

#[test]
fn no_fixed_length_of_blocks_is_better_at_any_batch_size() {
    for requests in [1, 8, 64, 200] {
        let world = World { requests, blocks: true, ..World::default() };
        let ours = run(&world, &mut learner(), 400).rate();
        for draft_tokens in 0..=8 {
            let fixed = run(&world, &mut Static::new(Fixed { draft_tokens }), 400).rate();
            assert!(ours > 0.98 * fixed, "batch {requests}, fixed {draft_tokens}: {ours} against {fixed}");
        }
    }
}

#[test]
fn a_row_that_drafts_asks_for_the_whole_block() {
    assert_eq!(planned(1500.0, 8).drafts, [8; 8]);
}

#[test]
fn the_whole_block_has_to_pay_not_a_call_for_each_of_its_drafts() {
    let chain = SpecServe::new(
        {
            let mut cost = cost_of_blocks(12_000.0);
            let terms = cost.draft.as_ref().expect("a drafter").terms().clone();
            cost.draft = Some(LatencyModel::new(LatencyTerms { head: None, ..terms }).expect("valid"));
            cost
        },
        None,
        SpecServeOptions::default(),
    );
    let view = StepView { decoding: vec![row(100, None); 8], ..StepView::default() };
    assert_eq!(chain.plan(&view, &mut Scratch::default()).drafts, [0; 8]);
    assert_eq!(planned(12_000.0, 8).drafts, [8; 8]);
    assert_eq!(planned(60_000.0, 8).drafts, [0; 8]);
}

#[test]
fn what_is_verified_of_a_block_follows_its_confidences() {
    // a row more is dear beside 250 others
    let world = World { requests: 200, blocks: true, confidence: |uniform| uniform, ..World::default() };
    let outcome = run(&world, &mut learner(), 200);
    assert!(outcome.drafted > 0 && 2 * outcome.verified < outcome.drafted, "{outcome:?}");
}

#[test]
fn a_block_that_is_never_right_is_given_up() {
    let world =
        World { blocks: true, confidence: |q| 0.5 + 0.5 * q, acceptance: |_| 0.002, ..World::default() };
    let (ours, plain) = (run(&world, &mut learner(), 4000), run(&world, &mut plain(), 4000));
    assert!(ours.rate() > 0.98 * plain.rate(), "{} of {}", ours.rate(), plain.rate());
}
