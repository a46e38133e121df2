//! What drafting brings over its plan, and that the plan counts on it.

use super::*;
use crate::protocol::{DraftCounts, Intent, StepReport};
use crate::timing::cost_model::{Between, LatencyTerms};

/// Knows that drafts are accepted with the chance `confidence`. A draft takes 0.6 of a plain step, as
/// dear as for a tiny pair on a CPU.
fn dear(confidence: f32) -> SpecServe {
    let mut profile = gpu_like();
    let line = |first: f64, row: f64| {
        LatencyTerms::staircase(Between::Interpolate, &[1, 1001], &[first, first + 1000.0 * row])
    };
    profile.target = line(1000.0, 400.0);
    profile.draft = Some(line(200.0, 0.0));
    let mut policy = SpecServe::new(profile.cost_model().unwrap(), None, raw());
    (0..1000).for_each(|_| policy.forecast.observe(&step(0.0, &[confidence]), &policy.calibration));
    policy
}

fn raw() -> SpecServeOptions {
    SpecServeOptions { calibration: CalibrationMode::Raw, ..SpecServeOptions::default() }
}

fn view() -> StepView {
    StepView { decoding: vec![row(100, None)], ..StepView::default() }
}

/// A step of one request that was planned at `rate` and verified drafts this probable.
fn step(rate: f64, drafts: &[f32]) -> StepReport {
    let proposal = |&probability: &f32| Proposal { probability, finite: true, ..Proposal::default() };
    let proposals: Vec<Proposal> = drafts.iter().map(proposal).collect();
    StepReport {
        view: view(),
        granted: StepDecision { rate, drafts: vec![8], ..StepDecision::default() },
        counts: vec![DraftCounts { verified: drafts.len() as u32, accepted: 0 }],
        drafted: vec![DraftedRow::chain(0, proposals)],
        ..StepReport::default()
    }
}

/// After 200 steps that verified `drafts`, each planned at the rate of plain decoding.
fn after(drafts: &[f32]) -> SpecServe {
    let mut policy = dear(0.5);
    let plain_us = Costs::of(&policy.time, &view(), 0).plain_us();
    for _ in 0..200 {
        let ratio = policy.realized.ratio(1, DraftShape::Chain);
        policy.observe_realized(&step(ratio / plain_us, drafts));
    }
    policy
}

#[test]
fn steps_that_bring_more_than_planned_raise_what_is_expected_of_the_next() {
    let policy = after(&[0.9, 0.9]);
    let costs = Costs::of(&policy.time, &view(), 0);
    let step_us = costs.verify_us(2) + 2.0 * costs.draft_call_us(1) + costs.draft_round_us(1);
    let expected = (1.0 + 0.9 + 0.81) * costs.plain_us() / step_us;
    assert!((1.1..1.6).contains(&expected), "{expected}: a case that says something");
    assert!(
        (policy.realized.ratio(1, DraftShape::Chain) - expected).abs() < 0.01,
        "{} {expected}",
        policy.realized.ratio(1, DraftShape::Chain)
    );
    assert_eq!(policy.realized.ratio(2, DraftShape::Chain), 1.0, "of batches of this size only");
}

#[test]
fn the_context_that_drafts_attend_to_is_part_of_a_steps_time() {
    let ratio = |attended_token_us: f64| {
        let mut profile = gpu_like();
        profile.target.attended_token_us = attended_token_us;
        let mut policy = SpecServe::new(profile.cost_model().unwrap(), None, raw());
        let plain_us = Costs::of(&policy.time, &view(), 0).plain_us();
        policy.observe_realized(&step(1.2 / plain_us, &[0.9, 0.9]));
        policy.realized.ratio(1, DraftShape::Chain)
    };
    // 100 tokens of context: each draft takes 1 ms more
    assert!(ratio(10.0) < ratio(0.0) - 0.01, "{} {}", ratio(10.0), ratio(0.0));
}

#[test]
fn steps_that_bring_less_leave_the_plan_to_its_forecasts() {
    assert_eq!(after(&[0.1]).realized.ratio(1, DraftShape::Chain), 1.0);
}

#[test]
fn probes_and_steps_without_drafts_say_nothing() {
    let mut policy = dear(0.5);
    policy.observe_realized(&step(0.0, &[0.9, 0.9]));
    policy.observe_realized(&StepReport { drafted: Vec::new(), ..step(1.0, &[]) });
    assert_eq!(policy.realized.ratio(1, DraftShape::Chain), 1.0);
}

#[test]
fn a_plan_a_little_behind_plain_decoding_drafts_where_steps_bring_more_than_planned() {
    let decide = |policy: &SpecServe| policy.plan(&view(), &mut Scratch::default());
    assert_eq!(decide(&dear(0.5)).drafts, [0], "behind, by mean confidences");
    let experienced = SpecServe { realized: after(&[0.9, 0.9]).realized, ..dear(0.5) };
    let decision = decide(&experienced);
    assert_eq!((decision.intent, decision.drafts[0] > 0), (Intent::Draft, true));
    let plain_rate = 1.0 / Costs::of(&experienced.time, &view(), 0).plain_us();
    assert!(decision.rate > plain_rate, "{} {plain_rate}", decision.rate);
}

#[test]
fn a_plan_far_behind_plain_decoding_does_not_draft_whatever_steps_brought() {
    let hopeless = SpecServe { realized: after(&[0.99, 0.99]).realized, ..dear(0.1) };
    assert_eq!(hopeless.plan(&view(), &mut Scratch::default()).drafts, [0]);
}
