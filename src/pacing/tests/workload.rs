//! Means of what was observed.

use super::{bound_by_memory_up_to_256_rows, finished, pacer, row, step};
use crate::protocol::{DraftCounts, Micros, StepReport};

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 0.01 * b.abs()
}

#[test]
fn first_values_count_alike_and_then_the_past_is_forgotten() {
    let mut pacer = pacer();
    assert_eq!(pacer.load.output_tokens(), None);
    for output_tokens in [10, 20, 60] {
        pacer.observe(&finished(100, output_tokens, 8000));
    }
    assert!(close(pacer.load.output_tokens().expect("some finished"), 30.0));
    for _ in 0..64 {
        pacer.observe(&finished(100, 30, 8000));
    }
    // the plain mean would stay at 31 after so many
    for _ in 0..640 {
        pacer.observe(&finished(100, 300, 8000));
    }
    assert!(close(pacer.load.output_tokens().expect("some finished"), 300.0));
}

#[test]
fn steps_are_forgotten_sooner_than_requests() {
    let mut pacer = pacer();
    for _ in 0..100 {
        pacer.observe(&finished(100, 100, 8000));
        let report = step(&pacer, vec![row(5, 0, None)], 1, 1.0);
        pacer.observe(&report);
    }
    for _ in 0..64 {
        pacer.observe(&finished(100, 200, 8000));
        let report = step(&pacer, vec![row(5, 0, None)], 2, 1.0);
        pacer.observe(&report);
    }
    let remembered = |value: f64, from: f64, to: f64| (to - value) / (to - from);
    assert!(close(remembered(pacer.load.tokens(), 2.0, 3.0), (1.0 - 1.0 / 32.0f64).powi(64)));
    let output_tokens = pacer.load.output_tokens().expect("some finished");
    assert!(close(remembered(output_tokens, 100.0, 200.0), (1.0 - 1.0 / 64.0f64).powi(64)));
}

#[test]
fn steps_tell_tokens_context_and_what_drafting_costs() {
    let mut pacer = pacer();
    assert_eq!((pacer.load.tokens(), pacer.load.stretch(), pacer.load.context_tokens()), (1.0, 1.0, 0.0));
    let report = step(&pacer, vec![row(5, 0, None); 4], 2, 1.5);
    pacer.observe(&report);
    assert!(close(pacer.load.tokens(), 3.0) && close(pacer.load.stretch(), 1.5));
    assert!(close(pacer.load.context_tokens(), 500.0));
    assert!(close(pacer.decode_us(&[row(5, 0, None)]), 1.5 * pacer.time.plain_step_us(1, 500)));
}

#[test]
fn rows_are_counted_per_request_whether_or_not_their_drafts_are_accepted() {
    let mut pacer = pacer();
    assert_eq!((pacer.load.rows(), pacer.verify_rows(10)), (1.0, 10));
    let verified = |drafts: [u32; 4]| StepReport {
        counts: drafts.map(|verified| DraftCounts { verified, accepted: 0 }).to_vec(),
        ..step(&self::pacer(), vec![row(5, 0, None); 4], 0, 1.0)
    };
    pacer.observe(&verified([0, 1, 2, 3]));
    assert_eq!((pacer.load.rows(), pacer.verify_rows(10)), (2.5, 25));
    pacer.observe(&verified([5, 5, 0, 0]));
    assert_eq!((pacer.load.rows(), pacer.load.tokens()), (3.0, 1.0));
}

#[test]
fn prefill_is_no_part_of_what_decoding_takes() {
    let mut pacer = pacer();
    let mut report = step(&pacer, vec![row(5, 0, None)], 0, 1.0);
    report.prefill_tokens = 1000;
    report.step_time += Micros(pacer.time.prefill_us(1, 1000, 0) as u64);
    pacer.observe(&report);
    assert!(close(pacer.load.stretch(), 1.0), "{}", pacer.load.stretch());
}

