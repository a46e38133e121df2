//! The daemon's counters, histograms and gauges.

use hdrhistogram::Histogram;

use super::gauges::Gauges;
use super::histogram::LatencyHistogram;
use super::summary::{ConfidenceErrors, Counters, MetricsSummary, PredictionError};
use crate::protocol::{
    DraftCounts, ExecutorMemory, FinishReason, Micros, RequestFailure, RequestSummary, Slo, StepReport,
};
use crate::stats::calibration_error::CalibrationError;

/// Draft positions with a counter of their own; the last counter includes deeper ones.
pub const DRAFT_POSITIONS_MAX: usize = 32;

/// Unit of relative errors: 1 / this (basis points).
const BASIS_POINTS: f64 = 10_000.0;

/// Largest recorded relative error, in basis points (100x); larger ones are clamped.
const PREDICTION_ERROR_BP_MAX: u64 = 1_000_000;

/// Bucket edges of request latencies, in microseconds: 1 ms to 5 min.
const REQUEST_EDGES_US: [u64; 18] = [
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    20_000_000,
    30_000_000,
    60_000_000,
    120_000_000,
    300_000_000,
];

/// Bucket edges of per-token and step times, in microseconds: 50 µs to 2.5 s.
const STEP_EDGES_US: [u64; 16] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 7_500, 10_000, 15_000, 25_000, 50_000, 100_000, 250_000,
    1_000_000, 2_500_000,
];

/// Static properties shown in the metrics.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetricsConfig {
    /// Name of the served model.
    pub model: String,
    /// Name of the policy, for example `fixed:4`.
    pub policy: String,
    /// Tokens per KV block.
    pub block_tokens: u32,
    /// Objectives of the configured classes; they become bucket edges.
    pub slos: Vec<Slo>,
}

/// Why a request was rejected, at admission or from the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectionReason {
    /// The queue was full.
    QueueFull,
    /// The daemon was draining or not live.
    Unavailable,
    /// The KV pool is smaller than the request.
    TooLarge,
    /// The objective cannot be met even on an idle machine.
    Infeasible,
    /// The queue would delay the first token past its objective.
    TooLate,
    /// The request waited longer than any request may.
    QueueTimeout,
}

/// The engine's metrics. Owned by the SLO monitor.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(super) config: MetricsConfig,
    pub(super) gauges: Gauges,
    pub(super) memory: ExecutorMemory,
    pub(super) counters: Counters,
    pub(super) accepted_per_position: [u64; DRAFT_POSITIONS_MAX],
    pub(super) failures: Failures,
    pub(super) latencies: Latencies,
    /// |observed - predicted| / observed of step times, in basis points.
    pub(super) prediction_errors: Histogram<u64>,
    /// Of the drafter's confidences.
    draft_error: CalibrationError,
    /// Of the policy's acceptance probabilities.
    calibrated_error: Option<f64>,
}

/// Failed and rejected requests by reason.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Failures {
    pub(super) cancelled: u64,
    pub(super) shutting_down: u64,
    pub(super) numerical: u64,
    pub(super) nothing_allowed: u64,
    pub(super) engine: u64,
    pub(super) queue_full: u64,
    pub(super) unavailable: u64,
    pub(super) too_large: u64,
    pub(super) infeasible: u64,
    pub(super) too_late: u64,
    pub(super) queue_timeout: u64,
}

/// Latency histograms.
#[derive(Clone, Debug)]
pub(super) struct Latencies {
    pub(super) ttft: LatencyHistogram,
    pub(super) tpot: LatencyHistogram,
    pub(super) itl: LatencyHistogram,
    pub(super) e2e: LatencyHistogram,
    pub(super) queue: LatencyHistogram,
    pub(super) step: LatencyHistogram,
    pub(super) step_draft: LatencyHistogram,
    pub(super) step_target: LatencyHistogram,
    pub(super) step_host: LatencyHistogram,
    pub(super) idle_before: LatencyHistogram,
    pub(super) idle_within: LatencyHistogram,
    pub(super) step_predicted: LatencyHistogram,
}

impl Latencies {
    fn new(slos: &[Slo]) -> Latencies {
        let request = || REQUEST_EDGES_US.map(Micros).into_iter();
        let step = || STEP_EDGES_US.map(Micros).into_iter();
        let ttfts = || slos.iter().filter_map(|slo| slo.ttft);
        let tpots = || slos.iter().filter_map(|slo| slo.tpot);
        Latencies {
            ttft: LatencyHistogram::new(request().chain(ttfts())),
            tpot: LatencyHistogram::new(step().chain(tpots())),
            itl: LatencyHistogram::new(step().chain(tpots())),
            e2e: LatencyHistogram::new(request()),
            queue: LatencyHistogram::new(request()),
            step: LatencyHistogram::new(step().chain(tpots())),
            step_draft: LatencyHistogram::new(step()),
            step_target: LatencyHistogram::new(step()),
            step_host: LatencyHistogram::new(step()),
            idle_before: LatencyHistogram::new(step()),
            idle_within: LatencyHistogram::new(step()),
            step_predicted: LatencyHistogram::new(step().chain(tpots())),
        }
    }
}

