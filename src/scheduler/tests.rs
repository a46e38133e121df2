//! The scheduler played against an executor that notices any mistake.

mod any_schedule;
mod game;
mod late;
mod paced;
mod timed;

use std::sync::Arc;

use super::*;
use crate::drafting::{NgramOptions, WithPromptLookup};
use crate::executor::{ShadowExecutor, ShadowOptions};
use crate::policy::{Policy, Static};
use crate::protocol::{FinishReason, Intent, MonotonicClock, SamplingParams, StepDecision, StepView};
use crate::step;
use game::{Game, expect, limits, request};

#[test]
fn an_idle_scheduler_plans_nothing() {
    let mut game = Game::new(8, 4);
    assert!(!game.step());
    assert!(game.core.scheduler().is_idle());
}

#[test]
fn output_is_the_targets_own_at_every_draft_length() {
    for draft_tokens in 0..=8 {
        let mut game = Game::new(64, draft_tokens);
        let requests: Vec<_> = (0..12).map(|id| request(id, 5 + 13 * id as u32, 30)).collect();
        for request in &requests {
            game.arrive(request.clone());
        }
        game.play_out();
        for request in &requests {
            assert_eq!(game.outputs[&request.id], expect(&game, request), "at {draft_tokens} drafts");
            assert_eq!(game.finish_reason(request.id), Some(FinishReason::Length));
        }
    }
}

#[test]
fn speculation_takes_fewer_steps_and_says_so() {
    let mut game = Game::new(64, 4);
    game.arrive(request(1, 20, 60));
    game.play_out();
    let summary = game.summary(RequestId(1));
    let stats = summary.speculation;
    assert_eq!(summary.output_tokens, 60);
    assert!(stats.steps < 40, "{stats:?}");
    assert!(stats.accepted <= stats.verified && stats.verified <= stats.drafted);
    assert_eq!(stats.steps + stats.accepted, 59, "each step yields its accepted drafts and one more");
}

#[test]
fn without_drafts_the_draft_model_is_never_called() {
    let mut game = Game::new(64, 0);
    game.arrive(request(1, 100, 20));
    while let Some(plan) = game.plan() {
        assert!(plan.seeds.is_empty());
        game.finish(plan);
    }
    assert_eq!(game.core.scheduler().gauges().draft_kv.held, 0);
}

#[test]
fn when_blocks_run_out_the_newest_is_recomputed_and_nothing_is_said_twice() {
    let mut game = Game::new(12, 4);
    let requests: Vec<_> = (0..4).map(|id| request(id, 30, 60)).collect();
    for request in &requests {
        game.arrive(request.clone());
    }
    game.play_out();
    assert!(game.core.scheduler().gauges().preemptions > 0, "the pool was meant to be too small");
    assert_eq!(game.summary(RequestId(0)).preemptions, 0, "the oldest is never preempted");
    for request in &requests {
        assert_eq!(game.outputs[&request.id], expect(&game, request));
    }
}

#[test]
fn a_request_that_waits_longer_than_it_may_is_refused_in_either_order() {
    for pacer in [None, Some(timed::pacer())] {
        let mut timed = timed::Timed::new(timed::limits(1), pacer);
        let wait_max = Micros::from_millis(100);
        timed.core.scheduler_mut().queue_wait_max = Some(wait_max);
        let long = GenerationRequest { max_tokens: 200, ..timed::request(1, 64) };
        let soon = GenerationRequest { arrival: Micros::from_millis(1_360), ..timed::request(3, 64) };
        timed.serve(vec![long, timed::request(2, 64), soon]);
        let overdue = TokenEvent::Failed(RequestFailure::Overdue { wait_max });
        assert_eq!(timed.ends[0], (RequestId(2), overdue));
        assert!(timed.summary(1).times.last_token > Micros::from_millis(1_360), "it held the only slot");
        assert!(timed.summary(3).queue_time() < wait_max, "its turn came in time");
    }
}

