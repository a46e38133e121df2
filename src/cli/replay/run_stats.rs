//! The figures of one run.

use serde::Serialize;
use serde_json::Value;

use super::session::{Fate, Outcome, Played};
use crate::cli::answer::{Answer, SpeculativeDecoding};
use crate::protocol::Slo;
use crate::telemetry::LatencyStats;

/// What was run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setting {
    /// The daemon's policy.
    pub policy: String,
    /// Multiple of the trace's rate.
    pub rate_scale: f64,
    /// Which repeat, from 0.
    pub repeat: u32,
}

/// Relative error of predicted step times, as the policy reports it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct TimeModelError {
    /// Median.
    pub p50: Option<f64>,
    /// 99th percentile.
    pub p99: Option<f64>,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunStats {
    /// What was run.
    #[serde(flatten)]
    pub setting: Setting,
    /// Requests of the trace.
    pub requests: usize,
    /// Those answered in full.
    pub finished: usize,
    /// Those that the daemon did not take.
    pub refused: usize,
    /// Those that broke.
    pub failed: usize,
    /// Requests that met their objectives, over all of the trace.
    pub attainment: f64,
    /// Requests that met their objectives per second.
    pub goodput_rps: f64,
    /// Output tokens per second.
    pub tokens_per_second: f64,
    /// First arrival to the end of the last answer.
    pub wall_seconds: f64,
    /// Arrival to first token, as the daemon measures it.
    pub ttft_ms: LatencyStats,
    /// Time per token after the first, as the daemon measures it.
    pub tpot_ms: LatencyStats,
    /// Gaps between pieces of text, as the client sees them.
    pub itl_ms: LatencyStats,
    /// Draft tokens proposed per request and step.
    pub mean_draft_tokens: Option<f64>,
    /// Tokens that a target step yields for one request.
    pub acceptance_length: Option<f64>,
    /// Accepted over verified draft tokens.
    pub acceptance_rate: Option<f64>,
    /// How late the client sent its latest request; a client that can't keep up is no client.
    pub late_ms_max: f64,
    /// Of policies that predict step times.
    pub time_model_error: TimeModelError,
    /// Why requests broke, the first few.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<String>,
}

/// Most reasons that are kept.
const FAILURES_MAX: usize = 5;

impl RunStats {
    /// Sums up a session; `state` is what the engine said of itself after it.
    pub fn new(setting: Setting, slo: &Slo, played: &Played, state: &Value) -> RunStats {
        let outcomes = &played.outcomes;
        let answers: Vec<&Answer> = outcomes.iter().filter_map(answer).collect();
        let seconds = played.elapsed.as_secs_f64().max(1e-9);
        let attained = answers.iter().filter(|answer| attains(slo, answer)).count();
        let tokens: u64 = answers.iter().map(|answer| answer.usage.completion_tokens).sum();
        let sum = |field: fn(&SpeculativeDecoding) -> u64| -> f64 {
            answers.iter().map(|answer| field(&answer.metrics.speculative_decoding)).sum::<u64>() as f64
        };
        let (steps, verified, accepted) =
            (sum(|one| one.steps), sum(|one| one.verified), sum(|one| one.accepted));
        let ratio = |part: f64, whole: f64| (whole > 0.0).then(|| part / whole);
        let failures: Vec<String> = outcomes.iter().filter_map(failure).cloned().collect();
        let error =
            |key: &str| state.pointer(&format!("/policy/time/relative_error_{key}")).and_then(Value::as_f64);
        RunStats {
            setting,
            requests: outcomes.len(),
            finished: answers.len(),
            refused: outcomes.iter().filter(|outcome| matches!(outcome.fate, Fate::Refused)).count(),
            failed: failures.len(),
            attainment: attained as f64 / outcomes.len().max(1) as f64,
            goodput_rps: attained as f64 / seconds,
            tokens_per_second: tokens as f64 / seconds,
            wall_seconds: seconds,
            ttft_ms: LatencyStats::of_sample(
                answers.iter().filter_map(|answer| answer.metrics.ttft_ms).collect(),
            ),
            tpot_ms: LatencyStats::of_sample(
                answers.iter().filter_map(|answer| answer.metrics.tpot_ms).collect(),
            ),
            itl_ms: LatencyStats::of_sample(
                outcomes.iter().flat_map(|outcome| &outcome.gaps_ms).copied().collect(),
            ),
            mean_draft_tokens: ratio(sum(|one| one.drafted), steps),
            acceptance_length: ratio(accepted, steps).map(|accepted| 1.0 + accepted),
            acceptance_rate: ratio(accepted, verified),
            late_ms_max: outcomes.iter().map(|outcome| outcome.late.as_secs_f64() * 1e3).fold(0.0, f64::max),
            time_model_error: TimeModelError { p50: error("p50"), p99: error("p99") },
            failures: failures.into_iter().take(FAILURES_MAX).collect(),
        }
    }
}

fn answer(outcome: &Outcome) -> Option<&Answer> {
    match &outcome.fate {
        Fate::Answered(answer) => Some(answer),
        _ => None,
    }
}

fn failure(outcome: &Outcome) -> Option<&String> {
    match &outcome.fate {
        Fate::Failed(why) => Some(why),
        _ => None,
    }
}

/// docs/slo.md: a bound that is not set is met, and so is a TPOT bound by a single token.
fn attains(slo: &Slo, answer: &Answer) -> bool {
    let metrics = &answer.metrics;
    let ttft = slo.ttft.is_none_or(|bound| metrics.ttft_ms.is_some_and(|seen| seen <= bound.as_millis_f64()));
    let tpot = slo.tpot.is_none_or(|bound| metrics.tpot_ms.is_none_or(|seen| seen <= bound.as_millis_f64()));
    ttft && tpot
}
