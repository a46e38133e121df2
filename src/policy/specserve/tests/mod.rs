mod blocks;
mod planning;
mod probe;
mod realized;
mod trees;
mod useless;
mod who_drafts;

use proptest::prelude::*;

use super::*;
use crate::policy::tests::world::{Outcome, Run, World};
use crate::policy::{Fixed, Learner, Static};
use crate::protocol::{DecodeView, Micros, PrefillView, Proposal, RequestId};
use crate::timing::cost_model::{LatencyModel, LatencyTerms};
use crate::timing::profile::tests::gpu_like;

fn policy() -> SpecServe {
    SpecServe::new(gpu_like().cost_model().unwrap(), None, SpecServeOptions::default())
}

fn learner() -> SpecServeLearner {
    SpecServeLearner::new(gpu_like().cost_model().unwrap(), None, SpecServeOptions::default())
}

fn run(world: &World, learner: &mut dyn Learner, steps: u32) -> Outcome {
    Run::new(world, 42).steps(learner, steps)
}

#[test]
fn speculation_pays_where_the_draft_is_good() {
    let world = World::default();
    let (ours, plain) = (run(&world, &mut learner(), 600), run(&world, &mut plain(), 600));
    assert!(ours.rate() > 1.6 * plain.rate(), "{} {}", ours.rate(), plain.rate());
    assert!(ours.accepted <= ours.verified && ours.verified <= ours.drafted);
}

#[test]
fn the_learner_says_how_far_its_acceptance_probabilities_were_off() {
    let mut learner = learner();
    assert_eq!(learner.calibration_error(), None);
    run(&World::default(), &mut learner, 600);
    let error = learner.calibration_error().expect("thousands of drafts");
    assert!(error > 0.0 && error < 0.05, "{error}");
    assert_eq!(plain().calibration_error(), None);
}

#[test]
fn no_fixed_length_is_better_at_any_batch_size() {
    for requests in [1, 8, 64, 200] {
        let world = World { requests, ..World::default() };
        let ours = run(&world, &mut learner(), 400).rate();
        for draft_tokens in 0..=8 {
            let fixed = run(&world, &mut Static::new(Fixed { draft_tokens }), 400).rate();
            assert!(ours > 0.98 * fixed, "batch {requests}, fixed {draft_tokens}: {ours} against {fixed}");
        }
    }
}

#[test]
fn a_random_draft_costs_less_than_two_percent_of_plain_decoding() {
    // Sure of itself, and always wrong: only the calibration can tell.
    let world =
        World { confidence: |uniform| 0.5 + 0.5 * uniform, acceptance: |_| 0.002, ..World::default() };
    let (ours, plain) = (run(&world, &mut learner(), 4000), run(&world, &mut plain(), 4000));
    assert!(ours.rate() > 0.98 * plain.rate(), "{} of {}", ours.rate(), plain.rate());
}

#[test]
fn noisy_confidences_do_not_make_speculation_flap() {
    // Acceptance just where drafting is neither gain nor loss.
    for accepted in [0.1, 0.14, 0.18, 0.22] {
        let acceptance: fn(f32) -> f32 = match (accepted * 100.0) as u32 {
            10 => |_| 0.10,
            14 => |_| 0.14,
            18 => |_| 0.18,
            _ => |_| 0.22,
        };
        let world = World { requests: 4, confidence: |uniform| uniform, acceptance, ..World::default() };
        let outcome = run(&world, &mut learner(), 4000);
        let per_second = outcome.switches as f64 / (outcome.micros * 1e-6);
        assert!(per_second < 4.0, "acceptance {accepted}: {per_second} switches per second");
    }
}

#[test]
fn a_wrong_profile_costs_nothing_once_it_is_corrected() {
    // Both models slower than by the profile; drafting dearer than it says; drafting cheaper.
    for slow in [(1.4, 1.4), (0.7, 2.5), (2.0, 0.5)] {
        let world = World { slow, requests: 32, ..World::default() };
        let settled = |learner: &mut dyn Learner| {
            let mut under_way = Run::new(&world, 3);
            under_way.steps(learner, 200);
            under_way.steps(learner, 400).rate()
        };
        let ours = settled(&mut learner());
        for draft_tokens in 0..=8 {
            let fixed = settled(&mut Static::new(Fixed { draft_tokens }));
            assert!(ours > 0.98 * fixed, "{slow:?}, fixed {draft_tokens}: {ours} against {fixed}");
        }
    }
}

