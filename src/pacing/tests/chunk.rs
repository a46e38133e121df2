//! How much prefill a step takes.

use super::super::Pacer;
use super::super::chunk::CHUNK_FLOOR;
use super::{experienced, finished, pacer, row, step};
use crate::protocol::{DecodeView, Micros, PrefillView, RequestId};
use crate::timing::cost_model::prefill_attended;

/// A prompt that has so many tokens to go.
fn prefilling(remaining_tokens: u32) -> PrefillView {
    PrefillView {
        request: RequestId(9),
        done_tokens: 0,
        remaining_tokens,
        since_arrival: Micros::ZERO,
        ttft: None,
    }
}

/// A request that has to take 9 ms a token and is 2 ms behind, which is a little more than one step
/// of decoding brings back; plus a credit.
fn running(credit_us: u64) -> DecodeView {
    row(101, 902_000 - credit_us, Some(9000))
}

/// What `tokens` of one new prompt cost `decoding` in expectation, as the module's text has it.
fn losses(pacer: &Pacer, decoding: &[DecodeView], output_tokens: f64, tokens: u32) -> f64 {
    let per_step = pacer.load.tokens();
    let decode_us = pacer.decode_us(decoding);
    let prefill_us =
        pacer.time.prefill_us(pacer.verify_rows(decoding.len()), tokens, prefill_attended(0, tokens));
    let missed = |row: &DecodeView, prefill_us: f64, yielded: f64| {
        let objective_us = row.tpot.expect("has one").0 as f64;
        let credit_us = objective_us * f64::from(row.output_tokens - 1) - row.since_first_token.0 as f64;
        let behind_us = decode_us + prefill_us - objective_us * yielded - credit_us;
        let back_us = (objective_us - decode_us / per_step) * output_tokens;
        let x = behind_us.max(0.0) / back_us;
        x / (1.0 + x)
    };
    // one token, or some drafts are accepted
    let chance = |row: &DecodeView, prefill_us: f64| {
        missed(row, prefill_us, 1.0) / per_step
            + missed(row, prefill_us, 1.0 + per_step) * (1.0 - 1.0 / per_step)
    };
    decoding.iter().map(|row| chance(row, prefill_us) - chance(row, 0.0)).sum()
}

#[test]
fn all_is_prefilled_while_nothing_decodes() {
    assert_eq!(pacer().chunk(&[], &[prefilling(300), prefilling(500)], &[], 2048), 800);
    assert_eq!(pacer().chunk(&[], &[prefilling(3000)], &[], 2048), 2048);
    assert_eq!(pacer().chunk(&[], &[], &[], 2048), 0);
}

#[test]
fn all_is_prefilled_if_no_running_request_has_a_tpot_objective() {
    let decoding = vec![row(10, 900_000, None); 8];
    assert_eq!(pacer().chunk(&decoding, &[prefilling(3000)], &[], 2048), 2048);
}

#[test]
fn requests_without_credit_let_no_more_through_than_the_floor() {
    let decoding = vec![running(0); 8];
    assert_eq!(pacer().chunk(&decoding, &[prefilling(3000)], &[], 2048), CHUNK_FLOOR);
    assert_eq!(experienced(20_000).chunk(&decoding, &[prefilling(3000)], &[], 2048), CHUNK_FLOOR);
}

#[test]
fn requests_with_credit_let_prefill_through_up_to_a_negligible_loss() {
    for (mut pacer, output_tokens) in [(pacer(), 64.0), (experienced(20_000), 100.0)] {
        let decoding = vec![running(30_000); 8];
        let chunk = pacer.chunk(&decoding, &[prefilling(3000)], &[], 2048);
        // 30 ms of 25 µs each
        assert!((1100..1200).contains(&chunk), "{chunk}");
        let negligible = 0.01 * 8.0 / output_tokens;
        assert!(losses(&pacer, &decoding, output_tokens, chunk) <= negligible);
        assert!(losses(&pacer, &decoding, output_tokens, chunk + 1) > negligible);
        let rich = vec![running(900_000); 8];
        assert_eq!(pacer.chunk(&rich, &[prefilling(3000)], &[], 2048), 2048);
    }
}

/// Has seen steps of about 11 ms that yield three tokens.
fn drafting(decoding: &[DecodeView]) -> Pacer {
    let mut pacer = pacer();
    for _ in 0..32 {
        let report = step(&pacer, decoding.to_vec(), 2, 1.5);
        pacer.observe(&report);
    }
    pacer
}

#[test]
fn drafts_that_are_accepted_let_a_hurried_prompt_have_more() {
    let decoding = vec![running(0); 16];
    let plain = pacer().chunk(&decoding, &[prefilling(3000)], &[2048], 2048);
    let mut pacer = drafting(&decoding);
    let chunk = pacer.chunk(&decoding, &[prefilling(3000)], &[2048], 2048);
    assert!(chunk > plain, "{chunk}, {plain} without drafts");
    assert!(losses(&pacer, &decoding, 64.0, chunk) <= 1.0);
    assert!(losses(&pacer, &decoding, 64.0, chunk + 1) > 1.0);
}

#[test]
fn prefill_that_can_wait_does_not_count_on_drafts_being_accepted() {
    // Three tokens in their first step would leave 34 ms for prefill. One token leaves 4 ms.
    let decoding = vec![row(1, 0, Some(15_000)); 4];
    let chunk = drafting(&decoding).chunk(&decoding, &[prefilling(3000)], &[], 2048);
    assert!((100..300).contains(&chunk), "{chunk}");
}

