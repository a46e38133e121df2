//! Latency objectives inside a step: slack, what a step may cost, how much to prefill.
//!
//! A request with objective `τ` that has `n` tokens out since its first, `a` microseconds
//! after its first, has after a step of length `T` that yields `E` tokens a mean time per
//! token of `(a + T)/(n + E)`. So the step may last at most `τ·(n + E) − a`: the credit
//! `τ·n − a` earned so far plus `τ` for each token of this step (docs/slo.md). The inputs are the
//! views of the step and the prefill terms of the time model.

use crate::protocol::{DecodeView, PrefillView, Slo};
use crate::timing::cost_model::prefill_attended;

/// Fraction of the TPOT objective that the planner aims for, leaving headroom.
pub const TPOT_AIM: f64 = 0.94;
/// Fraction of the TPOT objective that the planner aims for while a request catches up, unless a
/// plain step takes longer.
pub const RECOVERY_AIM: f64 = 0.75;

/// Fraction of the time left until the TTFT deadline in which a prompt is planned to be
/// prefilled, leaving headroom for speculative steps and later arrivals.
pub const TTFT_AIM: f64 = 0.6;
/// Plain steps within which a request must be able to make up for a step that was lengthened by
/// urgent prefill; with speculation it takes fewer.
pub const BORROWED_STEPS: f64 = 16.0;

/// A request's state against its TPOT objective before a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SloState {
    /// No TPOT objective.
    Unconstrained,
    /// A plain step keeps the request within its objective. Its bound constrains every step.
    OnTrack,
    /// Behind its objective, and plain steps are fast enough to catch up. Steps are kept short.
    Recovering,
    /// Behind or about to be, and plain steps are too slow: only accepted drafts help. Served
    /// first where some step keeps all such bounds, otherwise best effort.
    NeedsSpeculation,
}

/// Longest step that a request allows, as a function of the tokens that it gets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TpotBound {
    /// Microseconds earned (or, if negative, owed) by the steps so far.
    pub credit_us: f64,
    /// Microseconds that each token of this step allows: `τ`.
    pub token_us: f64,
}

impl TpotBound {
    /// The longest step for `tokens` expected tokens, in microseconds.
    pub fn deadline_us(&self, tokens: f64) -> f64 {
        self.credit_us + self.token_us * tokens
    }
}

/// A request's state and its bound on the step, given the length of a plain step.
///
/// Bounds hold in expectation, but acceptance is random: a request planned to meet its objective
/// exactly misses it half of the time. Hence the headroom of [`TPOT_AIM`], and of [`RECOVERY_AIM`]
/// for a request that has fallen behind.
pub fn tpot_bound(row: &DecodeView, plain_us: f64) -> (SloState, Option<TpotBound>) {
    let Some(tpot) = row.tpot else { return (SloState::Unconstrained, None) };
    let objective_us = tpot.0 as f64;
    let token_us = objective_us * TPOT_AIM;
    let elapsed_us = row.since_first_token.0 as f64;
    let credit_us = token_us * f64::from(row.output_tokens.saturating_sub(1)) - elapsed_us;
    let bound = TpotBound { credit_us, token_us };
    if plain_us <= bound.deadline_us(1.0) {
        return (SloState::OnTrack, Some(bound));
    }
    let credit_us = credit_us.max(0.0);
    if plain_us <= objective_us {
        let token_us = (objective_us * RECOVERY_AIM).max(plain_us);
        return (SloState::Recovering, Some(TpotBound { credit_us, token_us }));
    }
    (SloState::NeedsSpeculation, Some(TpotBound { credit_us, token_us: objective_us }))
}

/// Longest step that a request can absorb for the sake of urgent prefill, in microseconds: the
/// [`BORROWED_STEPS`] plain steps after it bring the request back to its aim. `None` without an
/// objective, or if plain steps are slower than the aim.
///
/// TPOT is a mean over the whole output, so later steps can compensate for a long one. Debts do
/// not accumulate: earlier delays are part of `a`.
pub fn tolerable_us(row: &DecodeView, plain_us: f64) -> Option<f64> {
    let token_us = row.tpot?.0 as f64 * TPOT_AIM;
    let credit_us = token_us * f64::from(row.output_tokens) - row.since_first_token.0 as f64;
    (plain_us < token_us).then_some(credit_us + BORROWED_STEPS * (token_us - plain_us))
}

