//! What steps and requests are like: exponentially weighted means of finished steps and requests.

use crate::protocol::{Micros, RequestSummary, StepReport};
use crate::stats::mean::RunningMean;
use crate::timing::correction::TimeModel;
use crate::timing::cost_model::prefill_attended;

/// Steps that the means of steps remember.
const STEPS: f64 = 32.0;
/// Requests that the means of requests remember.
const REQUESTS: f64 = 64.0;
/// Spread of TPOT between requests before any finished, as the standard deviation of its
/// logarithm.
const FIRST_SPREAD: f64 = 0.15;
/// Requests that this first guess counts as.
const FIRST_SPREAD_REQUESTS: u32 = 16;

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub(super) struct Workload {
    /// Tokens per decoding request and step.
    tokens: RunningMean,
    /// Decode and verification rows per decoding request and step.
    rows: RunningMean,
    /// The decode part of a step over a plain step of the same batch.
    stretch: RunningMean,
    /// Context of a decoding request.
    context_tokens: RunningMean,
    /// Output tokens of a request.
    output_tokens: RunningMean,
    /// Prefill of a request, in microseconds.
    prefill_us: RunningMean,
    /// What prefill added to a step with prefill, in microseconds and per token.
    step_prefill_us: RunningMean,
    step_prefill_tokens: RunningMean,
    /// Time between two arrivals, in microseconds, and the last one.
    interarrival_us: RunningMean,
    last_arrival: Option<Micros>,
    /// Logarithm of a request's TPOT in microseconds, and its squared deviation.
    log_tpot: RunningMean,
    log_tpot_variance: RunningMean,
}

impl Workload {
    pub fn observe_step(&mut self, time: &TimeModel, report: &StepReport) {
        let rows = report.view.decoding.len();
        let verified: u32 = report.counts.iter().map(|counts| counts.verified).sum();
        let prefill_tokens = report.prefill_tokens;
        let prefill_us =
            time.prefill_us(rows as u32 + verified, prefill_tokens, report.prefill_attended_tokens);
        if prefill_tokens > 0 {
            self.step_prefill_us.add(prefill_us, STEPS);
            self.step_prefill_tokens.add(f64::from(prefill_tokens), STEPS);
        }
        if rows == 0 {
            return;
        }
        let context_tokens: u64 = report.view.decoding.iter().map(|row| u64::from(row.context_tokens)).sum();
        let accepted: u64 = report.counts.iter().map(|counts| u64::from(counts.accepted)).sum();
        let decode_us = report.step_time.max(report.target_time).0 as f64 - prefill_us;
        let plain_us = time.plain_step_us(rows as u32, context_tokens);
        self.tokens.add(1.0 + accepted as f64 / rows as f64, STEPS);
        self.rows.add(1.0 + f64::from(verified) / rows as f64, STEPS);
        self.stretch.add((decode_us / plain_us).clamp(0.5, 8.0), STEPS);
        self.context_tokens.add(context_tokens as f64 / rows as f64, STEPS);
    }

    pub fn observe_arrival(&mut self, arrival: Micros) {
        if let Some(last) = self.last_arrival.replace(arrival) {
            self.interarrival_us.add(arrival.saturating_sub(last).0 as f64, REQUESTS);
        }
    }

    pub fn observe_finished(&mut self, time: &TimeModel, summary: &RequestSummary) {
        self.output_tokens.add(f64::from(summary.output_tokens), REQUESTS);
        let prompt = summary.prompt_tokens;
        // Prompts share steps, and the more rows a step has already, the more each token adds.
        let prefill_us = match (self.step_prefill_us.get(), self.step_prefill_tokens.get()) {
            (Some(step_us), Some(step_tokens)) => f64::from(prompt) * step_us / step_tokens,
            _ => time.prefill_us(1, prompt, prefill_attended(0, prompt)),
        };
        self.prefill_us.add(prefill_us, REQUESTS);
        if let Some(tpot) = summary.tpot().filter(|tpot| tpot.0 > 0) {
            let log = (tpot.0 as f64).ln();
            let deviation = log - self.log_tpot.get().unwrap_or(log);
            self.log_tpot.add(log, REQUESTS);
            self.log_tpot_variance.add(deviation * deviation, REQUESTS);
        }
    }

    /// Length of a step's decode part over that of a plain step.
    pub fn stretch(&self) -> f64 {
        self.stretch.get().unwrap_or(1.0)
    }

    /// Decode and verification rows of a request in a step.
    pub fn rows(&self) -> f64 {
        self.rows.get().unwrap_or(1.0)
    }

    /// Expected tokens of a request in a step.
    pub fn tokens(&self) -> f64 {
        self.tokens.get().unwrap_or(1.0)
    }

    pub fn context_tokens(&self) -> f64 {
        self.context_tokens.get().unwrap_or(0.0)
    }

    /// Mean output of a request; `None` before any finished.
    pub fn output_tokens(&self) -> Option<f64> {
        self.output_tokens.get()
    }

    /// Prefill that comes with each output token, in microseconds: in the long run every request
    /// that ends is followed by another one's prompt.
    pub fn prefill_us_per_token(&self) -> f64 {
        let output_tokens = self.output_tokens.get().unwrap_or(1.0).max(1.0);
        self.prefill_us.get().unwrap_or(0.0) / output_tokens
    }

    /// Time between two arrivals, in microseconds.
    pub fn interarrival_us(&self) -> f64 {
        self.interarrival_us.get().unwrap_or(f64::INFINITY).max(1.0)
    }

    /// Share of the time that prefill takes at the present rate of arrivals, if all of it is
    /// served; may exceed 1.
    pub fn prefill_share(&self) -> f64 {
        self.prefill_us.get().unwrap_or(0.0) / self.interarrival_us()
    }

    /// Spread of TPOT between requests: the standard deviation of its logarithm. It never vanishes,
    /// because the first guess keeps its weight: no limit is planned to the last microsecond.
    pub fn spread(&self) -> f64 {
        let seen = f64::from(self.log_tpot_variance.count().min(REQUESTS as u32));
        let variance = self.log_tpot_variance.get().unwrap_or(0.0);
        let first = f64::from(FIRST_SPREAD_REQUESTS);
        ((variance * seen + FIRST_SPREAD * FIRST_SPREAD * first) / (seen + first)).sqrt()
    }

    pub fn state(&self) -> serde_json::Value {
        serde_json::json!({
            "tokens_per_step": self.tokens(),
            "decode_stretch": self.stretch(),
            "context_tokens": self.context_tokens(),
            "output_tokens": self.output_tokens(),
            "prefill_us_per_token": self.prefill_us_per_token(),
            "prefill_share": self.prefill_share(),
            "tpot_spread": self.spread(),
        })
    }
}
