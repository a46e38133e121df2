//! How many requests may run.

use super::super::{Demand, Pacer};
use super::{experienced, finished, pacer, row, step};
use crate::protocol::Micros;

const MOST: u32 = 64;
/// Between arrivals in overload: even 64 at once are not served as fast.
const OVERLOAD_US: u64 = 20_000;

fn demand(tpot_us: Option<u64>, weight: f32) -> Demand {
    Demand { tpot_us, ttft: false, weight }
}

/// The limit for requests that all have one objective.
fn limit(pacer: &mut Pacer, tpot_us: u64) -> u32 {
    pacer.running_limit([demand(Some(tpot_us), 1.0); 40].into_iter(), MOST)
}

#[test]
fn there_is_no_limit_before_any_request_finished() {
    let mut pacer = pacer();
    for arrival in 0..200 {
        pacer.observe_arrival(Micros(arrival));
    }
    // a step of 512 takes twice as long
    let demands = [demand(Some(7200), 1.0)];
    assert_eq!(pacer.running_limit(demands.into_iter(), 512), 512);
    pacer.observe(&finished(400, 100, 8000));
    assert!(pacer.running_limit(demands.into_iter(), 512) < 512);
}

#[test]
fn there_is_no_limit_without_tpot_objectives() {
    let mut pacer = experienced(OVERLOAD_US);
    assert_eq!(pacer.running_limit([demand(None, 1.0); 40].into_iter(), MOST), MOST);
    assert_eq!(pacer.running_limit(std::iter::empty(), MOST), MOST);
}

#[test]
fn there_is_no_limit_while_arrivals_are_slow() {
    for interarrival_us in [300_000, 1_000_000, 1_000_000_000] {
        assert_eq!(limit(&mut experienced(interarrival_us), 10_000), MOST, "{interarrival_us} µs");
    }
    let mut seldom = pacer();
    seldom.observe(&finished(400, 100, 8000));
    assert_eq!(limit(&mut seldom, 10_000), MOST, "one arrival at most");
}

#[test]
fn in_overload_the_limit_keeps_the_time_per_token_within_the_objective() {
    for interarrival_us in [5000, OVERLOAD_US] {
        let mut pacer = experienced(interarrival_us);
        for tpot_us in [8000, 9000, 10_000, 12_000] {
            let limit = limit(&mut pacer, tpot_us);
            let (at, beyond) = (pacer.token_us(limit), pacer.token_us(limit * 2));
            assert!(at <= tpot_us as f64, "{limit} at once take {at} µs of {tpot_us}");
            assert!(beyond > tpot_us as f64, "twice {limit} would take {beyond} µs of {tpot_us}");
        }
    }
}

#[test]
fn a_tighter_objective_has_a_lower_limit() {
    let mut pacer = experienced(OVERLOAD_US);
    let limits: Vec<u32> = [8000, 9000, 10_000, 12_000].map(|tpot_us| limit(&mut pacer, tpot_us)).into();
    assert!(limits.is_sorted_by(|tighter, looser| tighter < looser), "{limits:?}");
}

#[test]
fn slots_that_would_be_too_slow_do_not_raise_the_limit() {
    let mut pacer = experienced(OVERLOAD_US);
    let ask = |pacer: &mut Pacer, most| pacer.running_limit([demand(Some(10_000), 1.0)].into_iter(), most);
    // with 256 slots requests would be served as they arrive, each too slowly
    assert_eq!(ask(&mut pacer, 256), ask(&mut pacer, MOST));
    assert_eq!(ask(&mut pacer, 3), 3);
}

#[test]
fn the_wider_tpot_spreads_the_more_headroom_is_left() {
    let spread_by = |thousandths: u64| {
        let mut pacer = experienced(OVERLOAD_US);
        for count in 0..200 {
            pacer.observe(&finished(400, 100, if count % 2 == 0 { 8000 } else { 8 * thousandths }));
        }
        limit(&mut pacer, 12_000)
    };
    assert!(spread_by(1300) < spread_by(1000));
}

#[test]
fn any_objective_and_any_weight_give_a_limit() {
    let mut pacer = experienced(OVERLOAD_US);
    for tpot_us in [0, 1, 1_000_000_000_000, u64::MAX] {
        for weight in [0.0, 1e-30, 1.0, f32::MAX] {
            for ttft in [false, true] {
                let demands = [Demand { tpot_us: Some(tpot_us), ttft, weight }; 3];
                let limit = pacer.running_limit(demands.into_iter(), MOST);
                assert!((1..=MOST).contains(&limit), "{limit} for {tpot_us} µs of weight {weight}");
            }
        }
    }
    assert_eq!(limit(&mut pacer, u64::MAX), MOST, "all are within it");
    assert_eq!(pacer.running_limit([demand(Some(9000), 0.0); 9].into_iter(), MOST), MOST, "worth nothing");
}

