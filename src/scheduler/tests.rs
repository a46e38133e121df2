//! The scheduler played against an executor that notices any mistake.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::executor::{ShadowExecutor, ShadowOptions};
use crate::policy::{DraftedRow, Fixed, Policy, Step, StepDecision, StepView};
use crate::request::{FinishReason, Slo, TokenId};
use crate::sampling::SamplingParams;
use crate::step::{StepPlan, draft_round, verify_round};
use crate::time::{Clock, Micros};

struct Standstill;

impl Clock for Standstill {
    fn now(&self) -> Micros {
        Micros::ZERO
    }
}

/// A scheduler, an executor, and a record of all that was delivered.
struct Game {
    scheduler: Scheduler,
    executor: ShadowExecutor,
    policy: Arc<dyn Policy>,
    now: Micros,
    outputs: BTreeMap<RequestId, Vec<TokenId>>,
    ends: BTreeMap<RequestId, TokenEvent>,
}

fn limits(target_blocks: u32) -> SchedulerLimits {
    SchedulerLimits {
        running_requests_max: 8,
        prefill_chunk_tokens_max: 64,
        batch_tokens_max: 128,
        draft_tokens_max: 8,
        target_blocks,
        draft_blocks: target_blocks,
        lookup: None,
    }
}

impl Game {
    fn new(target_blocks: u32, draft_tokens: u32) -> Game {
        Game::with(limits(target_blocks), ShadowOptions::small(target_blocks, target_blocks), draft_tokens)
    }

    fn with(limits: SchedulerLimits, options: ShadowOptions, draft_tokens: u32) -> Game {
        Game {
            scheduler: Scheduler::new(limits),
            executor: ShadowExecutor::new(options),
            policy: Arc::new(Fixed { draft_tokens }),
            now: Micros::ZERO,
            outputs: BTreeMap::new(),
            ends: BTreeMap::new(),
        }
    }

    fn arrive(&mut self, request: GenerationRequest) -> RequestId {
        let id = request.id;
        self.scheduler.enqueue(request);
        id
    }

    fn plan(&mut self) -> Option<StepPlan> {
        self.now += Micros(1000);
        let plan = self.scheduler.plan(self.now, &self.policy);
        self.scheduler.assert_conserved();
        plan
    }

    fn finish(&mut self, plan: StepPlan) {
        let mut drafted = draft_round(&mut self.executor, plan, &Standstill).expect("drafts");
        let verified = drafted.select();
        let stepped = verify_round(&mut self.executor, drafted, verified, &Standstill).expect("verifies");
        let deliveries = self.scheduler.commit(stepped.outcome, self.now);
        self.record(deliveries);
        self.scheduler.assert_conserved();
    }

    fn step(&mut self) -> bool {
        match self.plan() {
            Some(plan) => {
                self.finish(plan);
                true
            }
            None => false,
        }
    }

    fn play_out(&mut self) {
        for _ in 0..20_000 {
            if !self.step() {
                assert!(self.scheduler.is_idle(), "nothing to do, yet not idle");
                return;
            }
        }
        panic!("no progress");
    }

    fn record(&mut self, deliveries: Vec<Delivery>) {
        for (id, event) in deliveries {
            assert!(!self.ends.contains_key(&id), "request {id} got an event after its end");
            match event {
                TokenEvent::Tokens(tokens) => {
                    assert!(!tokens.is_empty());
                    self.outputs.entry(id).or_default().extend(tokens);
                }
                end => {
                    self.ends.insert(id, end);
                }
            }
        }
    }

    fn cancel(&mut self, id: RequestId) {
        let delivery = self.scheduler.end(id, Ending::Failed(RequestFailure::Cancelled));
        self.record(delivery.into_iter().collect());
    }

    fn finish_reason(&self, id: RequestId) -> Option<FinishReason> {
        match self.ends.get(&id)? {
            TokenEvent::Finished { reason, .. } => Some(*reason),
            _ => None,
        }
    }

