//! Who is admitted, and who goes, where requests are served by slack.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::*;
use super::game::{self, Game};
use super::timed::{self, Timed, limits, pacer};
use crate::engine::EngineCore;
use crate::executor::ShadowOptions;
use crate::pacing::{LATE_PERIOD, LateAction};
use crate::policy::{Fixed, Static};
use crate::protocol::{Micros, RowRole, SamplingParams, Slo, TokenId};
use crate::random::SplitMix64;
use crate::step::StepPlan;

/// A request of so many tokens whose first token is due so many milliseconds after its arrival.
fn due(id: u64, prompt_tokens: u32, arrival_ms: u64, ttft_ms: u64) -> GenerationRequest {
    GenerationRequest {
        arrival: Micros::from_millis(arrival_ms),
        slo: Slo { ttft: Some(Micros::from_millis(ttft_ms)), tpot: None },
        ..timed::request(id, prompt_tokens)
    }
}

fn enqueue(timed: &mut Timed, requests: impl IntoIterator<Item = GenerationRequest>) {
    for request in requests {
        timed.core.enqueue(request);
    }
}

/// Prefill tokens of each request that the step prefills, in the order of service.
fn prefills(plan: &StepPlan) -> Vec<(u64, usize)> {
    let rows = plan.rows.iter().filter(|row| row.role == RowRole::Prefill);
    rows.map(|row| (row.input.request.0, row.input.tokens.len())).collect()
}

#[test]
fn six_long_prompts_make_no_short_one_late() {
    // each long one takes 1.7 s
    let long = (0..6).map(|n| due(1000 + n, 31_000, 100 + 150 * n, 3000));
    let short = (0..200).map(|n| GenerationRequest { max_tokens: 8, ..due(n, 200, 20 * n, 300) });
    let mut requests: Vec<_> = long.chain(short).collect();
    requests.sort_by_key(|request| request.arrival);
    let limits = SchedulerLimits { target_blocks: 16_384, batch_tokens_max: 1024, ..limits(64) };
    let in_time = |pacer| {
        let mut timed = Timed::new(limits.clone(), pacer);
        timed.serve(requests.clone());
        requests
            .iter()
            .filter(|request| request.id.0 < 1000)
            .filter(|request| request.slo.is_attained_by(&timed.summary(request.id.0)))
            .count()
    };
    assert_eq!(in_time(Some(pacer())), 200);
    assert!(in_time(None) < 150, "first come, first served loses many");
}

/// Steps at which a late prompt makes progress while prompts on time fill every other step.
fn turns_of_a_late_prompt(late: LateAction) -> Vec<usize> {
    let mut timed = Timed::new(limits(64), Some(pacer().with_late(late)));
    enqueue(&mut timed, [due(10_000, 5110, 0, 1)]);
    let mut turns = Vec::new();
    for step in 0..300 {
        let arrival = timed.now();
        // leaves a single token of the chunk, which is no turn
        let short = GenerationRequest { arrival, max_tokens: 1, ..due(step, 511, 0, 5000) };
        enqueue(&mut timed, [short]);
        let plan = timed.plan().expect("there is always work");
        let prefills = prefills(&plan);
        if prefills[0].0 == 10_000 {
            turns.push(step as usize);
        }
        timed.finish(plan);
        if timed.outputs.contains_key(&RequestId(10_000)) {
            break;
        }
    }
    let ended = timed.ends.iter().filter(|(id, _)| id.0 < 10_000);
    for (id, _) in ended {
        assert!(timed.summary(id.0).ttft() <= Micros::from_millis(5000), "{id} paid for the late one");
    }
    assert!(timed.outputs.contains_key(&RequestId(10_000)), "the late one starved: {turns:?}");
    turns
}

#[test]
fn a_late_prompt_gets_its_turn_in_every_period_and_no_more_while_others_can_be_in_time() {
    let turns = turns_of_a_late_prompt(LateAction::Demote);
    assert!((10..=11).contains(&turns.len()), "ten chunks of it: {turns:?}");
    for pair in turns.windows(2) {
        let between = pair[1] - pair[0];
        assert!((LATE_PERIOD as usize..=LATE_PERIOD as usize + 1).contains(&between), "{turns:?}");
    }
    assert!(turns[0] <= LATE_PERIOD as usize);
}

#[test]
fn a_prompt_that_is_held_back_has_neither_a_slot_nor_blocks() {
    let mut timed = Timed::new(limits(8), Some(pacer()));
    enqueue(&mut timed, [due(1, 1500, 0, 10_000), due(2, 1500, 0, 20_000)]);
    let mut held_back = 0;
    while let Some(plan) = timed.plan() {
        let gauges = timed.core.scheduler().gauges();
        if gauges.waiting == 1 && timed.outputs.is_empty() {
            held_back += 1;
            assert_eq!(gauges.running, 1);
            assert_eq!(prefills(&plan), [(1, 512)]);
            assert_eq!(gauges.target_kv.held, 32 * held_back, "blocks of the first one only");
        }
        timed.finish(plan);
    }
    // the last 476 tokens of the first leave room for the second
    assert_eq!(held_back, 2);
    assert_eq!(timed.summary(2).preemptions, 0);
}

