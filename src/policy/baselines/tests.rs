use super::*;
use crate::policy::tests::world::{BLOCK_US, Outcome, Run, World, cost_of_blocks};
use crate::policy::{Fixed, Learner, Policy, Scratch, Static};
use crate::protocol::{DecodeView, DraftedRow, Micros, Proposal, RequestId, Step};
use crate::timing::cost_model::{Between, LatencyModel, LatencyTerms};
use crate::timing::profile::tests::gpu_like;

fn cost() -> CostModel {
    gpu_like().cost_model().unwrap()
}

/// With a drafting round that takes `round_us` beside its calls.
fn cost_of_rounds(round_us: f64) -> CostModel {
    let mut profile = gpu_like();
    profile.draft.as_mut().unwrap().round_us = round_us;
    profile.cost_model().unwrap()
}

fn run(world: &World, learner: &mut dyn Learner, steps: u32) -> Outcome {
    Run::new(world, 9).steps(learner, steps)
}

fn plain_rate(world: &World) -> f64 {
    run(world, &mut Static::new(Fixed::NONE), 300).rate()
}

/// Asserts that every baseline, with this time model, emits more than plain decoding in this world.
fn assert_every_baseline_gains(world: &World, cost: impl Fn() -> CostModel) {
    let plain = plain_rate(world);
    let mut rivals: [Box<dyn Learner>; 5] = [
        Box::new(Static::new(Threshold { probability: 0.6, draft_tokens_max: 8 })),
        Box::new(SmartSpec::new(cost(), 8)),
        Box::new(AdaSpec::released(cost(), 8)),
        Box::new(AdaSpec::gated(cost(), 8, AdaSpecGate::default())),
        Box::new(Static::new(AdaSpecVerifier::new(cost(), 8))),
    ];
    for rival in &mut rivals {
        let rate = run(world, &mut **rival, 300).rate();
        assert!(rate > 1.3 * plain, "{}: {rate} against {plain}", rival.name());
    }
}

#[test]
fn every_baseline_gains_from_a_good_draft_at_a_small_batch() {
    assert_every_baseline_gains(&World::default(), cost);
}

#[test]
fn the_threshold_looks_at_the_mean_of_the_batch() {
    let sure = World { confidence: |_| 0.7, ..World::default() };
    let unsure = World { confidence: |_| 0.5, ..World::default() };
    let mut policy = Static::new(Threshold { probability: 0.6, draft_tokens_max: 5 });
    assert_eq!(run(&sure, &mut policy, 10).drafted, 10 * 8 * 5);
    assert_eq!(run(&unsure, &mut policy, 10).drafted, 10 * 8);
}

#[test]
fn smartspec_stops_drafting_for_a_bad_draft_and_decides_every_twenty_steps() {
    let world = World { acceptance: |_| 0.02, ..World::default() };
    let mut policy = SmartSpec::new(cost(), 8);
    let early = run(&world, &mut policy, 20);
    assert!(early.drafted > 0);
    run(&world, &mut policy, 40);
    assert_eq!(run(&world, &mut policy, 40).drafted, 0);
}

#[test]
fn only_the_gated_adaspec_stops_drafting_for_a_tight_objective() {
    let tight = World { tpot: Some(Micros(7_500)), ..World::default() };
    let loose = World { tpot: Some(Micros(20_000)), ..World::default() };
    let mut gated = AdaSpec::gated(cost(), 8, AdaSpecGate::default());
    assert_eq!(run(&tight, &mut gated, 20).drafted, 0);
    assert!(run(&loose, &mut gated, 20).drafted > 0);
    assert!(run(&tight, &mut AdaSpec::released(cost(), 8), 20).drafted > 0);
}

#[test]
fn the_released_adaspec_sees_no_objectives() {
    let drafted =
        |tpot| run(&World { tpot, ..World::default() }, &mut AdaSpec::released(cost(), 8), 50).drafted;
    assert_eq!(drafted(Some(Micros(1))), drafted(None));
}

