//! What a token of a request is worth beside those of others.
//!
//! A batch is served well when its requests leave soon, not when it emits many tokens: requests
//! whose drafts are seldom accepted stay longest, and drafts of others lengthen their steps. A
//! request that gets `E` tokens in each step of length `T` takes `T/E` per token, and one token
//! more in a step shortens that by the factor `1/E`. So with weights `1/E`, as a request's own
//! pace measures it, the plan with the most weighted tokens per second lowers the mean of
//! `ln(T/E)`: the mean TPOT, in relative terms.
//!
//! A token is worth more where it decides whether a TPOT objective is met. Whether a request will
//! meet its objective is a logistic function of the headroom that its pace leaves; the slope of
//! that function is what a relative change of its pace is worth.

use crate::protocol::{DecodeView, StepReport};
use crate::stats::logistic;
use crate::stats::mean::RunningMean;

/// Steps that the mean time per token remembers.
const STEPS: f64 = 32.0;
/// Tokens that the mean time per token counts as beside a request's own.
const PRIOR_TOKENS: f64 = 16.0;
/// Range of a request's pace over the mean.
const PACE_RANGE: (f64, f64) = (0.25, 4.0);
/// Spread of a request's TPOT around its pace so far, as the standard deviation of its logarithm.
const SPREAD: f64 = 0.1;
/// What meeting an objective adds to the worth of a token where it decides: at no headroom.
const EDGE: f64 = 2.0;

/// The mean time per token of all requests, which a request's own pace is held against.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    token_us: RunningMean,
}

impl Pace {
    /// Learns from a step.
    pub(super) fn observe(&mut self, report: &StepReport) {
        let rows = report.counts.len();
        if rows == 0 {
            return;
        }
        let accepted: u32 = report.counts.iter().map(|counts| counts.accepted).sum();
        let tokens = 1.0 + f64::from(accepted) / rows as f64;
        self.token_us.add(report.step_time.max(report.target_time).0 as f64 / tokens, STEPS);
    }

    /// Weight of a request's tokens.
    pub(super) fn worth(&self, row: &DecodeView) -> f32 {
        let Some(mean_us) = self.token_us.get().filter(|&mean_us| mean_us > 0.0) else { return row.weight };
        let gaps = f64::from(row.output_tokens.saturating_sub(1));
        let own_us = (row.since_first_token.0 as f64 + PRIOR_TOKENS * mean_us) / (gaps + PRIOR_TOKENS);
        let pace = (own_us / mean_us).clamp(PACE_RANGE.0, PACE_RANGE.1);
        let edge = row.tpot.map_or(0.0, |tpot| edge(tpot.0.max(1) as f64 / own_us));
        row.weight * (pace * (1.0 + EDGE * edge)) as f32
    }
}

/// Slope of the chance to meet an objective that is `headroom` times the pace; at most 1.
fn edge(headroom: f64) -> f64 {
    let chance = logistic::chance(headroom.ln() / SPREAD);
    4.0 * chance * (1.0 - chance)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{DraftCounts, Micros, RequestId};

    /// A request that got `tokens` after its first in `ms`.
    fn row(tokens: u32, ms: u64, tpot_ms: Option<u64>) -> DecodeView {
        DecodeView {
            request: RequestId(1),
            context_tokens: 100,
            output_tokens: tokens + 1,
            since_first_token: Micros::from_millis(ms),
            tpot: tpot_ms.map(Micros::from_millis),
            weight: 1.0,
            draft_lag_tokens: 1,
            drafts_max: 8,
            temperature: 0.0,
        }
    }

    /// After steps of 10 ms in which each of two requests gets 2 tokens: 5 ms per token.
    fn pace() -> Pace {
        let mut pace = Pace::default();
        let counts = vec![DraftCounts { accepted: 1, ..DraftCounts::default() }; 2];
        let report = StepReport { counts, step_time: Micros::from_millis(10), ..StepReport::default() };
        (0..3).for_each(|_| pace.observe(&report));
        pace
    }

    #[test]
    fn before_any_step_a_token_is_worth_its_requests_weight() {
        let weighted = DecodeView { weight: 3.0, ..row(100, 2000, Some(5)) };
        assert_eq!(Pace::default().worth(&weighted), 3.0);
        assert!(pace().worth(&weighted) > 2.0 * pace().worth(&row(100, 2000, Some(5))));
    }

    #[test]
    fn tokens_of_slow_requests_are_worth_more_in_proportion_to_their_pace() {
        let pace = pace();
        assert!((pace.worth(&row(100, 500, None)) - 1.0).abs() < 1e-6, "at the mean pace");
        let slow = pace.worth(&row(1000, 10_000, None));
        assert!((1.9..2.0).contains(&slow), "twice the mean's time per token: {slow}");
        assert!((0.25..0.3).contains(&pace.worth(&row(10_000, 1, None))), "no request is worth nothing");
        let first = pace.worth(&row(0, 50, None));
        assert!(first < 1.7, "the first steps of a request say little: {first}");
    }

    #[test]
    fn tokens_are_worth_most_where_they_decide_about_an_objective() {
        let pace = pace();
        let worth = |tpot_ms| f64::from(pace.worth(&row(1000, 10_000, Some(tpot_ms))));
        let without = f64::from(pace.worth(&row(1000, 10_000, None)));
        assert!(worth(10) > 2.9 * without, "just at its objective of 10 ms");
        assert!(worth(20) < 1.01 * without, "safe");
        assert!(worth(5) < 1.01 * without, "lost");
        for extreme in
            [row(1000, 10_000, Some(0)), row(1000, 10_000, Some(u64::MAX / 1000)), row(1, 0, Some(0))]
        {
            assert!(pace.worth(&extreme).is_finite() && pace.worth(&extreme) > 0.0);
        }
    }
}