#[test]
fn an_objective_that_no_batch_can_meet_does_not_count() {
    let mut pacer = experienced(OVERLOAD_US);
    for hopeless in [1, 1000, 5000] {
        assert_eq!(limit(&mut pacer, hopeless), MOST, "a step takes 7 ms, not {hopeless} µs");
        let beside = [demand(Some(hopeless), 100.0), demand(Some(10_000), 1.0)];
        assert_eq!(pacer.running_limit(beside.into_iter(), MOST), limit(&mut pacer, 10_000));
    }
    assert!(limit(&mut pacer, 7500) < MOST);
}

#[test]
fn weights_decide_between_two_objectives() {
    let mut pacer = experienced(OVERLOAD_US);
    let (tight, loose) = (limit(&mut pacer, 8500), limit(&mut pacer, 16_000));
    let mut weighed = |of_tight, of_loose| {
        let demands = [demand(Some(8500), of_tight), demand(Some(16_000), of_loose)];
        pacer.running_limit(demands.into_iter(), MOST)
    };
    let (for_tight, for_loose) = (weighed(100.0, 1.0), weighed(1.0, 100.0));
    assert!(for_tight.abs_diff(tight) <= 1, "{for_tight}, {tight} alone");
    assert!(for_loose.abs_diff(loose) <= 1, "{for_loose}, {loose} alone");
    assert!(for_tight * 2 < for_loose);
}

#[test]
fn requests_without_an_objective_are_attained_at_any_size() {
    let mut pacer = experienced(OVERLOAD_US);
    let mut beside =
        |free: f32| pacer.running_limit([demand(Some(9000), 1.0), demand(None, free)].into_iter(), MOST);
    assert!(beside(0.0) < beside(0.6) && beside(100.0) == MOST);
}

#[test]
fn objectives_nearly_alike_are_one_whose_weights_add_up() {
    let mut pacer = experienced(OVERLOAD_US);
    let spread = (0..40).map(|n| demand(Some(8500 + n), 1.0)).chain([demand(Some(16_000), 1.0)]);
    let summed = [demand(Some(8500), 40.0), demand(Some(16_000), 1.0)];
    let expected = pacer.running_limit(summed.into_iter(), MOST);
    assert_eq!(pacer.running_limit(spread, MOST), expected);
    assert_eq!(pacer.buffers.objectives.len(), 2);
}

#[test]
fn many_different_objectives_stay_a_short_list() {
    let mut pacer = experienced(OVERLOAD_US);
    let demands = (0..10_000).map(|n| demand(Some(8000 + n * 7919 % 10_000), 1.0));
    pacer.running_limit(demands, MOST);
    let listed = pacer.buffers.objectives.len();
    assert!((8..100).contains(&listed), "{listed} objectives");
}

#[test]
fn where_waiting_can_cost_a_ttft_a_limit_must_promise_more() {
    // the slowest arrivals, in ms, at which requests are held back
    let slowest = |ttft| {
        let held = |&ms: &u64| {
            let demands = [Demand { ttft, ..demand(Some(10_000), 1.0) }; 9];
            experienced(ms * 1000).running_limit(demands.into_iter(), MOST) < MOST
        };
        (5..200).filter(held).max()
    };
    let (unhurried, hurried) = (slowest(false), slowest(true));
    assert!(hurried.is_some() && hurried < unhurried, "{hurried:?}, {unhurried:?} without TTFT");
}

#[test]
fn prefill_counts_at_the_rate_of_arrivals_until_it_follows_every_output() {
    let batch = 10;
    let time = |interarrival_us| experienced(interarrival_us).token_us(batch);
    let alone_us = time(1_000_000_000_000);
    // ten prompts of 10.2 ms for every hundred tokens of each
    let all_us = alone_us + 10.0 * 102.1;
    let close = |a: f64, b: f64| (a - b).abs() < 0.005 * b;
    assert!(close(time(5000), all_us) && close(time(10_300), all_us));
    // a tenth of the time
    assert!(close(time(102_100), alone_us / 0.9));
}

#[test]
fn drafts_that_are_accepted_make_room_for_more() {
    let mut pacer = experienced(OVERLOAD_US);
    let before = limit(&mut pacer, 9000);
    for _ in 0..200 {
        let report = step(&pacer, vec![row(10, 0, None); 4], 1, 1.2);
        pacer.observe(&report);
    }
    assert!(limit(&mut pacer, 9000) > 2 * before);
}
