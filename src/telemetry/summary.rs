//! The summary in `/v1/engine/state`, also shown by the dashboard.

use serde::{Deserialize, Serialize};

use super::gauges::Gauges;
use super::histogram::Quantiles;

/// Summary of [`Metrics`](super::Metrics). Counters are cumulative since start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricsSummary {
    /// Current state of the engine.
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
    /// Step times.
    pub step: Option<Quantiles>,
    /// Host time of each step, outside of both models.
    pub host: Option<Quantiles>,
    /// Device idle time between two steps; `None` if the backend does not report it.
    #[serde(default)]
    pub device_idle_before: Option<Quantiles>,
    /// Device idle time within a step, after each draft call.
    #[serde(default)]
    pub device_idle_within: Option<Quantiles>,
    /// Errors of the policy's step time predictions.
    pub prediction_error: Option<PredictionError>,
    /// How well confidences are calibrated.
    #[serde(default)]
    pub calibration_error: ConfidenceErrors,
    /// Cumulative counters.
    pub counters: Counters,
    /// Tokens per sequence and target step: `1 + accepted / sequence steps`; `None` before the first.
    pub mean_acceptance_length: Option<f64>,
    /// Requests that met both objectives over finished requests; `None` before the first.
    pub attainment: Option<f64>,
}

/// Relative errors of predicted step times, |observed - predicted| / observed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PredictionError {
    /// 50th percentile.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Number of predicted steps.
    pub count: u64,
}

/// Expected calibration errors over the drafts that the target verified behind accepted ones, 0 to 1:
/// see `stats::calibration_error`, also for the horizon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConfidenceErrors {
    /// Of the drafter's confidence in its proposals; `None` before the first.
    pub draft: Option<f64>,
    /// Of the acceptance probabilities that the policy made of it, each before its outcome was known;
    /// `None` with a policy that makes none.
    pub calibrated: Option<f64>,
}

/// Counters since start. `accepted <= verified <= drafted` always holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Requests admitted to the queue.
    pub admitted: u64,
    /// Prompt tokens of admitted requests.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generation_tokens: u64,
    /// Requests that ended with a stop token, an end token or a stop string.
    pub finished_stop: u64,
    /// Requests that ended at `max_tokens` or at the context length.
    pub finished_length: u64,
    /// Requests that failed after admission, including cancellations.
    pub failed: u64,
    /// Requests rejected, at admission or from the queue.
    pub rejected: u64,
    /// Preemptions for lack of KV blocks.
    pub preemptions: u64,
    /// Tokens looked up in the prefix cache.
    #[serde(default)]
    pub prefix_query_tokens: u64,
    /// Tokens found there.
    #[serde(default)]
    pub prefix_hit_tokens: u64,
    /// Admitted requests whose objective could not be met even on an idle machine.
    pub best_effort: u64,
    /// Engine steps.
    pub steps: u64,
    /// Decoding sequences summed over steps.
    pub sequence_steps: u64,
    /// Sequences that drafted, summed over steps.
    pub drafts: u64,
    /// Tokens proposed by the draft model.
    pub drafted: u64,
    /// Drafted tokens that the target verified.
    pub verified: u64,
    /// Verified tokens that the target accepted.
    pub accepted: u64,
    /// TTFT objective.
    pub slo_ttft: SloCounts,
    /// TPOT objective.
    pub slo_tpot: SloCounts,
    /// Both objectives of a request; goodput is the rate of `attained`.
    pub slo_request: SloCounts,
}

impl Counters {
    /// Requests that finished with a complete output.
    pub fn finished(&self) -> u64 {
        self.finished_stop + self.finished_length
    }
}

/// Attainment of an objective.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SloCounts {
    /// Requests that met it.
    pub attained: u64,
    /// Requests that missed it.
    pub violated: u64,
}

impl SloCounts {
    /// Counts one finished request.
    pub fn record(&mut self, attained: bool) {
        if attained {
            self.attained += 1;
        } else {
            self.violated += 1;
        }
    }
}
