//! The figures of `/v1/engine/state` and of the dashboard.

use serde::{Deserialize, Serialize};

use super::gauges::Gauges;
use super::histogram::Quantiles;

/// A digest of [`Metrics`](super::Metrics). Counters run since start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricsSummary {
    /// Momentary figures.
    pub gauges: Gauges,
    /// Arrival to first token.
    pub ttft: Option<Quantiles>,
    /// Mean time per output token after the first, per request.
    pub tpot: Option<Quantiles>,
    /// Gaps between the chunks of a request's output.
    pub itl: Option<Quantiles>,
    /// Arrival to last token.
    pub e2e: Option<Quantiles>,
    /// Arrival to the first step that the request is part of.
    pub queue: Option<Quantiles>,
    /// Whole steps.
    pub step: Option<Quantiles>,
    /// The part of each step that neither model ran.
    pub host: Option<Quantiles>,
    /// The device's pause between two steps; `None` where the backend can't tell.
    #[serde(default)]
    pub device_idle_before: Option<Quantiles>,
    /// The device's pauses within a step, after each draft call.
    #[serde(default)]
    pub device_idle_within: Option<Quantiles>,
    /// How far the policy's predictions of step times were off.
    pub prediction_error: Option<PredictionError>,
    /// Counters.
    pub counters: Counters,
    /// Tokens per sequence and target step: `1 + accepted / sequence steps`; `None` before the first.
    pub mean_acceptance_length: Option<f64>,
    /// Attained over finished requests; `None` before the first.
    pub attainment: Option<f64>,
}

/// Relative errors of predicted step times, |observed - predicted| / observed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PredictionError {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Steps behind them.
    pub count: u64,
}

/// Counters since start. `accepted <= verified <= drafted` always holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Requests taken into the queue.
    pub admitted: u64,
    /// Prompt tokens of those.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generation_tokens: u64,
    /// Requests that ended with a stop token, an end token or a stop string.
    pub finished_stop: u64,
    /// Requests that ended at `max_tokens` or at the context's end.
    pub finished_length: u64,
    /// Requests that failed after admission, cancellations included.
    pub failed: u64,
    /// Requests refused at the door.
    pub rejected: u64,
    /// Preemptions.
    pub preemptions: u64,
    /// Admitted requests whose objective could not be met even on an empty machine.
    pub best_effort: u64,
    /// Engine steps.
    pub steps: u64,
    /// Decoding sequences summed over steps.
    pub sequence_steps: u64,
    /// Sequences that drafted, summed over steps.
    pub drafts: u64,
    /// Tokens proposed by the draft model.
    pub drafted: u64,
    /// Of those, given to the target.
    pub verified: u64,
    /// Of those, equal to the target's own.
    pub accepted: u64,
    /// First-token objective.
    pub slo_ttft: SloCounts,
    /// Per-token objective.
    pub slo_tpot: SloCounts,
    /// Both objectives of a request together; goodput is the rate of `attained`.
    pub slo_request: SloCounts,
}

impl Counters {
    /// Requests that ended with a whole answer.
    pub fn finished(&self) -> u64 {
        self.finished_stop + self.finished_length
    }
}

/// How often an objective was met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SloCounts {
    /// Met.
    pub attained: u64,
    /// Missed.
    pub violated: u64,
}

impl SloCounts {
    /// Counts one request.
    pub fn record(&mut self, attained: bool) {
        if attained {
            self.attained += 1;
        } else {
            self.violated += 1;
        }
    }
}
