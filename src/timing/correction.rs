//! The profile's time model, corrected online from measured steps.
//!
//! Each term (target, prefill, draft) has one multiplicative correction, learned in the log
//! domain by exponentially weighted least squares: with a constant as the only regressor that
//! is an exponentially weighted mean of `ln(observed / predicted)`. Its memory starts short
//! (all steps count alike, and the profile as [`PROFILE_STEPS`] of them) and grows to
//! [`MEMORY_STEPS`]. A single step moves the estimate by a bounded amount, and the correction
//! is clamped, so that a stall or a cold first step does not poison the planner. A term that was
//! not observed for a while follows the target's: it is the same machine. The rest of a step,
//! beside the models, is an additive mean. The input is the step report.
//!
//! A draft head reads the hidden states of all tokens that were committed since it last drafted, in
//! the first call of a round. They are counted, so that a round after a long prompt or many plain
//! steps does not look like a slow machine. Plans leave them out: the head reads the states of each
//! token once, whether the next step drafts or a later one.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::cost_model::{BESIDE_ROWS_MAX, CostModel, Work, prefill_attended};
use super::error_window::ErrorWindow;
use crate::protocol::{DraftCounts, StepReport};

/// Steps that the exponentially weighted mean remembers.
pub const MEMORY_STEPS: f64 = 32.0;
/// Weight of the profile against the first steps, in steps.
pub const PROFILE_STEPS: u32 = 3;
/// Steps without an observation after which a correction follows the target's. Before that its
/// own estimate is better, and an error common to both would be corrected twice.
const FOLLOWS_AFTER_STEPS: u32 = 16;
/// Corrections stay between the reciprocal of this factor and the factor itself.
pub const CORRECTION_MAX: f64 = 4.0;
/// Largest surprise that one step may contribute, as `|ln ratio|`: about a factor of 1.5.
const SURPRISE_MAX: f64 = 0.4;
/// The prefill correction learns only from steps in which prefill is at least this share.
const PREFILL_SHARE_MIN: f64 = 0.3;
/// A host observation is cut at this multiple of the current estimate, plus the floor.
const HOST_FACTOR_MAX: f64 = 8.0;
/// See [`HOST_FACTOR_MAX`].
const HOST_FLOOR_US: f64 = 200.0;
/// The p99 of relative underestimation above which the planner must add it as margin.
pub const P99_ERROR_BOUND: f64 = 0.15;
/// Largest margin.
pub const MARGIN_MAX: f64 = 0.5;
/// Steps before a p99 means anything.
const P99_STEPS_MIN: usize = 64;
/// Most tokens whose states a draft head can be taken not to have read: it reads what has
/// accumulated before there are many more, in whichever step that is.
const UNREAD_TOKENS_MAX: u64 = 1024;
/// Steps between two evaluations of the quantiles.
const MARGIN_PERIOD_STEPS: u64 = 16;

/// Times of rows beside prefill; see [`TimeModel::beside`].
#[derive(Clone, Copy, Debug)]
pub struct Beside<'a> {
    /// Microseconds by decode and verification rows.
    pub table: &'a [f64],
    /// Correction on them.
    pub factor: f64,
    /// What of them the prefill takes, at the price of a row there: steps with more prefill and
    /// fewer without would take that much more.
    pub prefill_us: f64,
}

/// One multiplicative correction.
#[derive(Clone, Copy, Debug, Default)]
struct Correction {
    log: f64,
    steps: u32,
    /// Steps since it last learned.
    unseen: u32,
}

impl Correction {
    fn factor(&self) -> f64 {
        self.log.exp()
    }

    fn learn(&mut self, observed_us: f64, predicted_us: f64) {
        if !(observed_us > 0.0 && predicted_us > 0.0) {
            return;
        }
        let bound = CORRECTION_MAX.ln();
        let surprise = (observed_us / predicted_us).ln() - self.log;
        let surprise = surprise.clamp(-SURPRISE_MAX, SURPRISE_MAX);
        let gain = (1.0 / (f64::from(self.steps) + f64::from(PROFILE_STEPS + 1))).max(1.0 / MEMORY_STEPS);
        self.log = (self.log + gain * surprise).clamp(-bound, bound);
        self.steps = self.steps.saturating_add(1);
        self.unseen = 0;
    }

