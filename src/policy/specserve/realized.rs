//! What drafting brings over what was planned for it.
//!
//! A plan is made from mean confidences, as if its lengths were fixed. The step does better: once
//! confidences are known, it stops where drafts turn out poor and goes on where they turn out good.
//! What that is worth depends on how much confidences vary and on how many rows share a call, so it
//! is measured: the tokens of the steps that drafted, over those that the planned rate promised for
//! the same time (docs/policy.md, "One step").
//!
//! Steps of trees are planned as chains, too. So the two shapes can be compared by what they bring over
//! their plans ([`Realized::better_shape`]), even if they drafted for different requests. For this
//! comparison the time of a step is the one that it took, so that what a shape costs beyond the time
//! model counts as well.

use super::SpecServe;
use super::workspace::{Costs, weight};
use crate::protocol::{DecodeView, DraftSet, DraftShape, DraftedRow, StepReport};

/// Drafting steps that are remembered.
const STEPS: f64 = 64.0;
/// Plain steps' worth of tokens, as planned, that the ratio starts from.
const PRIOR_TOKENS: f64 = 8.0;
/// Range of the ratio that is believed. Where a plan promised too much, its forecasts are wrong;
/// they correct themselves.
const RANGE: (f64, f64) = (1.0, 1.6);
/// Octaves of batch sizes: 1, 2 to 3, 4 to 7, and so on.
const OCTAVES: usize = 12;
/// Steps of a shape that its comparison with the other remembers.
const COMPARED_STEPS: f64 = 256.0;
/// Steps that each shape is given before they are compared.
const TRIAL_STEPS: u64 = 16;
/// Of so many steps, one has the shape that does worse.
const RETRIAL_STEPS: u64 = 32;
/// Most that the time of a step counts for in a comparison, over its prediction.
const DELAY_MAX: f64 = 2.0;

/// Realized over planned rate of the steps that draft, by batch size.
#[derive(Clone, Debug, Default)]
pub(super) struct Realized {
    /// In each octave, of chains and of trees.
    octaves: [[Record; 2]; OCTAVES],
}

/// What is known of the steps of one shape.
#[derive(Clone, Copy, Debug, Default)]
struct Record {
    /// For planning, at predicted times.
    recent: Tally,
    /// For the comparison with the other shape, at measured times.
    compared: Tally,
    steps: u64,
}

/// Tokens of drafting steps, in units of a plain step's.
#[derive(Clone, Copy, Debug)]
struct Tally {
    realized: f64,
    planned: f64,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally { realized: PRIOR_TOKENS, planned: PRIOR_TOKENS }
    }
}

impl Tally {
    fn ratio(self) -> f64 {
        self.realized / self.planned
    }

    fn add(&mut self, realized: f64, planned: f64, steps: f64) {
        let fade = 1.0 - 1.0 / steps;
        self.realized = self.realized * fade + realized;
        self.planned = self.planned * fade + planned;
    }
}

/// A step that drafted: its tokens, and those that its plan promised for its time, both over the tokens
/// of a plain step.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    realized: f64,
    planned: f64,
    /// Time of the step over its prediction; `None` where other work was in it.
    delay: Option<f64>,
}

impl Realized {
    /// Realized over planned rate of this shape in a batch of `rows`; at least 1.
    pub(super) fn ratio(&self, rows: usize, shape: DraftShape) -> f64 {
        self.record(rows, shape).recent.ratio().clamp(RANGE.0, RANGE.1)
    }

    fn record(&self, rows: usize, shape: DraftShape) -> &Record {
        &self.octaves[octave(rows)][shape as usize]
    }

    /// The shape that does better in a batch of `rows`, or now and then the other, to see whether it
    /// still does.
    pub(super) fn better_shape(&self, rows: usize) -> DraftShape {
        let [chains, trees] = [DraftShape::Chain, DraftShape::Tree].map(|shape| self.record(rows, shape));
        let trees_are = |better: bool| if better { DraftShape::Tree } else { DraftShape::Chain };
        if chains.steps.min(trees.steps) < TRIAL_STEPS {
            return trees_are(trees.steps < chains.steps);
        }
        let is_retrial = (chains.steps + trees.steps).is_multiple_of(RETRIAL_STEPS);
        trees_are((trees.compared.ratio() > chains.compared.ratio()) != is_retrial)
    }