#[test]
fn adaspec_stops_the_whole_batch_at_the_first_fall_of_goodput() {
    let world = World { confidence: |_| 0.02, ..World::default() };
    let mut policy = AdaSpec::released(cost(), 8);
    // One call is made on the assumed mean of 0.6, falls, and is not counted into the mean.
    let outcome = run(&world, &mut policy, 10);
    assert_eq!(outcome.drafted, 10 * 8);
    assert_eq!(policy.state()["mean_confidence"], 0.6);
}

/// `requests` sequences that decode without objectives.
fn view(requests: u64) -> StepView {
    let row = |index| DecodeView { request: RequestId(index), context_tokens: 100, ..DecodeView::example() };
    StepView {
        now: Micros::ZERO,
        decoding: (0..requests).map(row).collect(),
        prefilling: Vec::new(),
        waiting: 0,
        prefill_tokens_max: 0,
    }
}

#[test]
fn a_step_that_drafts_is_charged_one_round_whatever_its_length() {
    let view = view(8);
    let added = |length| {
        let step_us = |cost: &CostModel| symmetric_us(cost, &view, length, 8 * (length + 1));
        step_us(&cost_of_rounds(500.0)) - step_us(&cost_of_rounds(0.0))
    };
    assert_eq!(added(0), 0.0);
    assert!((added(1) - 500.0).abs() < 1e-6 && (added(5) - 500.0).abs() < 1e-6);
}

#[test]
fn rivals_do_not_draft_where_a_round_costs_more_than_drafts_bring() {
    let world = World::default();
    let drafted = |round_us| {
        let cost = || cost_of_rounds(round_us);
        let mut rivals: [Box<dyn Learner>; 3] = [
            Box::new(SmartSpec::new(cost(), 8)),
            Box::new(AdaSpec::released(cost(), 8)),
            Box::new(AdaSpec::gated(cost(), 8, AdaSpecGate::default())),
        ];
        rivals.each_mut().map(|rival| run(&world, &mut **rival, 10).drafted > 0)
    };
    assert_eq!(drafted(0.0), [true; 3]);
    assert_eq!(drafted(30_000.0), [false; 3]);
}

#[test]
fn a_block_of_drafts_is_charged_one_call_whatever_its_length() {
    let (view, block) = (view(8), cost_of_blocks(900.0));
    let drafting_us = |cost: &CostModel, length| {
        symmetric_us(cost, &view, length, 8)
            - symmetric_us(&CostModel { draft: None, ..cost.clone() }, &view, 0, 8)
    };
    assert_eq!(drafting_us(&block, 0), 0.0);
    assert_eq!(drafting_us(&block, 1), drafting_us(&block, 8));
    assert!((drafting_us(&cost(), 8) - 8.0 * drafting_us(&cost(), 1)).abs() < 1e-6);
}

#[test]
fn every_baseline_gains_from_good_blocks() {
    let world = World { blocks: true, ..World::default() };
    assert_every_baseline_gains(&world, || cost_of_blocks(BLOCK_US));
}

/// What a policy verifies of one request's block with these confidences.
fn verified(policy: &dyn Policy, confidences: &[f32]) -> u32 {
    let proposal = |&probability: &f32| Proposal { probability, finite: true, ..Proposal::default() };
    let rows = [DraftedRow::chain(0, confidences.iter().map(proposal).collect())];
    let (view, granted) = (view(1), StepDecision::default());
    let mut lengths = Vec::new();
    policy.select(Step { view: &view, granted: &granted }, &rows, &mut Scratch::default(), &mut lengths);
    lengths[0]
}

#[test]
fn of_a_block_the_threshold_verifies_what_it_would_have_drafted() {
    let policy = Threshold { probability: 0.6, draft_tokens_max: 8 };
    assert_eq!(verified(&policy, &[0.9, 0.7, 0.2, 0.9]), 3);
    assert_eq!(verified(&policy, &[0.2, 0.9]), 1);
    assert_eq!(verified(&policy, &[0.9, 0.9, 0.1]), 3);
    assert_eq!(verified(&policy, &[]), 0);
}