#[test]
fn a_preempted_request_waits_for_its_turn_however_long_that_takes() {
    let mut game = Game::new(12, 4);
    game.core.scheduler_mut().queue_wait_max = Some(Micros::from_millis(5));
    let requests: Vec<_> = (0..4).map(|id| request(id, 30, 60)).collect();
    for request in &requests {
        game.arrive(request.clone());
    }
    game.play_out();
    assert!(game.core.scheduler().gauges().preemptions > 0, "the pool was meant to be too small");
    for request in &requests {
        assert_eq!(game.outputs[&request.id], expect(&game, request));
    }
}

#[test]
fn a_request_that_fits_the_pool_exactly_is_served() {
    let mut game = Game::new(4, 8);
    assert_eq!(game.core.scheduler().check_size(40, 24), Ok(()));
    assert_eq!(game.core.scheduler().check_size(40, 25), Err(TooLarge { needed: 5, total: 4 }));
    let only = request(1, 40, 24);
    game.arrive(only.clone());
    game.play_out();
    assert_eq!(game.outputs[&only.id], expect(&game, &only));
}

#[test]
fn a_long_prompt_is_prefilled_in_chunks_while_others_decode() {
    let mut game = Game::new(64, 0);
    game.arrive(request(1, 10, 50));
    game.step();
    game.arrive(request(2, 200, 5));
    let mut chunks = Vec::new();
    while !game.outputs.contains_key(&RequestId(2)) {
        let plan = game.plan().expect("work is left");
        assert_eq!(plan.view.decoding.len(), 1, "the first request decodes in every step");
        chunks.push(plan.prefill_tokens());
        game.finish(plan);
    }
    assert_eq!(chunks, [64, 64, 64, 8]);
}

#[test]
fn the_lower_class_goes_first_and_within_a_class_the_first_come() {
    let mut game = Game::with(
        SchedulerLimits { running_requests_max: 1, ..limits(64) },
        ShadowOptions::small(64, 64),
        0,
    );
    let mut order = Vec::new();
    for (id, class) in [(1, 1), (2, 0), (3, 1), (4, 0)] {
        game.arrive(GenerationRequest { class, ..request(id, 8, 2) });
    }
    while let Some(plan) = game.plan() {
        order.extend(plan.started.clone());
        game.finish(plan);
    }
    assert_eq!(order, [RequestId(2), RequestId(4), RequestId(1), RequestId(3)]);
}

#[test]
fn policies_see_the_weight_of_each_request() {
    let mut game = Game::new(64, 0);
    for (id, weight) in [(1, 0.0), (2, 2.5)] {
        game.arrive(GenerationRequest { weight, ..request(id, 8, 9) });
    }
    game.step();
    let plan = game.plan().expect("both decode");
    let weights: Vec<f32> = plan.view.decoding.iter().map(|row| row.weight).collect();
    assert_eq!(weights, [0.0, 2.5]);
    game.finish(plan);
}

#[test]
fn a_request_whose_client_left_frees_its_blocks_at_the_next_step() {
    let mut game = Game::new(64, 4);
    let id = game.arrive(request(1, 50, 100));
    game.step();
    let plan = game.plan().expect("decodes");
    game.cancel(id);
    assert!(game.ends.is_empty(), "the step in flight still uses the blocks");
    game.finish(plan);
    assert_eq!(game.ends[&id], TokenEvent::Failed(RequestFailure::Cancelled));
    assert_eq!(game.core.scheduler().gauges().target_kv.held, 0);
    assert!(game.core.scheduler().is_idle());
}

#[test]
fn cancelling_one_that_waits_or_is_unknown_is_immediate_and_harmless() {
    let mut game = Game::new(64, 0);
    let id = game.arrive(request(1, 50, 10));
    game.cancel(id);
    game.cancel(id);
    game.cancel(RequestId(77));
    assert_eq!(game.ends.len(), 1);
    assert!(game.core.scheduler().is_idle());
}

#[test]
fn a_caller_that_has_all_it_wants_ends_as_a_success() {
    let mut game = Game::new(64, 4);
    let id = game.arrive(request(1, 50, 100));
    game.step();
    let delivery = game.core.end(id, Termination::Stopped);
    game.record(delivery.into_iter().collect());
    assert_eq!(game.finish_reason(id), Some(FinishReason::Stop));
    assert_eq!(game.summary(id).output_tokens, 1);
    assert!(game.core.scheduler().is_idle());
}

