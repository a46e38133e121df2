use super::*;
use crate::protocol::{DecodeView, DraftedRow, Micros, Proposal, RequestId, StepView};
use crate::timing::cost_model::{HeadTerms, LatencyModel, LatencyTerms};
use crate::timing::profile::tests::gpu_like;

/// A step of `rows` plain rows and perhaps a prefill chunk; times are filled in by `run`.
fn step(rows: u32, prefill_tokens: u32) -> StepReport {
    let row = |index: u32| DecodeView {
        request: RequestId(u64::from(index)),
        context_tokens: 300 + index,
        output_tokens: 5,
        since_first_token: Micros(1),
        tpot: None,
        weight: 1.0,
        draft_lag_tokens: 1,
        drafts_max: 8,
        temperature: 0.0,
    };
    StepReport {
        view: StepView { decoding: (0..rows).map(row).collect(), ..StepView::default() },
        drafted: (0..rows)
            .map(|decoding| DraftedRow::chain(decoding, vec![Proposal::default(); 2]))
            .collect(),
        counts: vec![DraftCounts { verified: 2, accepted: 1 }; rows as usize],
        draft_calls: vec![(rows, rows), (rows, rows)],
        prefill_tokens,
        prefill_attended_tokens: prefill_attended(0, prefill_tokens),
        ..StepReport::default()
    }
}

/// Fills in the times of a machine whose terms are the profile's times `slow`.
fn run(truth: &TimeModel, mut report: StepReport, slow: [f64; 3], host_us: f64) -> StepReport {
    let work = target_work(&report);
    let prefill_us = truth.prefill_us(work.rows, report.prefill_tokens, report.prefill_attended_tokens);
    let target = truth.target_us(&work) * slow[0] + prefill_us * slow[1];
    let draft = truth.draft_us(&report) * slow[2];
    report.target_time = Micros(target as u64);
    report.draft_time = Micros(draft as u64);
    report.step_time = Micros((target + draft + host_us) as u64);
    report
}

fn model() -> TimeModel {
    TimeModel::new(gpu_like().cost_model().unwrap())
}

#[test]
fn a_profile_that_is_off_by_forty_percent_is_corrected_within_two_hundred_steps() {
    for slow in [1.4, 0.6] {
        let (truth, mut learner) = (model(), model());
        for index in 0..200u32 {
            let prefill = if index % 3 == 0 { 700 } else { 0 };
            learner.observe(&run(&truth, step(1 + index % 40, prefill), [slow; 3], 90.0));
        }
        let check = run(&truth, step(25, 900), [slow; 3], 90.0);
        let error = learner.step_us(&check) / check.step_time.0 as f64 - 1.0;
        assert!(error.abs() < 0.02, "slow {slow}: {error}");
    }
}

#[test]
fn terms_are_corrected_apart_from_each_other() {
    let (truth, mut learner) = (model(), model());
    for index in 0..200u32 {
        let prefill = if index % 2 == 0 { 1200 } else { 0 };
        learner.observe(&run(&truth, step(8, prefill), [1.0, 1.5, 0.7], 60.0));
    }
    assert!((learner.target.factor() - 1.0).abs() < 0.02);
    assert!((learner.prefill.factor() - 1.5).abs() < 0.05);
    assert!((learner.draft.factor() - 0.7).abs() < 0.02);
}

#[test]
fn one_cold_first_step_does_not_outweigh_the_profile() {
    let (truth, mut learner) = (model(), model());
    // such a call loads kernels: ten times too long, where plans without drafts would teach
    // nothing about drafting any more
    learner.observe(&run(&truth, step(1, 16), [1.5, 1.5, 10.0], 200.0));
    assert!(learner.draft.factor() < 1.15, "{}", learner.draft.factor());
}

#[test]
fn terms_that_are_not_seen_follow_the_machine() {
    let (truth, mut learner) = (model(), model());
    let plain = || StepReport { drafted: vec![], draft_calls: vec![], ..step(8, 0) };
    (0..200).for_each(|_| learner.observe(&run(&truth, plain(), [1.3; 3], 60.0)));
    for factor in [learner.prefill.factor(), learner.draft.factor()] {
        assert!((factor - 1.3).abs() < 0.02, "{factor}");
    }
    (0..200).for_each(|_| learner.observe(&run(&truth, step(8, 0), [1.3, 1.3, 0.8], 60.0)));
    assert!((learner.draft.factor() - 0.8).abs() < 0.02, "its own steps count for more");
}

#[test]
fn a_stall_moves_the_correction_by_a_bounded_amount() {
    let (truth, mut learner) = (model(), model());
    (0..100).for_each(|_| learner.observe(&run(&truth, step(8, 0), [1.0; 3], 60.0)));
    learner.observe(&run(&truth, step(8, 0), [100.0; 3], 1e6));
    assert!(learner.target.factor() < 1.02);
    assert!(learner.host_us() < 200.0);
}

#[test]
fn corrections_are_clamped_and_silent_steps_teach_nothing() {
    let (truth, mut learner) = (model(), model());
    (0..500).for_each(|_| learner.observe(&run(&truth, step(8, 0), [50.0; 3], 0.0)));
    assert!(learner.target.factor() <= CORRECTION_MAX + 1e-9);
    let mut untouched = model();
    untouched.observe(&step(8, 0));
    assert_eq!(untouched.steps, 0);
    assert_eq!(untouched.relative_error(0.5), None);
}