#[test]
fn of_a_block_adaspec_verifies_up_to_the_first_fall_of_goodput() {
    // a row more takes a fifth of the step, so that a draft of 0.1 lowers goodput
    let target = LatencyTerms::staircase(Between::Interpolate, &[1, 16], &[1000.0, 4000.0]);
    let target = LatencyModel::new(target).unwrap();
    let policy = AdaSpec::released(CostModel { target, ..cost_of_blocks(500.0) }, 8);
    assert_eq!(verified(&policy, &[0.9, 0.9, 0.1, 0.99, 0.99]), 3);
    assert_eq!(verified(&policy, &[0.95; 5]), 5);
}

#[test]
fn adaspec_drafts_a_block_that_pays_although_its_first_draft_alone_does_not() {
    let drafts =
        |cost: CostModel| AdaSpec::released(cost, 8).plan(&view(8), &mut Scratch::default()).drafts[0];
    assert_eq!(drafts(cost_of_blocks(5_000.0)), 8);
    assert_eq!(drafts(cost_of_blocks(50_000.0)), 0);
}

/// Rows that AdaSpec verifies of 50 sequences with 4 poor drafts each, 250 in all.
fn rows_left_by_adaspec(between: Between, sizes: &[u32], micros: &[f64]) -> u32 {
    let target = LatencyModel::new(LatencyTerms::staircase(between, sizes, micros)).unwrap();
    let policy = AdaSpec::released(CostModel { target, ..cost() }, 8);
    let poor = Proposal { probability: 0.1, finite: true, ..Proposal::default() };
    let rows: Vec<DraftedRow> = (0..50).map(|decoding| DraftedRow::chain(decoding, vec![poor; 4])).collect();
    let (view, granted) = (view(50), StepDecision::default());
    let mut lengths = Vec::new();
    policy.select(Step { view: &view, granted: &granted }, &rows, &mut Scratch::default(), &mut lengths);
    50 + lengths.iter().sum::<u32>()
}

#[test]
fn adaspec_prunes_to_the_next_smaller_graph_of_the_profile() {
    let micros = [7_000.0, 8_000.0, 12_000.0];
    assert_eq!(rows_left_by_adaspec(Between::Pad, &[128, 192, 256], &micros), 192);
    assert_eq!(rows_left_by_adaspec(Between::Pad, &[128, 240, 256], &micros), 240);
}

#[test]
fn adaspec_prunes_to_the_releases_graph_sizes_where_the_profile_has_none() {
    assert_eq!(rows_left_by_adaspec(Between::Interpolate, &[1, 256], &[100.0, 12_000.0]), 224);
}

#[test]
fn the_verifier_alone_drafts_everything_and_verifies_the_best() {
    let world = World { requests: 150, confidence: |uniform| uniform, ..World::default() };
    let outcome = run(&world, &mut Static::new(AdaSpecVerifier::new(cost(), 8)), 30);
    assert_eq!(outcome.drafted, 30 * 150 * 8);
    assert!(outcome.verified < outcome.drafted / 3 && outcome.verified > 0, "{outcome:?}");
}

#[test]
fn the_verifier_drafts_as_many_tokens_as_its_name_says() {
    let world = World::default();
    let mut policy = Static::new(AdaSpecVerifier::with_draft_tokens(cost(), 3));
    assert_eq!(run(&world, &mut policy, 10).drafted, 10 * 8 * 3);
}

#[test]
fn without_a_draft_model_no_policy_drafts() {
    let mut plain = cost();
    plain.draft = None;
    let world = World::default();
    let mut rivals: [Box<dyn Learner>; 3] = [
        Box::new(SmartSpec::new(plain.clone(), 8)),
        Box::new(AdaSpec::released(plain.clone(), 8)),
        Box::new(Static::new(AdaSpecVerifier::new(plain, 8))),
    ];
    for rival in &mut rivals {
        assert_eq!(run(&world, &mut **rival, 5).drafted, 0, "{}", rival.name());
    }
}