#[test]
fn one_step_that_hangs_is_not_taken_at_its_word_and_one_without_decoding_tells_nothing() {
    let mut pacer = pacer();
    let report = step(&pacer, Vec::new(), 0, 1.0);
    pacer.observe(&report);
    assert_eq!((pacer.load.tokens(), pacer.load.stretch()), (1.0, 1.0));
    let report = step(&pacer, vec![row(5, 0, None)], 0, 1e6);
    pacer.observe(&report);
    assert!(close(pacer.load.stretch(), 8.0));
}

#[test]
fn prefill_is_counted_per_output_token_and_as_a_share_of_the_time_between_arrivals() {
    let mut pacer = pacer();
    assert_eq!((pacer.load.prefill_share(), pacer.load.prefill_us_per_token()), (0.0, 0.0));
    // 10.21 ms
    pacer.observe(&finished(400, 100, 8000));
    assert!(close(pacer.load.prefill_us_per_token(), 102.1));
    assert_eq!(pacer.load.interarrival_us(), f64::INFINITY);
    for arrival in [0, 10_000, 40_000] {
        pacer.observe_arrival(Micros(arrival));
    }
    assert!(close(pacer.load.interarrival_us(), 20_000.0));
    assert!(close(pacer.load.prefill_share(), 0.5105));
}

#[test]
fn a_prompt_is_priced_at_what_its_tokens_take_in_steps_that_several_share() {
    let mut pacer = pacer();
    // 50 µs and 25 µs a token: 100 µs, then 500 µs
    for prefill_tokens in [2, 18] {
        let report = step(&pacer, vec![row(5, 0, None)], 0, 1.0);
        pacer.observe(&StepReport { prefill_tokens, ..report });
    }
    // so 30 µs a token over both, where a prompt with a step to itself would take 25.5
    pacer.observe(&finished(400, 100, 8000));
    let price_us = pacer.load.prefill_us_per_token();
    assert!((price_us - 400.0 * 30.0 / 100.0).abs() < 1e-6, "{price_us}");
}

#[test]
fn a_prompt_is_priced_beside_the_rows_that_decoded_and_were_verified_with_it() {
    let mut pacer = bound_by_memory_up_to_256_rows();
    // 64 requests with three drafts each are 256 rows: no token beside them is free
    let report = step(&pacer, vec![row(5, 0, None); 64], 3, 1.0);
    pacer.observe(&StepReport { prefill_tokens: 100, ..report });
    pacer.observe(&finished(400, 100, 8000));
    let price_us = pacer.load.prefill_us_per_token();
    assert!((price_us - 400.0 * 20.0 / 100.0).abs() < 1e-6, "{price_us}");
}

#[test]
fn arrivals_at_one_instant_are_a_microsecond_apart_at_least() {
    let mut pacer = pacer();
    pacer.observe_arrival(Micros(5));
    pacer.observe_arrival(Micros(5));
    assert_eq!(pacer.load.interarrival_us(), 1.0);
}

#[test]
fn the_spread_starts_from_a_guess_and_follows_what_is_seen() {
    let spread = |tpots_us: [u64; 2]| {
        let mut pacer = pacer();
        for count in 0..400 {
            pacer.observe(&finished(100, 100, tpots_us[count % 2]));
        }
        pacer.load.spread()
    };
    assert!(close(pacer().load.spread(), 0.15));
    let (equal, wide) = (spread([8000, 8000]), spread([8000, 16_000]));
    assert!((0.05..0.1).contains(&equal), "{equal}");
    // half of ln 2, and a part of the guess
    assert!((0.3..0.35).contains(&wide), "{wide}");
}

#[test]
fn outputs_of_one_token_or_all_at_once_have_no_tpot_to_learn_from() {
    let mut pacer = pacer();
    for _ in 0..100 {
        pacer.observe(&finished(100, 1, 0));
        pacer.observe(&finished(100, 50, 0));
    }
    assert!(close(pacer.load.spread(), 0.15));
}

#[test]
fn the_state_shows_what_was_learned() {
    let mut pacer = pacer();
    pacer.observe(&finished(400, 100, 8000));
    let state = pacer.state();
    assert_eq!(state["output_tokens"], 100.0);
    assert_eq!(state["decode_stretch"], 1.0);
}