fn plain() -> Static<Fixed> {
    Static::new(Fixed::NONE)
}

fn row(context_tokens: u32, tpot: Option<u64>) -> DecodeView {
    DecodeView {
        request: RequestId(1),
        context_tokens,
        output_tokens: 1,
        since_first_token: Micros::ZERO,
        tpot: tpot.map(Micros),
        weight: 1.0,
        draft_lag_tokens: 1,
        drafts_max: 8,
        temperature: 0.0,
    }
}

fn prompt(remaining_tokens: u32, ttft: Option<u64>) -> PrefillView {
    PrefillView {
        request: RequestId(2),
        done_tokens: 0,
        remaining_tokens,
        since_arrival: Micros::ZERO,
        ttft: ttft.map(Micros),
    }
}

#[test]
fn prefill_takes_all_it_is_offered_and_objectives_change_no_plan_before_a_pace_is_known() {
    let view = |tpot, ttft| StepView {
        decoding: vec![row(100, tpot); 3],
        prefilling: vec![prompt(5000, ttft)],
        prefill_tokens_max: 2048,
        ..StepView::default()
    };
    let plan = |view: &StepView| policy().plan(view, &mut Scratch::default());
    let free = plan(&view(None, None));
    assert_eq!(free.prefill_tokens, 2048);
    assert!(free.drafts.iter().all(|&drafts| drafts > 0));
    for tpot in [1, 7_700, 9_000, 40_000] {
        assert_eq!(plan(&view(Some(tpot), Some(60_000))), free);
    }
    let idle = StepView { decoding: vec![], ..view(None, None) };
    let nothing = StepDecision { prefill_tokens: 2048, warm_draft: true, ..StepDecision::default() };
    assert_eq!(plan(&idle), nothing);
}

#[test]
fn an_unusable_proposal_ends_its_row() {
    let policy = policy();
    let view = StepView { decoding: vec![row(100, None), row(100, None)], ..StepView::default() };
    let granted = StepDecision { drafts: vec![8, 8], ..StepDecision::default() };
    let good = Proposal { probability: 0.95, finite: true, ..Proposal::default() };
    let rows = [
        DraftedRow::chain(0, vec![good, Proposal { finite: false, ..good }]),
        DraftedRow::chain(1, vec![good, good]),
    ];
    let (mut keep, mut lengths) = (Vec::new(), Vec::new());
    let step = Step { view: &view, granted: &granted };
    policy.extend(step, &rows, &[0, 1], &mut Scratch::default(), &mut keep);
    policy.select(step, &rows, &mut Scratch::default(), &mut lengths);
    assert_eq!((keep, lengths), (vec![1], vec![1, 2]));
}

#[test]
fn a_step_is_predicted_from_what_it_did() {
    let world = World { slow: (1.2, 0.9), ..World::default() };
    let mut learner = learner();
    let mut under_way = Run::new(&world, 2);
    under_way.steps(&mut learner, 200);
    let report = under_way.step(&learner);
    let predicted = learner.predict(&report).unwrap().0 as f64;
    assert!((predicted / report.step_time.0 as f64 - 1.0).abs() < 0.01);
    assert_eq!(plain().predict(&report), None);
}

#[test]
fn the_same_knowledge_and_view_give_the_same_decision() {
    let world = World::default();
    let mut learner = learner();
    run(&world, &mut learner, 50);
    let view = StepView { decoding: vec![row(100, Some(9_000)); 20], ..StepView::default() };
    let copy = learner.snapshot();
    assert_eq!(
        learner.snapshot().plan(&view, &mut Scratch::default()),
        copy.plan(&view, &mut Scratch::default())
    );
    assert_eq!(copy.plan(&view, &mut Scratch::default()), copy.plan(&view, &mut Scratch::default()));
    assert!(learner.state()["time"]["steps"].as_u64() == Some(50));
}