    fn summary(&self, id: RequestId) -> crate::request::RequestSummary {
        match &self.ends[&id] {
            TokenEvent::Finished { summary, .. } => *summary,
            other => panic!("request {id} ended with {other:?}"),
        }
    }
}

fn request(id: u64, prompt_tokens: u32, max_tokens: u32) -> GenerationRequest {
    GenerationRequest {
        id: RequestId(id),
        prompt: (0..prompt_tokens).map(|i| (i * 7 + id as u32 * 131) % 1000).collect(),
        max_tokens,
        sampling: Arc::new(SamplingParams::greedy()),
        stop_tokens: Arc::from([]),
        slo: Slo::default(),
        class: 0,
        arrival: Micros(id),
    }
}

fn expect(game: &Game, request: &GenerationRequest) -> Vec<TokenId> {
    game.executor.expect(&request.prompt, &request.sampling, request.max_tokens as usize)
}

#[test]
fn an_idle_scheduler_plans_nothing() {
    let mut game = Game::new(8, 4);
    assert!(!game.step());
    assert!(game.scheduler.is_idle());
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
        assert!(plan.drafting.is_empty());
        game.finish(plan);
    }
    assert_eq!(game.scheduler.gauges().draft_kv.held, 0);
}

#[test]
fn when_blocks_run_out_the_newest_is_recomputed_and_nothing_is_said_twice() {
    let mut game = Game::new(12, 4);
    let requests: Vec<_> = (0..4).map(|id| request(id, 30, 60)).collect();
    for request in &requests {
        game.arrive(request.clone());
    }
    game.play_out();
    assert!(game.scheduler.gauges().preemptions > 0, "the pool was meant to be too small");
    assert_eq!(game.summary(RequestId(0)).preemptions, 0, "the oldest is never preempted");
    for request in &requests {
        assert_eq!(game.outputs[&request.id], expect(&game, request));
    }
}