    /// A step without an observation, in which the target's correction moved by `moved_log`.
    fn follow(&mut self, moved_log: f64) {
        if self.steps == 0 || self.unseen >= FOLLOWS_AFTER_STEPS {
            let bound = CORRECTION_MAX.ln();
            self.log = (self.log + moved_log).clamp(-bound, bound);
        }
        self.unseen = self.unseen.saturating_add(1);
    }
}

/// Predicts step times: profile times correction.
#[derive(Clone, Debug)]
pub struct TimeModel {
    cost: Arc<CostModel>,
    target: Correction,
    prefill: Correction,
    draft: Correction,
    host_us: f64,
    /// `(observed − predicted) / predicted` of whole steps: positive when underestimated.
    errors: ErrorWindow,
    margin: f64,
    steps: u64,
    /// Tokens that were committed since the last draft call.
    unread_tokens: u64,
}

impl TimeModel {
    /// Starts from the profile.
    pub fn new(cost: CostModel) -> TimeModel {
        TimeModel {
            host_us: cost.host_us,
            cost: Arc::new(cost),
            target: Correction::default(),
            prefill: Correction::default(),
            draft: Correction::default(),
            errors: ErrorWindow::default(),
            margin: 0.0,
            steps: 0,
            unread_tokens: 0,
        }
    }

    /// The profile's part.
    pub fn cost(&self) -> &CostModel {
        &self.cost
    }

    /// Whether there is a draft model to plan with.
    pub fn has_draft(&self) -> bool {
        self.cost.draft.is_some()
    }

    /// Factor on every target term but prefill.
    pub fn target_factor(&self) -> f64 {
        self.target.factor()
    }

    /// Factor on every draft term.
    pub fn draft_factor(&self) -> f64 {
        self.draft.factor()
    }

    /// Host time of a step beside the models, in microseconds.
    pub fn host_us(&self) -> f64 {
        self.host_us
    }

    /// The target's decode part of a step, in microseconds.
    pub fn target_us(&self, work: &Work) -> f64 {
        self.cost.target.decode_us(work) * self.target.factor()
    }

    /// What prefill adds to a step over `rows` decode and verification rows, in microseconds.
    pub fn prefill_us(&self, rows: u32, tokens: u32, attended_tokens: u64) -> f64 {
        self.cost.target.prefill_us(rows, tokens, attended_tokens) * self.prefill.factor()
    }

    /// What the context that prefill attends to adds to it, in microseconds.
    pub fn prefill_attended_us(&self, attended_tokens: u64) -> f64 {
        self.cost.target.terms().prefill_attended_us * attended_tokens as f64 * self.prefill.factor()
    }