#[test]
fn frequent_underestimates_become_a_margin_that_goes_away_again() {
    let (truth, mut learner) = (model(), model());
    for index in 0..320u32 {
        let slow = if index % 20 == 0 { 1.6 } else { 1.0 };
        learner.observe(&run(&truth, step(8, 0), [slow; 3], 60.0));
    }
    assert!(learner.margin() > P99_ERROR_BOUND && learner.margin() <= MARGIN_MAX);
    (0..640).for_each(|_| learner.observe(&run(&truth, step(8, 0), [1.0; 3], 60.0)));
    assert_eq!(learner.margin(), 0.0);
    assert!(learner.relative_error(0.99).unwrap() < 0.05);
}

#[test]
fn times_beside_prefill_are_corrected_as_the_step_is() {
    let (truth, mut learner) = (model(), model());
    for index in 0..200u32 {
        learner.observe(&run(&truth, step(8, 700 * (index % 2)), [1.2, 1.5, 1.0], 60.0));
    }
    let (rows, prefill_tokens) = (24, 700);
    let beside = learner.beside(rows, prefill_tokens);
    // without context and the fixed cost of a prefill
    let stair = |rows| truth.cost().target.rows_us(rows);
    let expected_us = 1.2 * stair(24) + 1.5 * (stair(724) - stair(24));
    assert!((beside.table[24] * beside.factor / expected_us - 1.0).abs() < 0.01, "{beside:?}");
    let prefill_us = beside.factor * truth.cost().target.marginal_us(rows, prefill_tokens);
    assert!((beside.prefill_us - prefill_us).abs() < 1e-6);
    let alone = learner.beside(rows, 0);
    assert_eq!((alone.prefill_us, alone.table[24]), (0.0, stair(24)));
}

#[test]
fn any_amount_of_prefill_leaves_rows_a_time() {
    let model = model();
    for prefill_tokens in [1, 128, 3000, 4000, 20_000, u32::MAX] {
        let beside = model.beside(64, prefill_tokens);
        let times_us: Vec<f64> =
            (64..=1024).map(|rows| beside.table[rows] * beside.factor - beside.prefill_us).collect();
        assert!(times_us[0] > 0.0 && times_us.is_sorted(), "{prefill_tokens}: {}", times_us[0]);
    }
}

#[test]
fn a_plain_step_is_the_target_and_the_host() {
    let model = model();
    assert_eq!(model.plain_step_us(1, 1000), 7006.0 + 0.05 * 1000.0 + 60.0);
}

#[test]
fn without_a_draft_model_drafting_is_not_predicted() {
    let mut cost = gpu_like().cost_model().unwrap();
    cost.draft = None;
    let model = TimeModel::new(cost);
    assert!(!model.has_draft());
    assert_eq!((model.draft_call_us(4, 100), model.catch_up_us(4, 5, 5)), (0.0, 0.0));
}

/// The model with a draft head.
fn with_head(drafts_per_call: u32) -> TimeModel {
    let profile = gpu_like();
    let head = Some(HeadTerms { drafts_per_call, state_token_us: 2.0 });
    let terms = LatencyTerms { round_us: 30.0, head, ..profile.draft.clone().unwrap() };
    let cost = profile.cost_model().unwrap();
    TimeModel::new(CostModel { draft: Some(LatencyModel::new(terms).unwrap()), ..cost })
}

#[test]
fn a_head_of_blocks_is_charged_for_the_first_call_alone() {
    let (chain, block) = (with_head(1), with_head(4));
    let (two_calls, one_call) = (step(8, 0), StepReport { draft_calls: vec![(8, 8)], ..step(8, 0) });
    assert_eq!(block.draft_us(&two_calls), block.draft_us(&one_call));
    assert_eq!(block.draft_us(&one_call), chain.draft_us(&one_call));
    assert!(chain.draft_us(&two_calls) > 1.8 * chain.draft_us(&one_call));
}

#[test]
fn a_head_reads_the_states_of_all_tokens_since_it_last_drafted() {
    let plain = |prefill| StepReport { drafted: vec![], draft_calls: vec![], ..step(8, prefill) };
    let mut model = with_head(1);
    let first_us = model.draft_us(&step(8, 0));
    // two tokens of each request, and a prompt; the last token of each is part of the calls
    for report in [plain(0), plain(100)] {
        model.observe(&run(&with_head(1), report, [1.0; 3], 60.0));
    }
    let expected_us = first_us + 2.0 * f64::from(2 * 16 + 100 - 8);
    assert!((model.draft_us(&step(8, 0)) - expected_us).abs() < 0.01 * expected_us);
    let report = step(8, 0);
    model.observe(&StepReport {
        target_time: Micros(7000),
        draft_time: Micros(expected_us as u64),
        ..report
    });
    let expected_us = first_us + 2.0 * f64::from(16 - 8);
    assert!((model.draft_us(&step(8, 0)) - expected_us).abs() < 0.01 * expected_us);
}

#[test]
fn a_long_plain_time_before_a_draft_is_no_slow_machine() {
    let (truth, mut learner) = (with_head(1), with_head(1));
    let plain = || StepReport { drafted: vec![], draft_calls: vec![], ..step(8, 600) };
    for _ in 0..100 {
        let mut now = truth.clone();
        for _ in 0..3 {
            learner.observe(&run(&truth, plain(), [1.0; 3], 60.0));
            now.observe(&run(&truth, plain(), [1.0; 3], 60.0));
        }
        learner.observe(&run(&now, step(8, 0), [1.0; 3], 60.0));
    }
    assert!((learner.draft.factor() - 1.0).abs() < 0.01, "{}", learner.draft.factor());
}