#[test]
fn a_request_that_fits_the_pool_exactly_is_served() {
    let mut game = Game::new(4, 8);
    assert_eq!(game.scheduler.check_size(40, 24), Ok(()));
    assert_eq!(game.scheduler.check_size(40, 25), Err(TooLarge { needed: 5, total: 4 }));
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
fn a_request_whose_client_left_frees_its_blocks_at_the_next_step() {
    let mut game = Game::new(64, 4);
    let id = game.arrive(request(1, 50, 100));
    game.step();
    let plan = game.plan().expect("decodes");
    game.cancel(id);
    assert!(game.ends.is_empty(), "the step in flight still uses the blocks");
    game.finish(plan);
    assert_eq!(game.ends[&id], TokenEvent::Failed(RequestFailure::Cancelled));
    assert_eq!(game.scheduler.gauges().target_kv.held, 0);
    assert!(game.scheduler.is_idle());
}

#[test]
fn cancelling_one_that_waits_or_is_unknown_is_immediate_and_harmless() {
    let mut game = Game::new(64, 0);
    let id = game.arrive(request(1, 50, 10));
    game.cancel(id);
    game.cancel(id);
    game.cancel(RequestId(77));
    assert_eq!(game.ends.len(), 1);
    assert!(game.scheduler.is_idle());
}

#[test]
fn a_caller_that_has_all_it_wants_ends_as_a_success() {
    let mut game = Game::new(64, 4);
    let id = game.arrive(request(1, 50, 100));
    game.step();
    let delivery = game.scheduler.end(id, Ending::Stopped);
    game.record(delivery.into_iter().collect());
    assert_eq!(game.finish_reason(id), Some(FinishReason::Stop));
    assert_eq!(game.summary(id).output_tokens, 1);
    assert!(game.scheduler.is_idle());
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
fn an_abandoned_step_is_planned_anew_and_its_late_outcome_ignored() {
    let mut game = Game::new(64, 4);
    let one = request(1, 20, 20);
    game.arrive(one.clone());
    game.step();
    let lost = game.plan().expect("decodes");
    game.scheduler.abandon_step();
    let again = game.plan().expect("decodes");
    assert_ne!(lost.number, again.number);
    game.finish(again);
    let said = game.outputs[&one.id].len();
    let late = crate::step::StepOutcome {
        number: lost.number,
        verdicts: Vec::new(),
        draft_ran: false,
        drafted: Vec::new(),
        verified: Vec::new(),
    };
    assert_eq!(game.scheduler.commit(late, game.now), []);
    assert_eq!(game.outputs[&one.id].len(), said);
    game.play_out();
    assert_eq!(game.outputs[&one.id], expect(&game, &one));
}

#[test]
fn a_prompt_seen_before_is_not_prefilled_again() {
    let mut game = Game::new(64, 2);
    let first = request(1, 100, 10);
    let second = GenerationRequest { id: RequestId(2), ..first.clone() };
    game.arrive(first);
    game.play_out();
    game.arrive(second.clone());
    let plan = game.plan().expect("prefills");
    assert_eq!(plan.prefill_tokens(), 100 - 96);
    game.finish(plan);
    game.play_out();
    assert_eq!(game.outputs[&second.id], expect(&game, &second));
    assert_eq!(game.scheduler.gauges().prefix_hit_tokens, 96);
}

#[test]
fn blocks_that_are_published_at_once_or_when_they_are_wanted_make_the_same_steps() {
    // one prompt, and few blocks: sequences share, are preempted and find their own blocks again
    let play = |at_once: bool| {
        let mut game = Game::new(16, 3);
        let prompt = request(1, 40, 1).prompt;
        for id in 1..=6 {
            game.arrive(GenerationRequest { prompt: prompt.clone(), ..request(id, 40, 60) });
        }
        let mut steps = Vec::new();
        while let Some(plan) = game.plan() {
            steps.push((plan.rows.clone(), plan.draft_rows.clone()));
            game.finish(plan);
            if at_once {
                game.scheduler.publish_computed();
            }
        }
        (steps, game.scheduler.gauges())
    };
    let (steps, gauges) = play(true);
    assert!(gauges.preemptions > 0 && gauges.prefix_hit_tokens > 0, "{gauges:?}");
    assert_eq!((steps, gauges), play(false));
}

#[test]
fn a_shortage_of_draft_blocks_costs_drafts_and_nothing_else() {
    let options = ShadowOptions::small(64, 3);
    let mut game = Game::with(SchedulerLimits { draft_blocks: 3, ..limits(64) }, options, 4);
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
fn drafts_looked_up_in_the_text_need_no_draft_model_and_change_nothing() {
    let lookup = Some(crate::drafting::NgramOptions { match_tokens_min: 1, ..Default::default() });
    let options = ShadowOptions::small(64, 0);
    let info = crate::executor::ExecutorInfo { vocab_size: 3, ..options.info.clone() };
    let limits = SchedulerLimits { draft_blocks: 0, lookup, ..limits(64) };
    let mut game = Game::with(limits, ShadowOptions { info, ..options }, 4);
    let requests: Vec<_> = (0..6).map(|id| request(id, 40, 60)).collect();
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
fn aborting_ends_all_and_frees_everything() {
    let mut game = Game::new(64, 4);
    for id in 0..12 {
        game.arrive(request(id, 30, 30));
    }
    game.step();
    let _in_flight = game.plan();
    let deliveries = game.scheduler.abort_all(&RequestFailure::ShuttingDown);
    game.record(deliveries);
    assert_eq!(game.ends.len(), 12);
    assert_eq!(game.scheduler.gauges().target_kv.held, 0);
    assert!(game.scheduler.is_idle());
}

/// A policy that asks for the impossible and drafts by whim.
#[derive(Clone, Debug)]
struct Whim {
    seed: u64,
}

impl Whim {
    fn roll(&self, salt: u64, sides: u32) -> u32 {
        let x = (self.seed ^ salt.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((x >> 33) % u64::from(sides)) as u32
    }
}

impl Policy for Whim {
    fn name(&self) -> String {
        "whim".to_owned()
    }

    fn plan(&self, view: &StepView) -> StepDecision {
        let drafts = (0..view.decoding.len() as u64).map(|row| self.roll(view.now.0 + row, 1000)).collect();
        StepDecision {
            drafts,
            prefill_tokens: self.roll(view.now.0, 3) * 40,
            warm_draft: self.roll(view.now.0, 2) == 0,
        }
    }

    fn extend(&self, step: Step<'_>, _: &[DraftedRow], active: &[u32], keep: &mut Vec<u32>) {
        keep.extend(active.iter().filter(|&&row| self.roll(step.view.now.0 ^ u64::from(row), 4) > 0));
    }

    fn select(&self, step: Step<'_>, rows: &[DraftedRow], lengths: &mut Vec<u32>) {
        lengths.extend(rows.iter().map(|row| self.roll(step.view.now.0 ^ u64::from(row.decoding), 9)));
    }

    fn snapshot(&self) -> Arc<dyn Policy> {
        Arc::new(self.clone())
    }
}

#[derive(Clone, Debug)]
enum Move {
    Arrive { prompt: u32, output: u32, class: u8, seeded: bool },
    Step,
    CancelOne(u64),
    CancelInFlight(u64),
    Abandon,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        3 => (1..90u32, 1..50u32, 0..3u8, any::<bool>())
            .prop_map(|(prompt, output, class, seeded)| Move::Arrive { prompt, output, class, seeded }),
        6 => Just(Move::Step),
        1 => (0..40u64).prop_map(Move::CancelOne),
        1 => (0..40u64).prop_map(Move::CancelInFlight),
        1 => Just(Move::Abandon),
    ];
    proptest::collection::vec(one, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Invariants 1 to 3 over random arrivals, cancels, lost steps and shortages, under a
    /// policy that does as it likes.
    #[test]
    fn any_schedule_conserves_blocks_ends_each_request_once_and_never_changes_a_word(
        moves in moves(),
        target_blocks in 9..40u32,
        draft_blocks in 1..40u32,
        seed in any::<u64>(),
    ) {
        let limits = SchedulerLimits { draft_blocks, ..limits(target_blocks) };
        let mut game = Game::with(limits, ShadowOptions::small(target_blocks, draft_blocks), 0);
        game.policy = Arc::new(Whim { seed });
        let mut requests = Vec::new();
        for step in moves {
            match step {
                Move::Arrive { prompt, output, class, seeded } => {
                    let id = requests.len() as u64;
                    let mut request = GenerationRequest { class, ..request(id % 3, prompt, output) };
                    request.id = RequestId(id);
                    request.arrival = Micros(id);
                    if seeded {
                        request.sampling =
                            Arc::new(SamplingParams { temperature: 1.0, seed: id, ..SamplingParams::greedy() });
                    }
                    game.arrive(request.clone());
                    requests.push(request);
                }
                Move::Step => { game.step(); }
                Move::CancelOne(id) => game.cancel(RequestId(id)),
                Move::CancelInFlight(id) => {
                    if let Some(plan) = game.plan() {
                        game.cancel(RequestId(id));
                        game.finish(plan);
                    }
                }
                Move::Abandon => {
                    if game.plan().is_some() {
                        let deliveries = game.scheduler.abandon_step();
                        game.record(deliveries);
                    }
                }
            }
        }
        game.play_out();
        prop_assert_eq!(game.ends.len(), requests.len());
        prop_assert_eq!(game.scheduler.gauges().target_kv.held, 0);
        prop_assert_eq!(game.scheduler.gauges().draft_kv.held, 0);
        for request in &requests {
            let expected = expect(&game, request);
            let said = game.outputs.get(&request.id).cloned().unwrap_or_default();
            prop_assert_eq!(&said[..], &expected[..said.len()]);
            if game.finish_reason(request.id).is_some() {
                prop_assert_eq!(said.len(), expected.len());
            }
        }
    }
}
