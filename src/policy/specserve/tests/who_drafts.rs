//! Who drafts on, and what that is priced at.

use super::*;
use crate::protocol::{Intent, StepReport};
use crate::timing::cost_model::{Between, LatencyModel, LatencyTerms};

/// A batch of requests whose drafts are accepted half of the time, and vary.
fn even_batch(requests: u64) -> StepView {
    let decoding = (0..requests).map(|id| DecodeView { request: RequestId(id), ..row(100, None) });
    StepView { decoding: decoding.collect(), ..StepView::default() }
}

/// Knows that drafts are half sure, 0.3 more or less.
fn experienced(verify_rows_max: u32, cost: CostModel) -> SpecServe {
    let options = SpecServeOptions {
        verify_rows_max,
        calibration: CalibrationMode::Raw,
        ..SpecServeOptions::default()
    };
    let mut policy = SpecServe::new(cost, None, options);
    let proposal = |probability| vec![Proposal { probability, finite: true, ..Proposal::default() }];
    for _ in 0..1000 {
        let drafted = [(0, 0.8), (1, 0.2)].map(|(decoding, q)| DraftedRow::chain(decoding, proposal(q)));
        let view = StepView { decoding: vec![row(100, None); 2], ..StepView::default() };
        let report = StepReport { view, drafted: drafted.to_vec(), ..StepReport::default() };
        policy.forecast.observe(&report, &policy.calibration);
    }
    policy
}

fn cost() -> CostModel {
    gpu_like().cost_model().unwrap()
}

#[test]
fn all_draft_whose_drafts_may_turn_out_better_than_those_that_fit_the_verification() {
    let policy = experienced(128, cost());
    let mut space = Workspace::default();
    let decision = policy.decide(&mut space, &even_batch(100));
    assert_eq!(space.lengths.iter().sum::<u32>(), 28, "what may be verified");
    assert!(decision.drafts.iter().all(|&drafts| drafts > 0), "{:?}", decision.drafts);
}

#[test]
fn a_draft_call_is_priced_with_all_that_can_go_on_not_with_what_is_verified() {
    // 10 µs for each row in a call: a call of 70 takes 0.7 ms, which a few tokens do not pay for
    let rows = [1, 1001];
    let draft =
        LatencyTerms::staircase(Between::Interpolate, &rows, &rows.map(|rows| 10.0 * f64::from(rows)));
    let cost = || CostModel { draft: Some(LatencyModel::new(draft.clone()).unwrap()), ..cost() };
    let drafts = |verify_rows_max| {
        let decision = experienced(verify_rows_max, cost()).plan(&even_batch(70), &mut Scratch::default());
        assert_eq!(decision.intent, Intent::Draft);
        decision.drafts.iter().sum::<u32>()
    };
    assert!(drafts(1024) > 0);
    assert_eq!(drafts(74), 0);
}

#[test]
fn the_short_lags_of_those_that_draft_are_part_of_a_steps_time() {
    let policy = policy();
    let spent = |lag: u32| {
        let view = view_of(&[(100, lag), (100, lag), (100, lag)]);
        let granted = StepDecision { drafts: vec![8, 8, 0], rate: 1.0, ..StepDecision::default() };
        let step = Step { view: &view, granted: &granted };
        policy.resume(&mut Workspace::default(), step, &[]).1.draft_us
    };
    let caught_up_us = policy.time.catch_up_us(3, 4, 400);
    assert!((spent(3) - spent(1) - caught_up_us).abs() < 1e-6, "{} {} {caught_up_us}", spent(3), spent(1));
}
