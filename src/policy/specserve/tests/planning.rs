//! What `plan` gives up for what: bounds of requests that are behind, credit for prompts that are
//! due, time for the draft model's catch-up.

use super::*;
use crate::protocol::StepReport;

fn plan(policy: &SpecServe, view: &StepView) -> StepDecision {
    policy.plan(view, &mut Scratch::default())
}

/// A request that is a second behind its objective of 9 ms per token; plain steps take 7.1 ms.
fn behind(drafts_max: u32) -> DecodeView {
    DecodeView {
        output_tokens: 11,
        since_first_token: Micros(1_000_000),
        drafts_max,
        ..row(100, Some(9_000))
    }
}

#[test]
fn bounds_of_requests_that_are_behind_give_way_where_these_get_more_tokens_without() {
    let drafts = |decoding: Vec<DecodeView>| {
        let drafts = plan(&policy(), &StepView { decoding, ..StepView::default() }).drafts;
        drafts.into_iter().sum::<u32>()
    };
    // Alone, each asks for a step that is short for its own tokens, and drafts provide them.
    assert!(drafts(vec![behind(8); 3]) > 0);
    // The one that can't draft asks for a plain step, in which none of them catches up.
    assert!(drafts(vec![behind(8), behind(8), behind(8), behind(0)]) > 0);
    // Without its bound it would only wait longer, for the drafts of requests without objectives.
    assert_eq!(drafts(vec![behind(0), row(100, None), row(100, None), row(100, None)]), 0);
    // The bound of a request on track stands: 7.5 ms for its one token.
    let on_track = DecodeView { drafts_max: 0, ..row(100, Some(8_000)) };
    assert_eq!(drafts(vec![behind(8), behind(8), behind(8), behind(0), on_track]), 0);
}

#[test]
fn a_prompt_that_is_due_may_break_as_many_objectives_as_it_saves() {
    let chunk = |tpots: &[u64]| {
        let decoding = tpots.iter().map(|&tpot| DecodeView { drafts_max: 0, ..row(100, Some(tpot)) });
        let view = StepView {
            decoding: decoding.collect(),
            // 50 ms of prefill in 60 ms: due as a whole
            prefilling: vec![prompt(2000, Some(60_000))],
            prefill_tokens_max: 2048,
            ..StepView::default()
        };
        plan(&policy(), &view).prefill_tokens
    };
    // At 10 ms per token 16 plain steps win back 37 ms; at 12 ms, 67 ms.
    assert_eq!(chunk(&[10_000]), 2000);
    assert_eq!(chunk(&[10_000, 12_000]), 2000);
    let spared = chunk(&[10_000, 10_000]);
    assert!((1000..2000).contains(&spared), "one prompt is not worth two requests: {spared}");
}

#[test]
fn a_draft_model_catches_up_only_where_that_pays_within_the_horizon() {
    let mut profile = gpu_like();
    profile.draft.as_mut().unwrap().prefill_token_us = 100.0;
    let policy = SpecServe::new(profile.cost_model().unwrap(), None, SpecServeOptions::default());
    let drafts = |lag| {
        let lagging = DecodeView { draft_lag_tokens: lag, ..row(6000, None) };
        plan(&policy, &StepView { decoding: vec![lagging], ..StepView::default() }).drafts[0]
    };
    // Drafting gains about 2.5 tokens a step, 80 over 32 steps: worth 160 ms.
    assert!(drafts(1000) > 0, "100 ms pay");
    assert_eq!(drafts(3000), 0, "300 ms don't");
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

    let mut off = policy();
    off.gate.observe(&StepReport { view: decoding.clone(), ..StepReport::default() });
    assert_eq!(warms(&off), [false, false]);

    let alone = CostModel { draft: None, ..gpu_like().cost_model().unwrap() };
    let alone = SpecServe::new(alone, None, SpecServeOptions::default());
    assert_eq!(warms(&alone), [false, false]);
}
