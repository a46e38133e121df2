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