#[test]
fn a_stop_token_among_accepted_drafts_ends_the_output_there() {
    let mut game = Game::new(64, 8);
    let plain = request(1, 20, 40);
    let expected = expect(&game, &plain);
    let stop = expected[17];
    let end = expected.iter().position(|&token| token == stop).expect("is there") + 1;
    let id = game.arrive(GenerationRequest { stop_tokens: Arc::from([stop]), ..plain });
    game.play_out();
    assert_eq!(game.outputs[&id], expected[..end]);
    assert_eq!(game.finish_reason(id), Some(FinishReason::Stop));
}

#[test]
fn a_row_that_is_not_finite_ends_only_its_request() {
    let options = ShadowOptions { not_finite: Some(RequestId(2)), ..ShadowOptions::small(64, 64) };
    let mut game = Game::with(limits(64), options, 3);
    let fine = request(1, 20, 20);
    game.arrive(fine.clone());
    game.arrive(request(2, 20, 20));
    game.play_out();
    assert_eq!(game.outputs[&fine.id], expect(&game, &fine));
    assert_eq!(game.ends[&RequestId(2)], TokenEvent::Failed(RequestFailure::Numerical));
}

#[test]
#[should_panic(expected = "accepted ≤ verified ≤ drafted")]
fn an_outcome_that_accepts_what_was_not_verified_is_not_committed() {
    let mut game = Game::new(64, 4);
    game.arrive(request(1, 20, 20));
    game.step();
    let plan = game.plan().expect("decodes");
    let clock = MonotonicClock::start();
    let result = step::run(game.executor.as_mut(), plan, &mut Scratch::default(), &clock);
    let mut outcome = result.expect("verifies").outcome;
    outcome.rows[0].verified = 0;
    outcome.rows[0].verdict.accepted = 1;
    game.core.scheduler_mut().commit(outcome, game.now);
}

#[test]
fn an_abandoned_step_is_planned_anew_and_its_late_outcome_ignored() {
    let mut game = Game::new(64, 4);
    let one = request(1, 20, 20);
    game.arrive(one.clone());
    game.step();
    let lost = game.plan().expect("decodes");
    game.core.abandon_step();
    let again = game.plan().expect("decodes");
    assert_ne!(lost.number, again.number);
    game.finish(again);
    let said = game.outputs[&one.id].len();
    let late = crate::step::StepOutcome { number: lost.number, rows: Vec::new(), draft_ran: false };
    assert_eq!(game.core.scheduler_mut().commit(late, game.now), []);
    assert_eq!(game.outputs[&one.id].len(), said);
    game.play_out();
    assert_eq!(game.outputs[&one.id], expect(&game, &one));
}

#[test]
fn a_prompt_seen_before_is_not_prefilled_again() {
    let mut game = Game::new(64, 2);
    let first = request(1, 100, 10);
    let second = GenerationRequest { id: RequestId(2), ..first.clone() };
    game.arrive(first.clone());
    game.play_out();
    game.arrive(second.clone());
    let plan = game.plan().expect("prefills");
    assert_eq!(plan.prefill_tokens(), 100 - 96);
    game.finish(plan);
    game.play_out();
    assert_eq!(game.outputs[&second.id], expect(&game, &second));
    let cached = [first.id, second.id].map(|id| game.summary(id).cached_tokens);
    assert_eq!(cached, [0, 96]);
    let gauges = game.core.scheduler().gauges();
    assert_eq!((gauges.prefix_hit_tokens, gauges.prefix_query_tokens), (96, 200));
}

#[test]
fn blocks_that_are_published_at_once_or_when_they_are_wanted_make_the_same_steps() {
    // one prompt, and few blocks: sequences share, are preempted and find their own blocks again
    let play = |at_once: bool| {
        let mut game = Game::new(16, 3);
        game.settles = at_once;
        let prompt = request(1, 40, 1).prompt;
        for id in 1..=6 {
            game.arrive(GenerationRequest { prompt: prompt.clone(), ..request(id, 40, 60) });
        }
        let mut steps = Vec::new();
        while let Some(plan) = game.plan() {
            steps.push((plan.rows.clone(), plan.seeds.clone()));
            game.finish(plan);
        }
        (steps, game.core.scheduler().gauges())
    };
    let (steps, gauges) = play(true);
    assert!(gauges.preemptions > 0 && gauges.prefix_hit_tokens > 0, "{gauges:?}");
    assert_eq!((steps, gauges), play(false));
}

