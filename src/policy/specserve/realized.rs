//! What drafting brings over what was planned for it.
//!
//! A plan is made from mean confidences, as if its lengths were fixed. The step does better: once
//! confidences are known, it stops where drafts turn out poor and goes on where they turn out good.
//! What that is worth depends on how much confidences vary and on how many rows share a call, so it
//! is measured: the tokens of the steps that drafted, over those that the planned rate promised for
//! the same time (docs/policy.md, "One step").

use super::SpecServe;
use super::workspace::{Costs, weight};
use crate::protocol::{DecodeView, DraftSet, DraftedRow, StepReport};

/// Drafting steps that are remembered.
const STEPS: f64 = 64.0;
/// Plain steps' worth of tokens, as planned, that the ratio starts from.
const PRIOR_TOKENS: f64 = 8.0;
/// Range of the ratio that is believed. Where a plan promised too much, its forecasts are wrong;
/// they correct themselves.
const RANGE: (f64, f64) = (1.0, 1.6);
/// Octaves of batch sizes: 1, 2 to 3, 4 to 7, and so on.
const OCTAVES: usize = 12;

/// Realized over planned rate of the steps that draft, by batch size.
#[derive(Clone, Debug)]
pub(super) struct Realized {
    octaves: [Tally; OCTAVES],
}

/// Tokens of drafting steps, in units of a plain step's.
#[derive(Clone, Copy, Debug)]
struct Tally {
    realized: f64,
    planned: f64,
}

impl Default for Realized {
    fn default() -> Realized {
        Realized { octaves: [Tally { realized: PRIOR_TOKENS, planned: PRIOR_TOKENS }; OCTAVES] }
    }
}

impl Realized {
    /// Realized over planned rate in a batch of `rows`; at least 1.
    pub(super) fn ratio(&self, rows: usize) -> f64 {
        let Tally { realized, planned } = self.octaves[octave(rows)];
        (realized / planned).clamp(RANGE.0, RANGE.1)
    }

    /// Learns from a step of `rows` that drafted: its tokens, and those that its plan promised for
    /// the time that it took, both over the tokens of a plain step.
    fn add(&mut self, rows: usize, realized: f64, planned: f64) {
        let tally = &mut self.octaves[octave(rows)];
        let fade = 1.0 - 1.0 / STEPS;
        tally.realized = tally.realized * fade + realized;
        tally.planned = tally.planned * fade + planned;
    }

    /// The ratios by octave of batch size.
    pub(super) fn state(&self) -> serde_json::Value {
        (0..OCTAVES).map(|octave| self.ratio(1 << octave)).collect()
    }
}

fn octave(rows: usize) -> usize {
    (rows.max(1).ilog2() as usize).min(OCTAVES - 1)
}

impl SpecServe {
    /// Learns what a step that drafted brought over its plan. Tokens and time are the policy's own
    /// predictions for what was verified: outcomes would say the same, with far more noise.
    pub(super) fn observe_realized(&mut self, report: &StepReport) {
        let StepReport { view, granted, drafted, .. } = report;
        if granted.rate <= 0.0 || drafted.is_empty() {
            return;
        }
        let costs = Costs::of(&self.time, view, granted.prefill_tokens);
        let plain_tokens: f64 = view.decoding.iter().map(|row| f64::from(weight(&self.pace, row))).sum();
        let mut tokens = plain_tokens;
        let mut queries_us = 0.0;
        let mut verified = 0;
        for (number, row) in drafted.iter().enumerate() {
            let index = row.decoding as usize;
            let drafts = report.counts[index].verified;
            let set = match row.is_tree() {
                true => report.outcomes.get(number).copied().unwrap_or_default().verified,
                false => DraftSet::first(drafts as usize),
            };
            tokens += self.expected_tokens(&view.decoding[index], row, set);
            queries_us += f64::from(costs.query_us(&view.decoding[index])) * f64::from(drafts);
            verified += drafts as usize;
        }
        let lags_us = costs.short_lags_us(view, |index| granted.drafts[index] > 0);
        let draft_us = self.spent(&costs, drafted).draft_us + lags_us;
        let step_us = costs.verify_us(verified) + queries_us + draft_us;
        let planned_rate = granted.rate / self.realized.ratio(costs.rows);
        self.realized.add(costs.rows, tokens / plain_tokens, planned_rate * step_us / plain_tokens);
    }

    /// Weighted tokens that are expected of these drafts of a row.
    fn expected_tokens(&self, view: &DecodeView, row: &DraftedRow, drafts: DraftSet) -> f64 {
        let mut survival = Vec::with_capacity(row.proposals.len());
        self.measure_tree(view, row, &mut survival);
        let tokens: f64 =
            drafts.iter().filter_map(|draft| survival.get(draft)).map(|&one| f64::from(one)).sum();
        f64::from(weight(&self.pace, view)) * tokens
    }
}
