//! What `plan` spends on the draft model: catching up, and following prefills.

use super::*;
use crate::protocol::{RequestSummary, StepReport};
use crate::timing::cost_model::{Between, LatencyTerms};

fn plan(policy: &SpecServe, view: &StepView) -> StepDecision {
    policy.plan(view, &mut Scratch::default())
}

#[test]
fn a_draft_model_catches_up_only_where_that_pays_over_the_output_to_come() {
    let mut profile = gpu_like();
    // 100 µs for each row
    let rows = [1, 1001];
    profile.draft = Some(LatencyTerms::staircase(Between::Interpolate, &rows, &[400.0, 100_400.0]));
    let mut policy = SpecServe::new(profile.cost_model().unwrap(), None, SpecServeOptions::default());
    let drafts = |policy: &SpecServe, lag| {
        let lagging = DecodeView { draft_lag_tokens: lag, ..row(6000, None) };
        plan(policy, &StepView { decoding: vec![lagging], ..StepView::default() }).drafts[0]
    };
    // Drafting gains about 2.5 tokens a step, 45 over 64 tokens to come: worth 90 ms.
    assert!(drafts(&policy, 500) > 0, "50 ms pay");
    assert_eq!(drafts(&policy, 3000), 0, "300 ms don't");
    let finished = vec![RequestSummary { output_tokens: 4000, ..RequestSummary::default() }; 64];
    policy.lifetime.observe(&StepReport { finished, ..StepReport::default() });
    assert!(drafts(&policy, 3000) > 0, "they do over thousands of tokens");
}

#[test]
fn the_draft_model_follows_prefills_while_speculation_is_on() {
    let decoding = StepView {
        decoding: vec![row(100, None)],
        prefilling: vec![prompt(100, None)],
        prefill_tokens_max: 2048,
        ..StepView::default()
    };
    let prefilling = StepView { decoding: Vec::new(), ..decoding.clone() };
    let warms = |policy: &SpecServe| [&decoding, &prefilling].map(|view| plan(policy, view).warm_draft);
    assert_eq!(warms(&policy()), [true, true]);

    let prefilling = vec![prompt(10_000, None)];
    let long = StepView { decoding: vec![row(100, None); 64], prefilling, ..decoding.clone() };
    assert!(!plan(&policy(), &long).warm_draft, "64 tokens to come do not pay for reading 10,000");
    let mut patient = policy();
    let finished = vec![RequestSummary { output_tokens: 4000, ..RequestSummary::default() }; 64];
    patient.lifetime.observe(&StepReport { finished, ..StepReport::default() });
    assert!(plan(&patient, &long).warm_draft, "thousands do");

    let mut off = policy();
    off.gate.observe(&StepReport { view: decoding.clone(), ..StepReport::default() });
    assert_eq!(warms(&off), [false, false]);

    let alone = CostModel { draft: None, ..gpu_like().cost_model().unwrap() };
    let alone = SpecServe::new(alone, None, SpecServeOptions::default());
    assert_eq!(warms(&alone), [false, false]);
}

/// A step of 64 requests that may take `prefill_tokens` of one prompt.
fn beside_prefill(prefill_tokens: u32) -> StepView {
    StepView {
        decoding: vec![row(100, None); 64],
        prefilling: vec![prompt(1500, None)],
        prefill_tokens_max: prefill_tokens,
        ..StepView::default()
    }
}

/// Drafts that are planned for verification, where up to 512 rows wait for memory and each row
/// beyond takes 40 µs.
fn planned(view: &StepView) -> u32 {
    let mut profile = gpu_like();
    let micros = [7000.0, 7100.0, 150_460.0];
    profile.target = LatencyTerms::staircase(Between::Interpolate, &[1, 512, 4096], &micros);
    let policy = SpecServe::new(profile.cost_model().unwrap(), None, SpecServeOptions::default());
    let mut space = Workspace::default();
    policy.decide(&mut space, view);
    space.lengths.iter().sum()
}

#[test]
fn drafts_beside_a_long_prefill_are_fewer_because_they_cost_what_a_row_costs_there() {
    let (alone, beside) = (planned(&beside_prefill(0)), planned(&beside_prefill(1000)));
    assert!(beside * 2 < alone && alone > 64, "{beside} beside 1,000 tokens, {alone} without");
    // what is allowed but not there costs nothing
    let empty = StepView { prefilling: Vec::new(), ..beside_prefill(1000) };
    assert_eq!(planned(&empty), alone);
}

#[test]
fn more_prefill_than_is_tabulated_is_planned_beside() {
    let long = StepView { prefilling: vec![prompt(30_000, None)], ..beside_prefill(30_000) };
    let decision = plan(&policy(), &long);
    assert!(decision.rate.is_finite() && decision.rate >= 0.0, "{}", decision.rate);
    assert!(planned(&long) <= planned(&beside_prefill(1000)));
}