#[test]
fn rows_that_are_filled_anew_make_the_same_steps_as_fresh_ones() {
    // few blocks: requests come, end and are preempted; half of them have a history
    let play = |recycles: bool| {
        let mut game = Game::new(20, 3);
        game.recycles = recycles;
        for id in 1..=12u32 {
            let presence_penalty = if id % 2 == 0 { 0.5 } else { 0.0 };
            let sampling = Arc::new(SamplingParams { presence_penalty, ..SamplingParams::greedy() });
            game.arrive(GenerationRequest { sampling, ..request(id.into(), 20 + 7 * id, 30 + id) });
        }
        let mut steps = Vec::new();
        while let Some(plan) = game.plan() {
            steps.push((plan.rows.clone(), plan.seeds.clone()));
            game.finish(plan);
        }
        (steps, game.core.scheduler().gauges())
    };
    let (steps, gauges) = play(true);
    assert!(gauges.preemptions > 0 && steps.iter().any(|(_, drafts)| !drafts.is_empty()));
    assert!(steps.iter().any(|(rows, _)| rows.iter().any(|row| row.input.history.is_some())));
    assert_eq!((steps, gauges), play(false));
}

#[test]
fn a_shortage_of_draft_blocks_costs_drafts_and_nothing_else() {
    let options = ShadowOptions::small(64, 3);
    let mut game =
        Game::with(SchedulerLimits { drafter: Some(DrafterNeeds::kv_cache(3)), ..limits(64) }, options, 4);
    let requests: Vec<_> = (0..4).map(|id| request(id, 40, 30)).collect();
    for request in &requests {
        game.arrive(request.clone());
    }
    game.play_out();
    for request in &requests {
        assert_eq!(game.outputs[&request.id], expect(&game, request));
    }
}

#[test]
fn drafts_that_the_executor_cannot_sample_behind_are_shared_out_evenly() {
    let limits = SchedulerLimits { sampled_rows_max: 21, ..limits(64) };
    let mut game = Game::with(limits, ShadowOptions::small(64, 64), 4);
    let requests: Vec<_> = (0..8).map(|id| request(id, 20, 30)).collect();
    for request in &requests {
        game.arrive(request.clone());
    }
    let mut granted = Vec::new();
    while let Some(plan) = game.plan() {
        if plan.view.decoding.len() == 8 {
            granted.push(plan.granted.drafts.clone());
        }
        game.finish(plan);
    }
    assert!(granted.contains(&vec![1; 8]), "13 drafts for 8 requests that each want 4: {granted:?}");
    assert!(granted.iter().all(|drafts| drafts.iter().sum::<u32>() <= 13), "{granted:?}");
    for request in &requests {
        assert_eq!(game.outputs[&request.id], expect(&game, request));
    }
}

#[test]
fn drafts_looked_up_in_the_text_need_no_draft_model_and_change_nothing() {
    let lookup = NgramOptions { match_tokens_min: 1, ..NgramOptions::default() };
    let options = ShadowOptions::small(64, 0);
    let info = crate::protocol::ExecutorInfo { vocab_size: 3, ..options.info.clone() };
    let limits = SchedulerLimits { drafter: Some(DrafterNeeds::tokens()), ..limits(64) };
    let options = ShadowOptions { info, ..options };
    let mut game = Game::with(limits, options.clone(), 4);
    game.executor = Box::new(WithPromptLookup::new(Box::new(ShadowExecutor::new(options)), lookup));
    let of_three = |request: GenerationRequest| GenerationRequest {
        prompt: request.prompt.iter().map(|token| token % 3).collect(),
        ..request
    };
    let requests: Vec<_> = (0..6).map(|id| of_three(request(id, 40, 60))).collect();
    for request in &requests {
        game.arrive(request.clone());
    }
    game.play_out();
    for request in &requests {
        assert_eq!(game.outputs[&request.id], expect(&game, request));
    }
    let accepted: u32 = requests.iter().map(|request| game.summary(request.id).speculation.accepted).sum();
    assert!(accepted > 0, "of three tokens some guess is right");
}