impl Metrics {
    /// Creates metrics with all counters at zero.
    pub fn new(config: MetricsConfig) -> Metrics {
        Metrics {
            latencies: Latencies::new(&config.slos),
            config,
            gauges: Gauges::default(),
            memory: ExecutorMemory::default(),
            counters: Counters::default(),
            accepted_per_position: [0; DRAFT_POSITIONS_MAX],
            failures: Failures::default(),
            prediction_errors: Histogram::new_with_bounds(1, PREDICTION_ERROR_BP_MAX, 2)
                .expect("the bounds are valid constants"),
            draft_error: CalibrationError::default(),
            calibrated_error: None,
        }
    }

    /// Sets the memory of the executor.
    pub fn set_memory(&mut self, memory: ExecutorMemory) {
        self.memory = memory;
    }

    /// Replaces the gauges.
    pub fn set_gauges(&mut self, gauges: Gauges) {
        self.gauges = gauges;
    }

    /// Records one step.
    ///
    /// # Panics
    /// If the report violates `accepted <= verified <= drafted`, in total or for a sequence:
    /// such an engine may have emitted wrong text.
    pub fn record_step(&mut self, report: &StepReport) {
        let drafted: u64 = report.drafted.iter().map(|row| row.proposals.len() as u64).sum();
        let verified: u64 = report.counts.iter().map(|counts| u64::from(counts.verified)).sum();
        let accepted: u64 = report.counts.iter().map(|counts| u64::from(counts.accepted)).sum();
        assert!(verified <= drafted, "{verified} draft tokens verified of {drafted} drafted");
        for DraftCounts { verified, accepted } in &report.counts {
            assert!(accepted <= verified, "{accepted} draft tokens accepted of {verified} verified");
        }
        let counters = &mut self.counters;
        counters.steps += 1;
        counters.sequence_steps += report.view.decoding.len() as u64;
        counters.drafts += report.drafted.iter().filter(|row| !row.proposals.is_empty()).count() as u64;
        counters.drafted += drafted;
        counters.verified += verified;
        counters.accepted += accepted;
        for counts in &report.counts {
            for position in 0..counts.accepted as usize {
                self.accepted_per_position[position.min(DRAFT_POSITIONS_MAX - 1)] += 1;
            }
        }
        self.draft_error.observe(report.examined_confidences());
        self.record_step_times(report);
    }

    fn record_step_times(&mut self, report: &StepReport) {
        let device = report.draft_time + report.target_time;
        self.latencies.step.record(report.step_time);
        if !report.draft_calls.is_empty() {
            self.latencies.step_draft.record(report.draft_time);
        }
        self.latencies.step_target.record(report.target_time);
        self.latencies.step_host.record(report.step_time.saturating_sub(device));
        if let Some(idle) = report.device_idle {
            if idle.before > Micros::ZERO {
                self.latencies.idle_before.record(idle.before);
            }
            self.latencies.idle_within.record(idle.within);
        }
    }

    /// Counts an admitted request whose objective cannot be met even on an idle machine.
    pub fn record_best_effort(&mut self) {
        self.counters.best_effort += 1;
    }

    /// Records the policy's prediction of a step's time against the observed time.
    pub fn record_prediction(&mut self, predicted: Micros, observed: Micros) {
        self.latencies.step_predicted.record(predicted);
        let error = observed.0.abs_diff(predicted.0) as f64 / observed.0.max(1) as f64;
        self.prediction_errors.saturating_record((error * BASIS_POINTS) as u64);
    }

    /// Sets the calibration error of the policy's acceptance probabilities; `None` if it has none.
    pub fn set_calibrated_error(&mut self, error: Option<f64>) {
        self.calibrated_error = error;
    }

    /// Counts an admitted request.
    pub fn record_admitted(&mut self, prompt_tokens: u32) {
        self.counters.admitted += 1;
        self.counters.prompt_tokens += u64::from(prompt_tokens);
    }

    /// Counts a rejected request.
    pub fn record_rejected(&mut self, reason: RejectionReason) {
        self.counters.rejected += 1;
        *match reason {
            RejectionReason::QueueFull => &mut self.failures.queue_full,
            RejectionReason::Unavailable => &mut self.failures.unavailable,
            RejectionReason::TooLarge => &mut self.failures.too_large,
            RejectionReason::Infeasible => &mut self.failures.infeasible,
            RejectionReason::TooLate => &mut self.failures.too_late,
            RejectionReason::QueueTimeout => &mut self.failures.queue_timeout,
        } += 1;
    }