#[test]
fn the_poorest_request_decides_and_not_the_mean() {
    let mut decoding = vec![running(900_000); 7];
    decoding.push(running(0));
    assert_eq!(pacer().chunk(&decoding, &[prefilling(3000)], &[], 2048), CHUNK_FLOOR);
}

#[test]
fn a_request_that_is_lost_already_holds_nothing_back() {
    // more than 30 s behind
    let decoding = vec![row(101, 30_900_000, Some(7500)); 8];
    assert_eq!(pacer().chunk(&decoding, &[prefilling(3000)], &[], 2048), 2048);
    // no step of decoding is as fast as it asks
    let decoding = vec![row(101, 900_000, Some(1)); 8];
    assert_eq!(pacer().chunk(&decoding, &[prefilling(3000)], &[], 2048), 2048);
}

#[test]
fn a_prompt_in_a_hurry_gets_its_pace_if_that_costs_one_request_at_most() {
    let decoding = vec![running(0); 2];
    let mut pacer = pacer();
    assert_eq!(pacer.chunk(&decoding, &[prefilling(3000)], &[300], 2048), 300);
    // no prompt needs more than this chunk
    assert_eq!(pacer.chunk(&decoding, &[prefilling(3000)], &[0], 2048), CHUNK_FLOOR);
    let rich = vec![running(30_000); 2];
    let free = pacer.chunk(&rich, &[prefilling(3000)], &[], 2048);
    assert_eq!(pacer.chunk(&rich, &[prefilling(3000)], &[free - 100, 5], 2048), free);
}

#[test]
fn prompts_in_a_hurry_cost_no_more_requests_than_they_are() {
    // a step of 2048 tokens would cost some five of them
    let decoding = vec![running(0); 16];
    let mut pacer = pacer();
    for hurried in 1..=3 {
        let paces = vec![2048; hurried];
        let chunk = pacer.chunk(&decoding, &[prefilling(3000)], &paces, 2048);
        assert!(losses(&pacer, &decoding, 64.0, chunk) <= hurried as f64);
        assert!(losses(&pacer, &decoding, 64.0, chunk + 1) > hurried as f64);
    }
    assert_eq!(pacer.chunk(&decoding, &[prefilling(3000)], &[2048; 16], 2048), 2048);
    let one = pacer.chunk(&decoding, &[prefilling(3000)], &[2048], 2048);
    assert_eq!(pacer.chunk(&decoding, &[prefilling(3000)], &[2048, 0, 0], 2048), one, "two have time");
}

#[test]
fn the_most_hurried_prompt_sets_the_pace() {
    let decoding = vec![running(0); 2];
    assert_eq!(pacer().chunk(&decoding, &[prefilling(3000)], &[100, 400, 200], 2048), 400);
}

#[test]
fn context_that_is_attended_to_costs_time_as_well() {
    let decoding = vec![running(30_000); 8];
    let deep = PrefillView { done_tokens: 20_000, ..prefilling(3000) };
    let fresh = pacer().chunk(&decoding, &[prefilling(3000)], &[], 2048);
    let behind = pacer().chunk(&decoding, std::slice::from_ref(&deep), &[], 2048);
    assert!(behind < fresh * 2 / 3, "{behind} of {fresh}");
    // the first in the order goes first
    let short_first = pacer().chunk(&decoding, &[prefilling(500), deep], &[], 2048);
    assert!(behind < short_first && short_first < fresh, "{behind}, {short_first}, {fresh}");
}

#[test]
fn prefill_makes_progress_and_stays_within_what_is_there_and_allowed() {
    let decoding = vec![running(0); 8];
    for (remaining, most, expected) in
        [(3000, 2048, 16), (5, 2048, 5), (3000, 7, 7), (3000, 0, 0), (0, 2048, 0)]
    {
        let chunk = pacer().chunk(&decoding, &[prefilling(remaining)], &[], most);
        assert_eq!(chunk, expected, "{remaining} tokens, at most {most}");
        let hurried = pacer().chunk(&decoding, &[prefilling(remaining)], &[u32::MAX; 9], most);
        assert_eq!(hurried, remaining.min(most), "{remaining} tokens in a hurry, at most {most}");
    }
    let many = vec![prefilling(1 << 31); 2];
    assert_eq!(pacer().chunk(&[], &many, &[], 2048), 2048, "their sum is out of range");
}

#[test]
fn the_longer_outputs_are_the_sooner_a_delay_is_made_up_for() {
    let chunk = |output_tokens| {
        let mut pacer = pacer();
        pacer.observe(&finished(400, output_tokens, 8000));
        pacer.chunk(&vec![running(0); 16], &[prefilling(3000)], &[2048], 2048)
    };
    assert!(chunk(50) < chunk(100) && chunk(100) < chunk(200));
}

#[test]
fn credit_that_no_decoding_brings_back_is_not_overdrawn() {
    // 5 ms a token cannot be kept; 8 ms are left of what was saved
    let decoding = [row(101, 490_000, Some(5000))];
    let chunk = pacer().chunk(&decoding, &[prefilling(3000)], &[], 2048);
    assert!((250..350).contains(&chunk), "{chunk}");
}