#[test]
fn a_draft_head_is_given_the_targets_blocks_and_never_lags_behind() {
    let mut options = ShadowOptions { agreement: 1.0, ..ShadowOptions::small(14, 0) };
    let drafter = Some(DrafterNeeds::hidden_states(vec![2, 5]));
    options.info.drafter = drafter.clone();
    let mut game = Game::with(SchedulerLimits { drafter, ..limits(14) }, options, 4);
    let requests: Vec<_> = (0..6).map(|id| request(id % 2, 40, 30)).enumerate().collect();
    for (id, request) in &requests {
        game.arrive(GenerationRequest { id: RequestId(*id as u64), ..request.clone() });
    }
    let mut chunks = 0;
    while let Some(plan) = game.plan() {
        assert!(plan.view.decoding.iter().all(|row| row.draft_lag_tokens == 1));
        for row in &plan.rows {
            let sequence = &requests[row.input.request.0 as usize].1;
            let end = row.input.start as usize + row.input.tokens.len();
            let known = sequence.prompt.get(end).copied();
            assert!(known.is_none() || row.next == known);
            chunks += u32::from(row.next.is_some());
        }
        for seed in &plan.seeds {
            let row = &plan.rows[seed.row as usize].input;
            assert_eq!((&seed.input.blocks, seed.input.start), (&row.blocks, row.start));
            assert_eq!(seed.input.tokens, row.tokens);
        }
        game.finish(plan);
    }
    let gauges = game.core.scheduler().gauges();
    assert!(gauges.preemptions > 0 && gauges.prefix_hit_tokens > 0 && chunks > 0, "{gauges:?}");
    assert_eq!(gauges.draft_kv.total, 0);
    for (id, request) in &requests {
        let id = RequestId(*id as u64);
        let speculation = &game.summary(id).speculation;
        assert_eq!(game.outputs[&id], expect(&game, request));
        assert_eq!((speculation.accepted, speculation.verified > 0), (speculation.verified, true));
    }
}

#[test]
fn aborting_ends_all_and_frees_everything() {
    let mut game = Game::new(64, 4);
    for id in 0..12 {
        game.arrive(request(id, 30, 30));
    }
    game.step();
    let _in_flight = game.plan();
    let deliveries = game.core.abort_all(&RequestFailure::ShuttingDown);
    game.record(deliveries);
    assert_eq!(game.ends.len(), 12);
    assert_eq!(game.core.scheduler().gauges().target_kv.held, 0);
    assert!(game.core.scheduler().is_idle());
}

/// Probes with two drafts for every request.
#[derive(Debug)]
struct Probing;

impl Policy for Probing {
    fn name(&self) -> String {
        "probing".to_owned()
    }

    fn plan(&self, view: &StepView, _: &mut Scratch) -> StepDecision {
        StepDecision {
            intent: Intent::Probe,
            drafts: vec![2; view.decoding.len()],
            prefill_tokens: view.prefill_tokens_max,
            warm_draft: false,
            ..StepDecision::default()
        }
    }
}

#[test]
fn a_probe_is_reported_with_its_intent_and_the_drafts_it_was_granted() {
    // 21 tokens do not fit a draft cache of one block
    for (draft_blocks, drafts) in [(64, 2), (1, 0)] {
        let drafter = Some(DrafterNeeds::kv_cache(draft_blocks));
        let limits = SchedulerLimits { drafter, ..limits(64) };
        let options = ShadowOptions::small(64, draft_blocks);
        let mut game = Game::led_by(Box::new(Static::new(Probing)), limits, options);
        game.arrive(request(1, 20, 30));
        assert!(game.step(), "prefills");
        let plan = game.plan().expect("decodes");
        assert_eq!((plan.granted.intent, &plan.granted.drafts), (Intent::Probe, &vec![drafts]));
        let clock = MonotonicClock::start();
        let result = step::run(game.executor.as_mut(), plan, &mut Scratch::default(), &clock);
        let report = result.expect("verifies").report;
        let granted = report.granted;
        assert_eq!((granted.intent, granted.drafts), (Intent::Probe, vec![drafts]));
        assert_eq!(report.drafted.len(), usize::from(drafts > 0));
    }
}