#[test]
fn what_a_scratch_was_used_for_before_changes_no_decision() {
    let policy = policy();
    let wide = StepView {
        decoding: vec![row(500, Some(9_000)); 60],
        prefilling: vec![prompt(5000, Some(40_000))],
        prefill_tokens_max: 2048,
        ..StepView::default()
    };
    let narrow = StepView { decoding: vec![row(100, None); 3], ..StepView::default() };
    let mut used = Scratch::default();
    for view in [&wide, &narrow, &wide] {
        assert_eq!(policy.plan(view, &mut used), policy.plan(view, &mut Scratch::default()));
    }
}

/// Context and draft lag of a decoding request.
type RandomRow = (u32, u32);

fn view_of(rows: &[RandomRow]) -> StepView {
    let decoding = rows.iter().enumerate().map(|(index, &(context, lag))| DecodeView {
        request: RequestId(index as u64),
        draft_lag_tokens: lag,
        ..row(context, None)
    });
    StepView { decoding: decoding.collect(), ..StepView::default() }
}

/// Drafts for the rows that were granted any, as far as the policy goes on.
fn draft(policy: &SpecServe, step: Step<'_>, confidences: &[f32]) -> Vec<DraftedRow> {
    let granted = step.granted.drafts.iter().enumerate().filter(|(_, drafts)| **drafts > 0);
    let mut drafted: Vec<DraftedRow> =
        granted.map(|(index, _)| DraftedRow::chain(index as u32, Vec::new())).collect();
    let mut going: Vec<u32> = (0..drafted.len() as u32).collect();
    while !going.is_empty() {
        for &index in &going {
            let proposals = &mut drafted[index as usize].proposals;
            let probability = confidences[(index as usize * 8 + proposals.len()) % confidences.len()];
            proposals.push(Proposal { probability, finite: true, ..Proposal::default() });
        }
        going.retain(|&index| drafted[index as usize].proposals.len() < 8);
        let mut keep = Vec::new();
        policy.extend(step, &drafted, &going, &mut Scratch::default(), &mut keep);
        going = keep;
    }
    drafted
}

/// Drafts of each row that are likely enough to be verified.
fn usable(policy: &SpecServe, step: Step<'_>, drafted: &[DraftedRow]) -> Vec<u32> {
    let mut space = Workspace::default();
    policy.resume(&mut space, step, drafted);
    let positions = |row: &DraftedRow| {
        policy.measure_row(&mut space, step.view, row);
        space.rows[row.decoding as usize].positions
    };
    drafted.iter().map(positions).collect()
}

/// What a step is worth that verifies `lengths`: its tokens, less those that its time is worth at
/// the planned rate.
fn value(policy: &SpecServe, step: Step<'_>, drafted: &[DraftedRow], lengths: &[u32]) -> f64 {
    let mut space = Workspace::default();
    let (costs, spent) = policy.resume(&mut space, step, drafted);
    let (mut tokens, mut queries_us) = (costs.rows as f64, 0.0);
    for (row, &length) in drafted.iter().zip(lengths) {
        policy.measure_row(&mut space, step.view, row);
        let index = row.decoding as usize;
        tokens += space.tokens(index, length) - 1.0;
        queries_us += f64::from(space.rows[index].query_us) * f64::from(length);
    }
    let drafts: u32 = lengths.iter().sum();
    tokens - step.granted.rate * (costs.verify_us(drafts as usize) + queries_us + spent.draft_us)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_is_verified_is_never_worse_than_nothing_or_all_that_is_usable(
        rows in prop::collection::vec((50u32..3000, 1u32..40), 1..12),
        confidences in prop::collection::vec(0.3f32..1.0, 96),
    ) {
        let (policy, view) = (policy(), view_of(&rows));
        let granted = policy.plan(&view, &mut Scratch::default());
        let step = Step { view: &view, granted: &granted };
        let drafted = draft(&policy, step, &confidences);
        let mut lengths = Vec::new();
        policy.select(step, &drafted, &mut Scratch::default(), &mut lengths);
        let all = usable(&policy, step, &drafted);
        prop_assert!(lengths.iter().zip(&all).all(|(verified, drafted)| verified <= drafted));
        let value = |lengths: &[u32]| value(&policy, step, &drafted, lengths);
        // Where contexts differ, positions are ranked at the price of the plain step.
        let rounding = 1e-3 * rows.len() as f64;
        prop_assert!(value(&lengths) >= value(&all) - rounding);
        prop_assert!(value(&lengths) >= value(&vec![0; all.len()]) - rounding);
    }
}