    /// Records one chunk of a request's output: its tokens and the time since the previous
    /// chunk (`None` for the first).
    pub fn record_output(&mut self, tokens: u32, since_previous: Option<Micros>) {
        self.counters.generation_tokens += u64::from(tokens);
        if let Some(gap) = since_previous {
            self.latencies.itl.record(gap);
        }
    }

    /// Counts one preemption.
    pub fn record_preemption(&mut self) {
        self.counters.preemptions += 1;
    }

    /// Sets the totals of the prefix cache: tokens looked up and tokens found.
    pub fn set_prefix_cache(&mut self, query_tokens: u64, hit_tokens: u64) {
        self.counters.prefix_query_tokens = query_tokens;
        self.counters.prefix_hit_tokens = hit_tokens;
    }

    /// Records a request with a complete output.
    pub fn record_finished(&mut self, summary: &RequestSummary, reason: FinishReason, slo: &Slo) {
        match reason {
            FinishReason::Stop => self.counters.finished_stop += 1,
            FinishReason::Length => self.counters.finished_length += 1,
        }
        let (ttft, tpot) = (summary.ttft(), summary.tpot());
        self.latencies.ttft.record(ttft);
        self.latencies.queue.record(summary.queue_time());
        self.latencies.e2e.record(summary.times.last_token.saturating_sub(summary.times.arrival));
        if let Some(tpot) = tpot {
            self.latencies.tpot.record(tpot);
        }
        let met = |seen: Option<Micros>, bound: Option<Micros>| match (seen, bound) {
            (_, None) => None,
            (seen, Some(bound)) => Some(seen.is_none_or(|seen| seen <= bound)),
        };
        let (ttft_met, tpot_met) = (met(Some(ttft), slo.ttft), met(tpot, slo.tpot));
        if let Some(attained) = ttft_met {
            self.counters.slo_ttft.record(attained);
        }
        if let Some(attained) = tpot_met {
            self.counters.slo_tpot.record(attained);
        }
        self.counters.slo_request.record(slo.is_attained_by(summary));
    }

    /// Counts a request that failed or was cancelled after admission. One that became late in the
    /// queue, or waited there too long, counts as rejected.
    pub fn record_failed(&mut self, failure: &RequestFailure) {
        let count = match failure {
            RequestFailure::Cancelled => &mut self.failures.cancelled,
            RequestFailure::Late { .. } => return self.record_rejected(RejectionReason::TooLate),
            RequestFailure::Overdue { .. } => return self.record_rejected(RejectionReason::QueueTimeout),
            RequestFailure::ShuttingDown => &mut self.failures.shutting_down,
            RequestFailure::Numerical => &mut self.failures.numerical,
            RequestFailure::NothingAllowed => &mut self.failures.nothing_allowed,
            RequestFailure::Engine(_) => &mut self.failures.engine,
        };
        *count += 1;
        self.counters.failed += 1;
    }

    /// Relative errors of the predictions; `None` before the first.
    pub(super) fn prediction_error(&self) -> Option<PredictionError> {
        let errors = &self.prediction_errors;
        let quantile = |quantile| errors.value_at_quantile(quantile) as f64 / BASIS_POINTS;
        (!errors.is_empty()).then(|| PredictionError {
            p50: quantile(0.5),
            p99: quantile(0.99),
            count: errors.len(),
        })
    }

    /// How well confidences are calibrated.
    pub(super) fn confidence_errors(&self) -> ConfidenceErrors {
        ConfidenceErrors { draft: self.draft_error.get(), calibrated: self.calibrated_error }
    }

    /// Summary for `/v1/engine/state`.
    pub fn summary(&self) -> MetricsSummary {
        let (latencies, counters) = (&self.latencies, self.counters);
        let ratio = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        MetricsSummary {
            gauges: self.gauges.clone(),
            ttft: latencies.ttft.quantiles(),
            tpot: latencies.tpot.quantiles(),
            itl: latencies.itl.quantiles(),
            e2e: latencies.e2e.quantiles(),
            queue: latencies.queue.quantiles(),
            step: latencies.step.quantiles(),
            host: latencies.step_host.quantiles(),
            device_idle_before: latencies.idle_before.quantiles(),
            device_idle_within: latencies.idle_within.quantiles(),
            prediction_error: self.prediction_error(),
            calibration_error: self.confidence_errors(),
            counters,
            mean_acceptance_length: ratio(counters.accepted, counters.sequence_steps).map(|rate| 1.0 + rate),
            attainment: ratio(counters.slo_request.attained, counters.finished()),
        }
    }
}