#[test]
fn prompts_are_let_in_together_as_long_as_a_step_has_room() {
    let mut timed = Timed::new(limits(8), Some(pacer()));
    enqueue(&mut timed, (1..=5).map(|id| due(id, 200, 0, 10_000 * id)));
    let plan = timed.plan().expect("five wait");
    assert_eq!(prefills(&plan), [(1, 200), (2, 200), (3, 112)]);
    let gauges = timed.core.scheduler().gauges();
    assert_eq!((gauges.running, gauges.waiting), (3, 2));
}

#[test]
fn a_prompt_that_is_due_earlier_overtakes_one_that_is_being_prefilled() {
    let mut timed = Timed::new(limits(8), Some(pacer()));
    enqueue(&mut timed, [due(1, 2000, 0, 20_000)]);
    assert!(timed.step());
    enqueue(&mut timed, [due(2, 600, 0, 500)]);
    let plan = timed.plan().expect("both prefill");
    assert_eq!(prefills(&plan), [(2, 512)]);
}

#[test]
fn running_prompts_are_served_as_they_stand_now_even_behind_one_that_finds_no_slot() {
    let mut timed = Timed::new(limits(2), Some(pacer()));
    // 77 ms of prefill and 26 ms, in time one after the other
    enqueue(&mut timed, [due(1, 3000, 0, 150), due(2, 1000, 0, 200)]);
    let plan = timed.plan().expect("both wait");
    assert_eq!(prefills(&plan), [(1, 512)]);
    timed.finish(plan);
    // both in the running set
    enqueue(&mut timed, [due(3, 100, 0, 45)]);
    let plan = timed.plan().expect("all prefill");
    assert_eq!(prefills(&plan), [(3, 100), (1, 412)]);
    timed.finish(plan);
}

#[test]
fn a_prompt_waits_for_blocks_and_is_not_let_in_to_be_preempted() {
    let limits = SchedulerLimits { target_blocks: 64, ..limits(8) };
    let mut timed = Timed::new(limits, Some(pacer()));
    enqueue(&mut timed, [due(1, 500, 0, 10_000), due(2, 600, 0, 20_000)]);
    assert!(timed.step());
    assert!(timed.step());
    let gauges = timed.core.scheduler().gauges();
    assert_eq!((gauges.running, gauges.waiting, gauges.preemptions), (1, 1, 0));
    timed.serve(Vec::new());
    assert_eq!(timed.core.scheduler().gauges().preemptions, 0);
}

#[test]
fn what_decodes_takes_no_part_of_the_room_for_prompts() {
    let mut timed = Timed::new(limits(16), Some(pacer()));
    enqueue(&mut timed, (1..=8).map(|id| timed::request(id, 20)));
    assert!(timed.step());
    enqueue(&mut timed, [due(11, 500, 0, 10_000), due(12, 100, 0, 20_000)]);
    let plan = timed.plan().expect("two wait");
    assert_eq!(prefills(&plan), [(12, 100), (11, 404)], "504 tokens beside eight rows");
}

#[test]
fn a_prompt_is_late_if_it_is_so_beside_what_decodes() {
    let refused = |decoding: u64| {
        let mut timed = Timed::new(limits(16), Some(pacer().with_late(LateAction::Reject)));
        enqueue(&mut timed, (1..=decoding).map(|id| timed::request(id, 20)));
        timed.step();
        // 17 ms of prefill, and two steps of 7 ms
        let arrival = timed.now();
        enqueue(&mut timed, [GenerationRequest { arrival, ..due(99, 1000, 0, 27) }]);
        timed.plan();
        !timed.ends.is_empty()
    };
    assert!(refused(8));
    assert!(!refused(0), "an idle machine has the time");
}

#[test]
fn a_late_prompt_that_waited_for_a_slot_has_its_turn_when_one_is_free() {
    let mut timed = Timed::new(limits(1), Some(pacer()));
    enqueue(&mut timed, [timed::request(1, 20)]);
    assert!(timed.step());
    enqueue(&mut timed, [due(2, 4000, 0, 1), due(3, 20, 0, 60_000)]);
    while timed.ends.is_empty() {
        assert!(timed.step());
    }
    let plan = timed.plan().expect("two wait");
    assert_eq!(prefills(&plan)[0].0, 2);
}