    /// The target's staircase for `rows` decode and verification rows and more, beside
    /// `prefill_tokens` of prefill; of more than [`BESIDE_ROWS_MAX`] rows of it, beside so many.
    pub fn beside(&self, rows: u32, prefill_tokens: u32) -> Beside<'_> {
        let target = &self.cost.target;
        let prefill_rows = target.prefill_rows(prefill_tokens).min(BESIDE_ROWS_MAX as u32);
        let (decode_us, all_us) = (target.rows_us(rows), target.rows_us(rows.saturating_add(prefill_rows)));
        let corrected_us = decode_us * self.target.factor() + (all_us - decode_us) * self.prefill.factor();
        Beside {
            table: target.table_from(prefill_rows as usize),
            factor: corrected_us / all_us,
            prefill_us: corrected_us / all_us * self.cost.target.marginal_us(rows, prefill_rows),
        }
    }

    /// One draft call over `rows` sequences with `context_tokens` behind them in all, in
    /// microseconds; 0 without a draft model.
    pub fn draft_call_us(&self, rows: u32, context_tokens: u64) -> f64 {
        let Some(draft) = &self.cost.draft else { return 0.0 };
        let attended_tokens = context_tokens;
        draft.decode_us(&Work { rows, context_tokens, attended_tokens, ..Work::default() })
            * self.draft.factor()
    }

    /// Fixed time of a drafting round beside its calls, in microseconds; 0 without a draft model.
    pub fn draft_round_us(&self) -> f64 {
        let round_us = self.cost.draft.as_ref().map_or(0.0, |draft| draft.terms().round_us);
        round_us * self.draft.factor()
    }

    /// Catching the draft model up on `tokens` in a call over `rows` sequences, in microseconds.
    pub fn catch_up_us(&self, rows: u32, tokens: u32, attended_tokens: u64) -> f64 {
        let Some(draft) = &self.cost.draft else { return 0.0 };
        draft.prefill_us(rows, tokens, attended_tokens) * self.draft.factor()
    }

    /// A plain decode step of `rows` sequences with `context_tokens` behind them in all, in
    /// microseconds: what admission holds a TPOT objective against.
    pub fn plain_step_us(&self, rows: u32, context_tokens: u64) -> f64 {
        let work = Work { rows, context_tokens, attended_tokens: context_tokens, ..Work::default() };
        self.target_us(&work) + self.host_us
    }

    /// Share to add to a predicted step time before it is held against an objective:
    /// 0 while the p99 of underestimation is within [`P99_ERROR_BOUND`], else that p99.
    pub fn margin(&self) -> f64 {
        self.margin
    }

    /// Quantile of |relative error| of recent steps, each predicted before it was learned from.
    pub fn relative_error(&self, share: f64) -> Option<f64> {
        self.errors.quantile(share, f32::abs)
    }

    /// A step's time as predicted from what it did, in microseconds.
    pub fn step_us(&self, report: &StepReport) -> f64 {
        let work = target_work(report);
        let target = if work.rows > 0 { self.target_us(&work) } else { self.base_us() };
        let prefill = self.prefill_us(work.rows, report.prefill_tokens, report.prefill_attended_tokens);
        target + prefill + self.draft_us(report) + self.host_us
    }

    /// Learns from one step.
    pub fn observe(&mut self, report: &StepReport) {
        self.learn(report);
        let drafted = !report.draft_calls.is_empty();
        let unread_tokens = if drafted { 0 } else { self.unread_tokens };
        self.unread_tokens = (unread_tokens + committed_tokens(report)).min(UNREAD_TOKENS_MAX);
    }

    fn learn(&mut self, report: &StepReport) {
        let target_us = micros(report.target_time);
        if target_us <= 0.0 {
            return;
        }
        let draft_us = micros(report.draft_time);
        let step_us = micros(report.step_time).max(target_us + draft_us);
        let predicted_us = self.step_us(report);
        self.errors.push((step_us - predicted_us) / predicted_us);
        let before_log = self.target.log;
        self.learn_target(report, target_us);
        let moved_log = self.target.log - before_log;
        if report.prefill_tokens == 0 {
            self.prefill.follow(moved_log);
        }
        if report.draft_calls.is_empty() {
            self.draft.follow(moved_log);
        }
        self.draft.learn(draft_us, self.draft_us(report) / self.draft.factor());
        if report.step_time.0 > 0 {
            let host_us =
                (step_us - target_us - draft_us).min(HOST_FACTOR_MAX * self.host_us + HOST_FLOOR_US);
            self.host_us += (host_us - self.host_us) / MEMORY_STEPS;
        }
        self.steps += 1;
        if self.steps.is_multiple_of(MARGIN_PERIOD_STEPS) {
            self.margin = self.margin_now();
        }
    }

    /// Corrections and errors, for `/v1/engine/state`.
    pub fn state(&self) -> serde_json::Value {
        serde_json::json!({
            "steps": self.steps,
            "target_factor": self.target.factor(),
            "prefill_factor": self.prefill.factor(),
            "draft_factor": self.draft.factor(),
            "host_us": self.host_us,
            "relative_error_p50": self.relative_error(0.5),
            "relative_error_p99": self.relative_error(0.99),
            "margin": self.margin,
        })
    }

    /// A prefill-only pass still reads the weights.
    fn base_us(&self) -> f64 {
        self.cost.target.rows_us(0) * self.target.factor()
    }

    fn learn_target(&mut self, report: &StepReport, observed_us: f64) {
        let work = target_work(report);
        let decode_us = if work.rows > 0 { self.target_us(&work) } else { self.base_us() };
        let prefill_us = self.prefill_us(work.rows, report.prefill_tokens, report.prefill_attended_tokens);
        if report.prefill_tokens == 0 {
            self.target.learn(observed_us, decode_us / self.target.factor());
        } else if prefill_us >= PREFILL_SHARE_MIN * (decode_us + prefill_us) {
            let left_us = (observed_us - decode_us).max(prefill_us / CORRECTION_MAX);
            self.prefill.learn(left_us, prefill_us / self.prefill.factor());
        }
    }

    fn draft_us(&self, report: &StepReport) -> f64 {
        let Some(draft) = &self.cost.draft else { return 0.0 };
        let Some(&(seeds, _)) = report.draft_calls.first() else { return 0.0 };
        let unread_tokens = self.unread_tokens.saturating_sub(seeds.into());
        let mut total = draft.terms().round_us + draft.states_us(unread_tokens);
        // a head of blocks has nothing to do in further calls
        let calls = if draft.drafts_blocks() { 1 } else { report.draft_calls.len() };
        for (call, &(rows, input_tokens)) in report.draft_calls.iter().take(calls).enumerate() {
            let (context_tokens, attended_tokens) = draft_context(report, call);
            let work = Work {
                rows,
                context_tokens,
                attended_tokens: context_tokens,
                prefill_tokens: input_tokens.saturating_sub(rows),
                prefill_attended_tokens: if call == 0 { attended_tokens } else { 0 },
            };
            total += draft.micros(&work);
        }
        total * self.draft.factor()
    }

    fn margin_now(&self) -> f64 {
        if self.errors.len() < P99_STEPS_MIN {
            return 0.0;
        }
        match self.errors.quantile(0.99, |error| error) {
            Some(p99) if p99 > P99_ERROR_BOUND => p99.min(MARGIN_MAX),
            _ => 0.0,
        }
    }
}