    /// Learns from a step of `rows`.
    fn add(&mut self, rows: usize, shape: DraftShape, step: Outcome) {
        let record = &mut self.octaves[octave(rows)][shape as usize];
        record.steps += 1;
        record.recent.add(step.realized, step.planned, STEPS);
        if let Some(delay) = step.delay {
            record.compared.add(step.realized, step.planned * delay.min(DELAY_MAX), COMPARED_STEPS);
        }
    }

    /// The ratios by octave of batch size.
    pub(super) fn state(&self) -> serde_json::Value {
        let of = |shape| -> Vec<f64> { (0..OCTAVES).map(|octave| self.ratio(1 << octave, shape)).collect() };
        let steps = |shape: DraftShape| -> Vec<u64> {
            self.octaves.iter().map(|octave| octave[shape as usize].steps).collect()
        };
        serde_json::json!({
            "chains": of(DraftShape::Chain),
            "trees": of(DraftShape::Tree),
            "chain_steps": steps(DraftShape::Chain),
            "tree_steps": steps(DraftShape::Tree),
        })
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
        let planned_rate = granted.rate / self.realized.ratio(costs.rows, granted.shape);
        let took_us = report.step_time.max(report.target_time).0 as f64;
        let step = Outcome {
            realized: tokens / plain_tokens,
            planned: planned_rate * step_us / plain_tokens,
            delay: view.prefilling.is_empty().then_some(took_us / step_us),
        };
        self.realized.add(costs.rows, granted.shape, step);
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

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: usize = 4;

    /// After `steps` steps of the shapes that are asked for, of which trees bring `trees` and chains
    /// `chains` of what was planned.
    fn after(steps: usize, (chains, trees): (f64, f64), realized: &mut Realized) -> Vec<DraftShape> {
        let step = |realized| Outcome { realized, planned: 2.0, delay: Some(1.0) };
        (0..steps)
            .map(|_| {
                let shape = realized.better_shape(ROWS);
                let brings = if shape == DraftShape::Tree { trees } else { chains };
                realized.add(ROWS, shape, step(2.0 * brings));
                shape
            })
            .collect()
    }

    fn trees(shapes: &[DraftShape]) -> usize {
        shapes.iter().filter(|&&shape| shape == DraftShape::Tree).count()
    }

    #[test]
    fn both_shapes_are_tried_and_then_the_better_one_drafts() {
        for (gains, better) in [((1.0, 1.1), 31), ((1.1, 1.0), 1)] {
            let mut realized = Realized::default();
            let trial = after(32, gains, &mut realized);
            assert_eq!(trees(&trial), 16);
            let later = after(320, gains, &mut realized);
            assert_eq!(trees(&later), 10 * better, "of 32 steps one is the other's");
        }
    }

    #[test]
    fn where_the_shapes_change_places_the_choice_follows() {
        let mut realized = Realized::default();
        after(1000, (1.0, 1.1), &mut realized);
        after(8000, (1.3, 0.9), &mut realized);
        assert!(trees(&after(320, (1.3, 0.9), &mut realized)) <= 10);
    }

    #[test]
    fn each_octave_of_batch_sizes_chooses_for_itself() {
        let mut realized = Realized::default();
        after(1000, (1.0, 1.1), &mut realized);
        assert_eq!(realized.record(2 * ROWS, DraftShape::Tree).steps, 0);
        assert_eq!(realized.better_shape(2 * ROWS), DraftShape::Chain, "a trial begins with a chain");
    }

    #[test]
    fn time_beyond_the_model_counts_in_the_comparison_and_other_work_does_not() {
        let mut realized = Realized::default();
        let outcome = |delay| Outcome { realized: 2.2, planned: 2.0, delay };
        for _ in 0..100 {
            realized.add(ROWS, DraftShape::Chain, outcome(Some(1.0)));
            realized.add(ROWS, DraftShape::Tree, outcome(Some(1.1)));
        }
        realized.add(ROWS, DraftShape::Chain, outcome(Some(1.0)));
        assert_eq!(realized.better_shape(ROWS), DraftShape::Chain);
        let planned = |shape| realized.ratio(ROWS, shape);
        assert!((planned(DraftShape::Chain) - planned(DraftShape::Tree)).abs() < 1e-3);
        let before = realized.record(ROWS, DraftShape::Tree).compared.ratio();
        let mut beside_prefill = realized.clone();
        beside_prefill.add(ROWS, DraftShape::Tree, outcome(None));
        assert_eq!(beside_prefill.record(ROWS, DraftShape::Tree).compared.ratio(), before);
    }
}