/// What prefilling costs: the terms of the time model, corrections included.
pub trait PrefillCost {
    /// Microseconds that `tokens` prefill tokens attending to `attended_tokens` add to a step.
    fn prefill_us(&self, tokens: u32, attended_tokens: u64) -> f64;
}

impl PrefillCost for crate::timing::correction::TimeModel {
    fn prefill_us(&self, tokens: u32, attended_tokens: u64) -> f64 {
        crate::timing::correction::TimeModel::prefill_us(self, tokens, attended_tokens)
    }
}

/// Context attended to when the queue's first `tokens` tokens are prefilled in order.
pub fn queue_attended(queue: &[PrefillView], tokens: u32) -> u64 {
    let mut left = tokens;
    let mut attended = 0;
    for view in queue {
        let chunk = left.min(view.remaining_tokens);
        attended += prefill_attended(view.done_tokens, chunk);
        left -= chunk;
        if left == 0 {
            break;
        }
    }
    attended
}

/// Microseconds that prefilling the queue's first `tokens` tokens adds to a step.
pub fn queue_us(cost: &impl PrefillCost, queue: &[PrefillView], tokens: u32) -> f64 {
    cost.prefill_us(tokens, queue_attended(queue, tokens))
}

/// Most prefill tokens, at most `tokens_max`, that add no more than `budget_us` to a step.
pub fn chunk_within(cost: &impl PrefillCost, queue: &[PrefillView], budget_us: f64, tokens_max: u32) -> u32 {
    let total = queue.iter().fold(0u32, |sum, view| sum.saturating_add(view.remaining_tokens));
    let (mut fits, mut too_many) = (0, tokens_max.min(total) + 1);
    while too_many - fits > 1 {
        let middle = fits + (too_many - fits) / 2;
        if queue_us(cost, queue, middle) <= budget_us { fits = middle } else { too_many = middle }
    }
    fits
}

/// Prefill tokens that this step needs so that, at this pace, every queued request meets its TTFT
/// objective if it still can.
///
/// The first `i` requests have `C` tokens to go and `L` µs left, of which [`TTFT_AIM`] is
/// planned with; where that is not enough, all of it is due now. Steps of `T + c·p` µs that
/// prefill `p` tokens each finish in time iff `(C/p)·(T + c·p) ≤ L`, that is
/// `p ≥ C·T/(L − c·C)`, where `T` is the rest of the step and `c` the cost per token.
pub fn prefill_needed(cost: &impl PrefillCost, queue: &[PrefillView], rest_us: f64, tokens_max: u32) -> u32 {
    let mut ahead = 0u32;
    let mut needed = 0.0f64;
    for view in queue {
        ahead = ahead.saturating_add(view.remaining_tokens);
        let Some(ttft) = view.ttft else { continue };
        let left_us = ttft.saturating_sub(view.since_arrival).0 as f64;
        let prefill_us = queue_us(cost, queue, ahead);
        if prefill_us < left_us {
            let tokens = f64::from(ahead);
            let room_us = (TTFT_AIM * left_us - prefill_us).max(rest_us);
            needed = needed.max((tokens * rest_us / room_us).min(tokens));
        }
    }
    (needed.ceil() as u32).min(tokens_max)
}

/// An objective that can't be met even on an idle machine, with the best achievable value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Infeasible {
    /// `ttft` or `tpot`.
    pub objective: &'static str,
    /// The requested objective, in microseconds.
    pub asked_us: f64,
    /// The time with plain decoding on an idle machine, in microseconds.
    pub best_us: f64,
}

impl std::fmt::Display for Infeasible {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (asked, best) = (self.asked_us * 1e-3, self.best_us * 1e-3);
        write!(
            f,
            "the {} objective of {asked:.3} ms can't be met: {best:.3} ms is the best here",
            self.objective
        )
    }
}