/// Requests without a TTFT objective, many more than can be served.
fn overload(prompt_tokens: u32, tpot_us: u64) -> Vec<GenerationRequest> {
    let one = |id| GenerationRequest {
        arrival: Micros::from_millis(5 * id),
        slo: Slo { ttft: None, tpot: Some(Micros(tpot_us)) },
        ..timed::request(id, prompt_tokens)
    };
    (0..200).map(one).collect()
}

/// Most requests at once when some have ended and many still wait, and how many kept their objectives.
fn serve_overload(pacer: Option<Pacer>, requests: Vec<GenerationRequest>) -> (u32, usize) {
    let mut timed = Timed::new(limits(64), pacer);
    let mut arrivals = requests.iter().cloned().peekable();
    let mut peak = 0;
    loop {
        let now = timed.now();
        while let Some(request) = arrivals.next_if(|request| request.arrival <= now) {
            timed.core.enqueue(request);
        }
        if !timed.step() {
            break;
        }
        if (80..150).contains(&timed.ends.len()) {
            peak = peak.max(timed.core.scheduler().gauges().running);
        }
    }
    assert_eq!(timed.ends.len(), requests.len());
    let attained = requests.iter().filter(|request| {
        let summary = timed.summary(request.id.0);
        request.slo.is_attained_by(&summary)
    });
    (peak, attained.count())
}

#[test]
fn in_overload_no_more_run_than_keep_their_tpot() {
    let (peak, attained) = serve_overload(Some(pacer()), overload(400, 11_000));
    let (fifo_peak, fifo_attained) = serve_overload(None, overload(400, 11_000));
    assert!(peak < 30 && fifo_peak > 60, "{peak} at once, {fifo_peak} by fifo");
    assert!(attained > 2 * fifo_attained, "{attained} attained, {fifo_attained} by fifo");
}

#[test]
fn what_late_prompts_ask_for_does_not_limit_those_in_time() {
    let peak_beside = |tpot_us| {
        let late = (1000..1200).map(|id| GenerationRequest {
            class: 1,
            arrival: Micros::from_millis(400),
            slo: Slo { ttft: Some(Micros(1)), tpot: Some(Micros(tpot_us)) },
            ..timed::request(id, 20)
        });
        let mut requests: Vec<_> = overload(20, 8500).into_iter().chain(late).collect();
        requests.sort_by_key(|request| request.arrival);
        serve_overload(Some(pacer()), requests).0
    };
    let (modest, demanding) = (peak_beside(8500), peak_beside(7600));
    assert!(
        demanding * 10 >= modest * 9,
        "{demanding} at once beside demanding ones, {modest} beside modest"
    );
}

/// A small game that is served by slack. Nothing bounds a chunk but the batch.
fn paced_game(slots: u32, target_blocks: u32, draft_tokens: u32) -> Game {
    let mut game = fifo_game(slots, target_blocks, draft_tokens);
    let scheduler = Scheduler::new(game_limits(slots, target_blocks)).paced(pacer());
    game.core = EngineCore::new(scheduler, Box::new(Static::new(Fixed { draft_tokens })));
    game
}

fn fifo_game(slots: u32, target_blocks: u32, draft_tokens: u32) -> Game {
    let options = ShadowOptions::small(target_blocks, target_blocks);
    Game::with(game_limits(slots, target_blocks), options, draft_tokens)
}

fn game_limits(slots: u32, target_blocks: u32) -> SchedulerLimits {
    let limits = game::limits(target_blocks);
    SchedulerLimits {
        running_requests_max: slots,
        prefill_chunk_tokens_max: limits.batch_tokens_max,
        ..limits
    }
}

fn of_class(class: u8, id: u64) -> GenerationRequest {
    GenerationRequest { class, ..game::request(id, 20, 40) }
}

/// Requests that were displaced while two of class `running` ran and one of `arriving` came.
fn displaced(running: u8, arriving: u8) -> Vec<u64> {
    let mut game = paced_game(2, 64, 3);
    let requests = [of_class(running, 1), of_class(running, 2), of_class(arriving, 3)];
    game.arrive(requests[0].clone());
    game.arrive(requests[1].clone());
    for _ in 0..4 {
        assert!(game.step());
    }
    let said = game.outputs.clone();
    assert!(said.len() == 2 && game.ends.is_empty(), "both are in the middle of their output");
    game.arrive(requests[2].clone());
    game.play_out();
    for request in &requests {
        assert_eq!(game.outputs[&request.id], game::expect(&game, request), "as it would say alone");
    }
    (1..=3).filter(|&id| game.summary(RequestId(id)).preemptions > 0).collect()
}

#[test]
fn at_the_limit_the_last_of_a_less_urgent_class_makes_room_and_says_the_same_in_the_end() {
    assert_eq!(displaced(1, 0), [2]);
    assert_eq!(displaced(3, 2), [2]);
}