fn micros(span: crate::protocol::Micros) -> f64 {
    span.0 as f64
}

/// Tokens whose hidden states the target computed for good.
fn committed_tokens(report: &StepReport) -> u64 {
    let decoded = report.counts.iter().map(|counts| u64::from(counts.accepted) + 1);
    u64::from(report.prefill_tokens) + decoded.sum::<u64>()
}

fn target_work(report: &StepReport) -> Work {
    let mut work = Work::default();
    for (row, &DraftCounts { verified, .. }) in report.view.decoding.iter().zip(&report.counts) {
        let (context, queries) = (u64::from(row.context_tokens), u64::from(verified) + 1);
        work.rows += verified + 1;
        work.context_tokens += context;
        work.attended_tokens += queries * context + queries * (queries - 1) / 2;
    }
    work
}

/// Context behind the rows of draft call `call`, and what their catch-up attended to.
fn draft_context(report: &StepReport, call: usize) -> (u64, u64) {
    // a tree has as many rows of a call as answers
    let rows = report.drafted.iter().flat_map(|row| std::iter::repeat_n(row, row.answers_at(call)));
    let views = rows.filter_map(|row| report.view.decoding.get(row.decoding as usize));
    views.fold((0, 0), |(context, attended), row| {
        let missed = row.draft_lag_tokens.saturating_sub(1);
        let done = row.context_tokens.saturating_sub(row.draft_lag_tokens);
        (context + u64::from(row.context_tokens) + call as u64, attended + prefill_attended(done, missed))
    })
}