/// Checks objectives against plain decoding on an idle machine: `step_us` for one row,
/// and the prompt prefilled in chunks of `chunk_tokens`.
///
/// # Errors
/// The first objective that can't be met.
pub fn check_feasible(
    slo: &Slo,
    prompt_tokens: u32,
    step_us: f64,
    chunk_tokens: u32,
    cost: &impl PrefillCost,
) -> Result<(), Infeasible> {
    if let Some(tpot) = slo.tpot
        && (tpot.0 as f64) < step_us
    {
        return Err(Infeasible { objective: "tpot", asked_us: tpot.0 as f64, best_us: step_us });
    }
    let Some(ttft) = slo.ttft else { return Ok(()) };
    let best_us = ttft_alone_us(prompt_tokens, step_us, chunk_tokens, cost);
    if (ttft.0 as f64) < best_us {
        return Err(Infeasible { objective: "ttft", asked_us: ttft.0 as f64, best_us });
    }
    Ok(())
}

/// Time to first token of a prompt on an idle machine, in microseconds.
pub fn ttft_alone_us(prompt_tokens: u32, step_us: f64, chunk_tokens: u32, cost: &impl PrefillCost) -> f64 {
    let chunk = chunk_tokens.max(1);
    let mut total = 0.0;
    let mut done = 0;
    while done < prompt_tokens {
        let tokens = chunk.min(prompt_tokens - done);
        total += step_us + cost.prefill_us(tokens, prefill_attended(done, tokens));
        done += tokens;
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Micros, RequestId};

    /// Ten microseconds a token.
    struct Flat;

    impl PrefillCost for Flat {
        fn prefill_us(&self, tokens: u32, _: u64) -> f64 {
            10.0 * f64::from(tokens)
        }
    }

    fn row(output_tokens: u32, since_first_us: u64, tpot_us: Option<u64>) -> DecodeView {
        DecodeView {
            request: RequestId(0),
            context_tokens: 10,
            output_tokens,
            since_first_token: Micros(since_first_us),
            tpot: tpot_us.map(Micros),
            draft_lag_tokens: 1,
            drafts_max: 8,
            temperature: 0.0,
        }
    }

    fn prompt(remaining_tokens: u32, since_arrival_us: u64, ttft_us: Option<u64>) -> PrefillView {
        PrefillView {
            request: RequestId(0),
            done_tokens: 0,
            remaining_tokens,
            since_arrival: Micros(since_arrival_us),
            ttft: ttft_us.map(Micros),
        }
    }

    #[test]
    fn a_request_is_on_track_while_a_plain_step_keeps_its_mean_within_the_aim() {
        // Ten tokens since the first, aim 94 µs each: 940 µs allowed, 800 spent.
        let (state, bound) = tpot_bound(&row(11, 800, Some(100)), 230.0);
        assert_eq!(state, SloState::OnTrack);
        assert!((bound.unwrap().deadline_us(1.0) - 234.0).abs() < 1e-9);
        assert!((bound.unwrap().deadline_us(3.0) - 422.0).abs() < 1e-9);
        assert_eq!(tpot_bound(&row(11, 800, None), 1e9), (SloState::Unconstrained, None));
    }

    #[test]
    fn the_first_decode_step_has_no_credit_and_no_debt() {
        let (state, bound) = tpot_bound(&row(1, 0, Some(100)), 94.0);
        assert_eq!((state, bound.unwrap().credit_us), (SloState::OnTrack, 0.0));
    }

    #[test]
    fn a_request_behind_recovers_or_needs_speculation() {
        let (state, bound) = tpot_bound(&row(11, 1500, Some(100)), 60.0);
        assert_eq!((state, bound.unwrap().deadline_us(1.0)), (SloState::Recovering, 75.0));
        // A recovering request always allows a plain step.
        let (state, bound) = tpot_bound(&row(11, 1500, Some(100)), 98.0);
        assert_eq!((state, bound.unwrap().deadline_us(1.0)), (SloState::Recovering, 98.0));
        let (state, bound) = tpot_bound(&row(11, 1500, Some(100)), 130.0);
        assert_eq!((state, bound.unwrap().deadline_us(2.0)), (SloState::NeedsSpeculation, 200.0));
    }

    #[test]
    fn a_slightly_late_request_that_a_plain_step_restores_owes_its_debt() {
        let (state, bound) = tpot_bound(&row(11, 950, Some(100)), 60.0);
        assert_eq!(state, SloState::OnTrack);
        assert!((bound.unwrap().deadline_us(1.0) - 84.0).abs() < 1e-9);
    }

    #[test]
    fn the_chunk_is_the_largest_that_fits_the_budget() {
        let queue = [prompt(30, 0, None), prompt(50, 0, None)];
        assert_eq!(chunk_within(&Flat, &queue, 455.0, 1000), 45);
        assert_eq!(chunk_within(&Flat, &queue, 455.0, 20), 20);
        assert_eq!(chunk_within(&Flat, &queue, 1e9, 1000), 80);
        assert_eq!(chunk_within(&Flat, &queue, -1.0, 1000), 0);
        assert_eq!(chunk_within(&Flat, &[], 1e9, 1000), 0);
    }

    #[test]
    fn the_needed_chunk_meets_the_ttft_exactly_at_its_pace() {
        // 100 tokens to go, 5000 µs left, 3000 planned with, 1000 µs of prefill: 2000 µs for steps
        // of 200 µs.
        let queue = [prompt(100, 1000, Some(6000))];
        assert_eq!(prefill_needed(&Flat, &queue, 200.0, 1000), 10);
        assert_eq!(prefill_needed(&Flat, &queue, 200.0, 4), 4);
        assert_eq!(prefill_needed(&Flat, &queue, 1e9, 1000), 100);
    }

    #[test]
    fn a_ttft_that_is_lost_needs_nothing_but_those_behind_it_do() {
        // 200 tokens to go, 10,000 µs left, 6000 planned with, 2000 µs of prefill
        let queue = [prompt(100, 3500, Some(4000)), prompt(100, 0, Some(10_000))];
        assert_eq!(prefill_needed(&Flat, &queue[..1], 200.0, 1000), 0);
        assert_eq!(prefill_needed(&Flat, &queue, 200.0, 1000), 10);
    }

    #[test]
    fn a_prompt_that_just_makes_it_is_due_as_a_whole() {
        let queue = [prompt(100, 1000, Some(2300))];
        assert_eq!(prefill_needed(&Flat, &queue, 200.0, 1000), 100);
    }

    #[test]
    fn a_request_tolerates_what_a_few_plain_steps_make_up_for() {
        let token_us = 100.0 * TPOT_AIM;
        let fresh = tolerable_us(&row(1, 0, Some(100)), 60.0).unwrap();
        assert!((fresh - (token_us + BORROWED_STEPS * (token_us - 60.0))).abs() < 1e-9);
        let indebted = tolerable_us(&row(11, 1500, Some(100)), 60.0).unwrap();
        assert!((fresh - indebted - (1500.0 - 10.0 * token_us)).abs() < 1e-9);
        assert_eq!(tolerable_us(&row(1, 0, Some(100)), 95.0), None);
        assert_eq!(tolerable_us(&row(1, 0, None), 60.0), None);
    }

    #[test]
    fn attended_context_follows_the_queue_in_order() {
        let mut second = prompt(10, 0, None);
        second.done_tokens = 100;
        let queue = [prompt(3, 0, None), second];
        assert_eq!(queue_attended(&queue, 3), 6);
        assert_eq!(queue_attended(&queue, 5), 6 + 200 + 3);
    }

    #[test]
    fn objectives_beyond_an_empty_machine_are_named_with_the_best_possible() {
        let slo = |ttft: u64, tpot: u64| Slo { ttft: Some(Micros(ttft)), tpot: Some(Micros(tpot)) };
        assert!(check_feasible(&slo(1400, 100), 100, 100.0, 25, &Flat).is_ok());
        let tpot = check_feasible(&slo(1400, 99), 100, 100.0, 25, &Flat).unwrap_err();
        assert_eq!((tpot.objective, tpot.best_us), ("tpot", 100.0));
        let ttft = check_feasible(&slo(1399, 100), 100, 100.0, 25, &Flat).unwrap_err();
        assert_eq!((ttft.objective, ttft.best_us), ("ttft", 1400.0));
        assert!(ttft.to_string().contains("1.399 ms"), "{ttft}");
        assert!(check_feasible(&Slo::default(), 100, 1e9, 25, &Flat).is_ok());
    }
}