#[test]
fn no_request_makes_room_for_one_of_its_own_class_or_of_a_less_urgent_one() {
    for (running, arriving) in [(0, 1), (0, 0), (1, 1)] {
        assert_eq!(displaced(running, arriving), [0; 0], "class {arriving} came upon class {running}");
    }
}

#[test]
fn only_as_many_are_displaced_as_come() {
    let mut game = paced_game(4, 64, 0);
    for id in 1..=4 {
        game.arrive(of_class(1, id));
    }
    for _ in 0..3 {
        game.step();
    }
    game.arrive(of_class(0, 5));
    game.step();
    let gauges = game.core.scheduler().gauges();
    assert_eq!((gauges.running, gauges.waiting, gauges.preemptions), (4, 1, 1));
}

#[test]
fn the_only_slot_is_not_taken_from_the_one_that_runs() {
    let mut game = paced_game(1, 64, 0);
    game.arrive(of_class(1, 1));
    game.step();
    game.arrive(of_class(0, 2));
    game.play_out();
    assert_eq!(game.core.scheduler().gauges().preemptions, 0);
}

#[test]
fn a_displaced_stream_resumes_before_new_prompts_of_the_urgent_class() {
    let mut game = paced_game(2, 64, 0);
    game.arrive(of_class(1, 1));
    game.arrive(of_class(1, 2));
    for _ in 0..3 {
        game.step();
    }
    game.arrive(GenerationRequest { max_tokens: 5, ..of_class(0, 3) });
    game.step();
    assert_eq!(game.core.scheduler().gauges().preemptions, 1);
    // the second was displaced; when the third has ended, it goes before the fourth
    while !game.ends.contains_key(&RequestId(3)) {
        assert!(game.step());
    }
    game.arrive(GenerationRequest { arrival: game.now, ..of_class(1, 4) });
    let plan = game.plan().expect("work is left");
    assert_eq!(prefills(&plan).first().map(|&(id, _)| id), Some(2));
    game.finish(plan);
    game.play_out();
}

/// Requests of any class, size and objective.
fn random_requests(seed: u64) -> Vec<GenerationRequest> {
    let mut random = SplitMix64::new(seed);
    let mut one = |id| {
        let mut below = |bound| random.below(bound);
        let objective = |draw: u64| (!draw.is_multiple_of(3)).then_some(Micros(draw * 500));
        let sampling = SamplingParams { temperature: below(2) as f32, seed: id, ..SamplingParams::greedy() };
        GenerationRequest {
            class: below(3) as u8,
            slo: Slo { ttft: objective(below(100)), tpot: objective(below(40)) },
            sampling: Arc::new(sampling),
            ..game::request(id, 1 + below(150) as u32, 1 + below(40) as u32)
        }
    };
    (0..24).map(&mut one).collect()
}

/// All outputs, of requests that arrive one every other step, and how many were preempted.
fn outputs(mut game: Game, requests: &[GenerationRequest]) -> (BTreeMap<RequestId, Vec<TokenId>>, u64) {
    for request in requests {
        game.arrive(GenerationRequest { arrival: game.now, ..request.clone() });
        game.step();
        game.step();
    }
    game.play_out();
    assert_eq!(game.ends.len(), requests.len());
    assert_eq!(game.core.scheduler().gauges().target_kv.held, 0);
    (game.outputs, game.core.scheduler().gauges().preemptions)
}

#[test]
fn the_order_of_service_changes_no_output() {
    let mut preemptions = 0;
    for seed in 0..20 {
        let requests = random_requests(seed);
        for (slots, blocks) in [(8, 64), (4, 24)] {
            let (paced, preempted) = outputs(paced_game(slots, blocks, 4), &requests);
            preemptions += preempted;
            let (fifo, _) = outputs(fifo_game(slots, blocks, 4), &requests);
            for request in &requests {
                let id = request.id;
                assert_eq!(paced[&id].len(), request.max_tokens as usize, "request {id} of seed {seed}");
                assert_eq!(paced[&id], fifo[&id], "request {id} of seed {seed}");
            }
        }
    }
    assert!(preemptions > 20, "{preemptions} preemptions try little");
}

#[test]
fn blocks_that_are_published_when_they_are_wanted_are_found_by_those_that_are_let_in() {
    let play = |at_once: bool| {
        let mut game = paced_game(4, 64, 0);
        game.settles = at_once;
        let prompt = game::request(1, 40, 1).prompt;
        let mut steps = Vec::new();
        for id in 1..=6 {
            game.arrive(GenerationRequest { prompt: prompt.clone(), ..game::request(id, 40, 60) });
            let plan = game.plan().expect("one arrived");
            steps.push(prefills(&plan));
            game.finish(plan);
        }
        game.play_out();
        (steps, game.core.scheduler().gauges())
    };
    let (steps, gauges) = play(true);
    assert!(gauges.prefix_hit_tokens > 0);
    assert_eq!((steps, gauges), play(false));
}
