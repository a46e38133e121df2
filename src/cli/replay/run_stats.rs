//! Statistics of one run.

use serde::Serialize;
use serde_json::Value;

use super::session::{Fate, Outcome, Played};
use crate::cli::answer::{ChatReply, SpeculativeDecoding};
use crate::protocol::Slo;
use crate::telemetry::LatencyStats;

/// Setting of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setting {
    /// Policy of the daemon.
    pub policy: String,
    /// Multiple of the trace's rate.
    pub rate_scale: f64,
    /// Index of the repeat.
    pub repeat: u32,
}

/// Relative error of step time predictions, as reported by the policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct TimeModelError {
    /// 50th percentile.
    pub p50: Option<f64>,
    /// 99th percentile.
    pub p99: Option<f64>,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunStats {
    /// Setting of the run.
    #[serde(flatten)]
    pub setting: Setting,
    /// Requests in the trace.
    pub requests: usize,
    /// Requests with a complete reply.
    pub finished: usize,
    /// Requests rejected by the daemon.
    pub refused: usize,
    /// Requests that failed.
    pub failed: usize,
    /// Attainment: requests that met their objectives over all requests.
    pub attainment: f64,
    /// Goodput: requests per second that met their objectives.
    pub goodput_rps: f64,
    /// Output tokens per second.
    pub tokens_per_second: f64,
    /// Time from the first arrival to the end of the last reply, in seconds.
    pub wall_seconds: f64,
    /// TTFT as measured by the daemon.
    pub ttft_ms: LatencyStats,
    /// TPOT as measured by the daemon.
    pub tpot_ms: LatencyStats,
    /// Gaps between text deltas as seen by the client.
    pub itl_ms: LatencyStats,
    /// Draft tokens proposed per request and step.
    pub mean_draft_tokens: Option<f64>,
    /// Acceptance length: mean tokens per target step and request.
    pub acceptance_length: Option<f64>,
    /// Accepted over verified draft tokens.
    pub acceptance_rate: Option<f64>,
    /// Largest delay of a send behind its trace time; large values mean that the client is overloaded.
    pub late_ms_max: f64,
    /// Prediction errors of policies with a time model.
    pub time_model_error: TimeModelError,
    /// First few failure reasons.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<String>,
}

/// Most failure reasons kept.
const FAILURES_MAX: usize = 5;

impl RunStats {
    /// Summarises a session; `state` is the engine's state after it.
    pub fn new(setting: Setting, slo: &Slo, played: &Played, state: &Value) -> RunStats {
        let outcomes = &played.outcomes;
        let answers: Vec<&ChatReply> = outcomes.iter().filter_map(answer).collect();
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

fn answer(outcome: &Outcome) -> Option<&ChatReply> {
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

/// Attainment as in docs/slo.md: unset objectives are met, as is TPOT by a single token.
fn attains(slo: &Slo, answer: &ChatReply) -> bool {
    let metrics = &answer.metrics;
    let ttft = slo.ttft.is_none_or(|bound| metrics.ttft_ms.is_some_and(|seen| seen <= bound.as_millis_f64()));
    let tpot = slo.tpot.is_none_or(|bound| metrics.tpot_ms.is_none_or(|seen| seen <= bound.as_millis_f64()));
    ttft && tpot
}
