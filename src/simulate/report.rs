//! What a run amounts to.

use serde::Serialize;

use crate::pacing::ServiceOrder;
use crate::telemetry::{ConfidenceErrors, LatencyStats};

/// One interval of a run. Means are over its steps, or over sequences and steps; `None`
/// when there were none.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bin {
    /// When it begins.
    pub start_s: f64,
    /// Requests that arrived.
    pub arrivals: u64,
    /// Steps that ended.
    pub steps: u64,
    /// Mean decoding sequences of a step.
    pub batch: Option<f64>,
    /// Mean requests that waited.
    pub waiting: Option<f64>,
    /// Mean drafts of a sequence in a step.
    pub draft_tokens: Option<f64>,
    /// Mean accepted drafts of a sequence in a step.
    pub accepted_tokens: Option<f64>,
    /// Output tokens per second.
    pub tokens_per_second: f64,
}

/// Figures of the requests of one class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassReport {
    /// Name of the class.
    pub name: String,
    /// Requests of the class.
    pub requests: u64,
    /// Of those, the ones that got their whole output.
    pub finished: u64,
    /// Requests that were too long, found the queue full, or were refused while they waited.
    pub refused: u64,
    /// Of those, the ones refused while they waited, because they could not be in time.
    pub refused_late: u64,
    /// Requests that met their objectives, over all requests of the class: a refused one
    /// missed them, and one without objectives meets them by finishing.
    pub attainment: f64,
    /// Requests that met their objectives, per second of simulated time.
    pub goodput_rps: f64,
    /// Arrival to first token.
    pub ttft_ms: LatencyStats,
    /// Mean time per output token after the first, per request.
    pub tpot_ms: LatencyStats,
}

/// Figures of one run; what `--json` prints.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Name of the policy.
    pub policy: String,
    /// In which order requests were served.
    pub scheduler: ServiceOrder,
    /// The load, in whatever unit the run was asked for: multiples of the workload's own rate
    /// or of saturation.
    pub load: f64,
    /// Multiple of the workload's own rate.
    pub rate_multiple: f64,
    /// Arrivals per second, from the first to the last.
    pub offered_rps: f64,
    /// Requests of the workload.
    pub requests: u64,
    /// Requests that got their whole output.
    pub finished: u64,
    /// Requests that were too long, found the queue full, or were refused while they waited.
    pub refused: u64,
    /// Of those, the ones refused while they waited, because they could not be in time.
    pub refused_late: u64,
    /// Requests that met their objectives, over all requests: a refused one missed them.
    pub attainment: f64,
    /// Requests that met their objectives, per second of simulated time.
    pub goodput_rps: f64,
    /// Output tokens per second of simulated time.
    pub tokens_per_second: f64,
    /// Arrival to first token. This one's and the next ones' quantiles are within 1 %.
    pub ttft_ms: LatencyStats,
    /// Mean time per output token after the first, per request.
    pub tpot_ms: LatencyStats,
    /// Gaps between the outputs of a request.
    pub itl_ms: LatencyStats,
    /// Drafts of a decoding sequence in a step.
    pub mean_draft_tokens: f64,
    /// Of those, verified.
    pub mean_verified_tokens: f64,
    /// Of those, accepted.
    pub mean_accepted_tokens: f64,
    /// Accepted over drafted.
    pub acceptance_rate: f64,
    /// Decoding sequences of a step.
    pub mean_batch: f64,
    /// Steps.
    pub steps: u64,
    /// How often speculation, by most sequences of a step, went on or off, per second.
    pub switches_per_second: f64,
    /// Preemptions.
    pub preemptions: u64,
    /// Median over steps of |observed − predicted| / observed time, where the policy predicts
    /// a step's time before it learns from it.
    pub step_time_error_p50: Option<f64>,
    /// 99th percentile of the same.
    pub step_time_error_p99: Option<f64>,
    /// How well confidences are calibrated at the end of the run.
    pub calibration_error: ConfidenceErrors,
    /// From the trace's start to the end of the last request.
    pub simulated_seconds: f64,
    /// How long the simulation took; measured by the caller, so not part of the result.
    pub wall_seconds: Option<f64>,
    /// The classes, most urgent first.
    pub classes: Vec<ClassReport>,
    /// The run over time.
    pub timeline: Vec<Bin>,
    /// What the policy has learned.
    pub policy_state: serde_json::Value,
}
