mod planning;
mod probe;

use proptest::prelude::*;

use super::*;
use crate::policy::slo::{SloState, TPOT_AIM, tolerable_us, tpot_bound};
use crate::policy::tests::world::{Outcome, Run, World};
use crate::policy::{Fixed, Learner, Static};
use crate::protocol::{DecodeView, Micros, PrefillView, Proposal, RequestId};
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
fn speculation_comes_back_when_the_draft_becomes_good_again() {
    let bad = World { acceptance: |_| 0.01, ..World::default() };
    let mut learner = learner();
    run(&bad, &mut learner, 1500);
    assert!(run(&bad, &mut learner, 200).drafted < 200);
    let good = World::default();
    let mut resumed = Run::new(&good, 7);
    resumed.steps(&mut learner, 6000);
    let (ours, plain) = (resumed.steps(&mut learner, 400), run(&good, &mut plain(), 400));
    assert!(ours.rate() > 1.5 * plain.rate(), "{} {}", ours.rate(), plain.rate());
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
fn a_machine_slower_than_its_profile_does_not_collapse_the_objective() {
    // A plain step takes about 10 ms in truth, 7.1 ms by the profile.
    let world = World { slow: (1.4, 1.4), tpot: Some(Micros(11_000)), ..World::default() };
    let mut learner = learner();
    let mut under_way = Run::new(&world, 3);
    under_way.steps(&mut learner, 200);
    let settled = under_way.steps(&mut learner, 400);
    assert_eq!(settled.late, 0, "{settled:?}");
}

#[test]
fn an_objective_that_only_speculation_can_reach_is_reached() {
    let world = World { requests: 2, tpot: Some(Micros(5_000)), ..World::default() };
    let mut learner = learner();
    let mut under_way = Run::new(&world, 3);
    under_way.steps(&mut learner, 100);
    let settled = under_way.steps(&mut learner, 300);
    assert!(settled.late * 20 < settled.row_steps, "{settled:?}");
    assert!(run(&world, &mut plain(), 300).late == 600);
}

#[test]
fn requests_end_within_their_objective_while_prompts_take_the_rest() {
    for (requests, tpot_us, output_tokens) in
        [(8, 15_000, 60), (32, 12_000, 120), (64, 25_000, 30), (120, 14_000, 200)]
    {
        let world = World {
            requests,
            tpot: Some(Micros(tpot_us)),
            prefill_tokens: 2048,
            output_tokens,
            confidence: |uniform| 1.0 - uniform * uniform,
            acceptance: |q| 0.8 * q,
            ..World::default()
        };
        let mut learner = learner();
        let mut under_way = Run::new(&world, 5);
        under_way.steps(&mut learner, 200);
        let outcome = under_way.steps(&mut learner, 800);
        assert!(outcome.attained * 100 >= outcome.finished * 99, "batch {requests}: {outcome:?}");
        // A plain step takes 7 to 9 ms: most of the rest goes to prompts, 25 µs a token.
        let prefilled_per_second = outcome.prefilled as f64 / outcome.micros * 1e6;
        assert!(prefilled_per_second > 10_000.0, "batch {requests}: {prefilled_per_second}");
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
fn without_objectives_prefill_takes_all_it_is_offered() {
    let view = StepView {
        decoding: vec![row(100, None)],
        prefilling: vec![prompt(5000, None)],
        prefill_tokens_max: 2048,
        ..StepView::default()
    };
    assert_eq!(policy().plan(&view, &mut Scratch::default()).prefill_tokens, 2048);
    let idle = StepView { decoding: vec![], ..view };
    assert_eq!(
        policy().plan(&idle, &mut Scratch::default()),
        StepDecision { prefill_tokens: 2048, warm_draft: true, ..StepDecision::default() }
    );
}

#[test]
fn the_prefill_chunk_comes_out_of_the_slack_and_never_below_the_floor() {
    let view = |tpot| StepView {
        decoding: vec![DecodeView { drafts_max: 0, ..row(100, Some(tpot)) }],
        prefilling: vec![prompt(5000, None)],
        prefill_tokens_max: 2048,
        ..StepView::default()
    };
    let chunk = |tpot| policy().plan(&view(tpot), &mut Scratch::default()).prefill_tokens;
    // Plain step about 7.07 ms of 0.94 × 20 ms, 25 µs per token, 50 µs for any prefill.
    let roomy = chunk(20_000);
    assert!((450..470).contains(&roomy), "{roomy}");
    assert!(chunk(10_000) < roomy);
    assert_eq!(chunk(7_700), SpecServeOptions::default().prefill_tokens_floor);
    // Nobody holds a step that a plain one would break anyway.
    assert_eq!(chunk(1_000), 2048);
}

#[test]
fn a_long_lag_is_made_up_only_where_it_fits_the_objective_or_can_be_won_back() {
    let lagging = |tpot| DecodeView { draft_lag_tokens: 6000, ..row(6001, tpot) };
    let drafts = |tpot| {
        let view = StepView { decoding: vec![lagging(tpot)], ..StepView::default() };
        policy().plan(&view, &mut Scratch::default()).drafts[0]
    };
    assert!(drafts(None) > 0);
    assert!(drafts(Some(40_000)) > 0);
    // Plain steps of 9 ms would be early enough to win it back; with 20 µs to spare they are not.
    assert!(drafts(Some(9_000)) > 0);
    let barely = policy().time().plain_step_us(1, 6001) / TPOT_AIM + 20.0;
    assert_eq!(drafts(Some(barely as u64)), 0);
}

#[test]
fn an_unusable_proposal_ends_its_row() {
    let policy = policy();
    let view = StepView { decoding: vec![row(100, None), row(100, None)], ..StepView::default() };
    let granted = StepDecision { drafts: vec![8, 8], ..StepDecision::default() };
    let good = Proposal { probability: 0.95, finite: true, ..Proposal::default() };
    let rows = [
        DraftedRow { decoding: 0, proposals: vec![good, Proposal { finite: false, ..good }] },
        DraftedRow { decoding: 1, proposals: vec![good, good] },
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

/// Context, output, time since the first token, objective and draft lag of a decoding request.
type RandomRow = (u32, u32, u64, Option<u64>, u32);

fn view_of(rows: &[RandomRow], prompts: &[(u32, Option<u64>)]) -> StepView {
    let decoding = rows.iter().enumerate().map(|(index, &(context, output, since, tpot, lag))| DecodeView {
        request: RequestId(index as u64),
        output_tokens: output,
        since_first_token: Micros(since),
        draft_lag_tokens: lag,
        ..row(context, tpot)
    });
    StepView {
        decoding: decoding.collect(),
        prefilling: prompts.iter().map(|&(remaining, ttft)| prompt(remaining, ttft)).collect(),
        prefill_tokens_max: 2048,
        ..StepView::default()
    }
}

/// Drafts for the rows that were granted any, as far as the policy goes on.
fn draft(policy: &SpecServe, step: Step<'_>, confidences: &[f32]) -> Vec<DraftedRow> {
    let granted = step.granted.drafts.iter().enumerate().filter(|(_, drafts)| **drafts > 0);
    let mut drafted: Vec<DraftedRow> =
        granted.map(|(index, _)| DraftedRow { decoding: index as u32, proposals: Vec::new() }).collect();
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

/// With nothing drafted, the whole step is certain. No objective that holds may break, unless
/// prompts are due: then no more objectives are sacrificed than prompts are saved.
fn check_plain_step(policy: &SpecServe, step: Step<'_>) -> Result<(), TestCaseError> {
    let (view, prefill_tokens) = (step.view, step.granted.prefill_tokens);
    let costs = Costs::of(&policy.time, view);
    let plain_us = costs.plain_us() + costs.prefill_us(view, prefill_tokens.min(16));
    let step_us = costs.plain_us() + costs.prefill_us(view, prefill_tokens);
    let due = |row: &&PrefillView| row.ttft.is_some_and(|ttft| row.since_arrival < ttft);
    let saved = view.prefilling.iter().filter(due).count();
    if saved == 0 {
        for row in &view.decoding {
            if let (SloState::OnTrack, Some(bound)) = tpot_bound(row, plain_us) {
                prop_assert!(step_us <= bound.deadline_us(1.0) + 1e-6);
            }
        }
    } else if prefill_tokens > policy.options.prefill_tokens_floor {
        let tolerable = view.decoding.iter().filter_map(|row| tolerable_us(row, costs.plain_us()));
        let tolerates_a_step = tolerable.filter(|&us| us >= costs.plain_us());
        let sacrificed = tolerates_a_step.filter(|&us| step_us > us + 1e-6).count();
        prop_assert!(sacrificed <= saved, "{sacrificed} sacrificed, {saved} saved");
    }
    Ok(())
}

/// Verification never breaks an objective that could be held when it was chosen.
fn check_verification(
    policy: &SpecServe,
    step: Step<'_>,
    drafted: &[DraftedRow],
) -> Result<(), TestCaseError> {
    let mut lengths = Vec::new();
    policy.select(step, drafted, &mut Scratch::default(), &mut lengths);
    let mut space = Workspace::default();
    let spent = policy.resume(&mut space, step, drafted);
    for row in drafted {
        policy.measure_row(&mut space, step.view, row);
    }
    let costs = Costs::of(&policy.time, step.view);
    let extra: u32 = lengths.iter().sum();
    let step_us = costs.verify_us(extra as usize) + spent.draft_us + spent.unpriced_us;
    for (index, state) in space.slo_states.iter().enumerate() {
        let length = drafted.iter().position(|row| row.decoding as usize == index).map_or(0, |p| lengths[p]);
        if let (SloState::OnTrack, Some(bound)) = (state, space.rows[index].bound) {
            prop_assert!(step_us <= bound.deadline_us(space.tokens(index, length)) + 1e-3);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// What plan promises is kept by the step that follows, whatever the confidences are.
    #[test]
    fn no_step_is_predicted_to_break_an_objective_that_plain_decoding_keeps(
        rows in prop::collection::vec(
            (50u32..3000, 1u32..200, 0u64..2_000_000, prop::option::of(5_000u64..40_000), 1u32..40), 1..12),
        prompts in prop::collection::vec((1u32..4000, prop::option::of(20_000u64..900_000)), 0..4),
        confidences in prop::collection::vec(0.05f32..1.0, 96),
    ) {
        let policy = policy();
        let view = view_of(&rows, &prompts);
        let granted = policy.plan(&view, &mut Scratch::default());
        let step = Step { view: &view, granted: &granted };
        let drafted = draft(&policy, step, &confidences);
        if drafted.is_empty() {
            check_plain_step(&policy, step)?;
        }
        check_verification(&policy, step, &drafted)?;
    }
}
