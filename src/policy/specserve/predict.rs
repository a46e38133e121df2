//! Before a step: plans the draft model's catch-up and drafting from forecasts
//! (docs/policy.md, "One step").

use super::gate::PROBE_DRAFTS;
use super::workspace::{Costs, Spent, Workspace, lags};
use super::{HORIZON_STEPS, SpecServe, StepDecision, StepView};
use crate::protocol::{DraftShape, Intent};
use crate::timing::cost_model::prefill_attended;

/// Fraction of a plain step that catching up may add beyond the first row.
const CATCH_UP_SHARE: f64 = 0.5;

/// What was planned before the first draft call.
struct Drafting {
    intent: Intent,
    /// Planned rate, in weighted tokens per microsecond; 0 without drafts.
    rate: f64,
    /// Rate over that of plain decoding, were the draft model caught up on all rows.
    gain: f64,
}

impl Drafting {
    const NONE: Drafting = Drafting { intent: Intent::Draft, rate: 0.0, gain: 1.0 };
}

impl SpecServe {
    /// The whole decision; leaves the planned lengths in `space`.
    pub(super) fn decide(&self, space: &mut Workspace, view: &StepView) -> StepDecision {
        let costs = Costs::of(&self.time, view, view.prefill_tokens_max);
        space.begin(&costs, &self.pace, view);
        let shape = self.shape(costs.rows);
        let Drafting { intent, rate, gain } = self.plan_drafts(space, &costs, view, shape);
        let mut decision = StepDecision {
            intent,
            shape: if intent == Intent::Draft && space.drafts() { shape } else { DraftShape::Chain },
            drafts: space.lengths.clone(),
            prefill_tokens: view.prefill_tokens_max,
            warm_draft: self.warms_draft(&costs, view, gain),
            rate,
        };
        if intent == Intent::Draft {
            self.grant(space, &costs, view, &mut decision);
        }
        decision
    }

    /// Lets all rows draft that are planned to, or that may turn out better than those;
    /// `extend` decides after each draft call how far a row really goes.
    fn grant(&self, space: &Workspace, costs: &Costs<'_>, view: &StepView, decision: &mut StepDecision) {
        if !space.drafts() {
            return;
        }
        let hurdle = space.hurdle(costs, decision.rate);
        for (index, (drafts, row)) in decision.drafts.iter_mut().zip(&view.decoding).enumerate() {
            let may = *drafts > 0 || space.rows[index].positions > 0 && space.clears(&hurdle, index);
            *drafts = if may { self.positions(row.drafts_max) } else { 0 };
        }
    }

    /// While speculation is on, the draft model prefills prompts too, or it would have to catch up
    /// before the first draft; unless drafting at `gain` times the rate of plain decoding does not
    /// earn that over a request's output.
    fn warms_draft(&self, costs: &Costs<'_>, view: &StepView, gain: f64) -> bool {
        if !self.gate.is_on() || !self.time.has_draft() {
            return false;
        }
        if costs.rows == 0 || view.prefilling.is_empty() {
            return true;
        }
        let prompts = view.prefilling.len() as f64;
        let tokens: u32 = view.prefilling.iter().map(|row| row.done_tokens + row.remaining_tokens).sum();
        let mean_tokens = (f64::from(tokens) / prompts) as u32;
        let cost_us = self.time.catch_up_us(costs.rows as u32, mean_tokens, prefill_attended(0, mean_tokens));
        let token_us = costs.plain_us() / costs.rows as f64;
        self.lifetime.output_tokens() * token_us * (1.0 - 1.0 / gain) > cost_us
    }

    /// Plans drafting of this shape, by the chains of it. On return `space.lengths` holds the planned
    /// lengths, all zero when a plain step is at least as good.
    fn plan_drafts(
        &self,
        space: &mut Workspace,
        costs: &Costs<'_>,
        view: &StepView,
        shape: DraftShape,
    ) -> Drafting {
        space.lengths.clear();
        space.lengths.resize(costs.rows, 0);
        if !self.time.has_draft() || view.decoding.iter().all(|row| row.drafts_max == 0) {
            return Drafting::NONE;
        }
        self.forecast_all(view, space);
        // Any draft pays for the round; the plain step that it is compared with does not.
        let short_lags_us = costs.short_lags_us(view, |index| view.decoding[index].drafts_max > 0);
        let drafting = view.decoding.iter().filter(|row| row.drafts_max > 0).count();
        let round_us = costs.draft_round_us(drafting);
        let spent = Spent { draft_us: round_us + short_lags_us, ..Spent::default() };
        let plain_rate = space.weight() / costs.plain_us();
        let mut rate = self.solve_ahead(space, costs, spent, shape);
        let gain = rate / plain_rate;
        if space.drafts() && view.decoding.iter().any(lags) {
            self.admit_lagging(space, costs, view);
            rate = self.solve_ahead(space, costs, spent, shape);
        }
        if space.drafts() && self.gate.opens_for(rate / plain_rate) {
            return Drafting { intent: Intent::Draft, rate, gain };
        }
        space.lengths.fill(0);
        Drafting { intent: self.probe(space, costs, view), rate: 0.0, gain }
    }

    /// Plans lengths from forecasts. Returns the rate to expect, in weighted tokens per microsecond.
    ///
    /// A plan that draws with plain decoding on mean confidences wins by what stopping early saves:
    /// if none is ahead of the plain step, the best that is no further behind than that is taken.
    fn solve_ahead(&self, space: &mut Workspace, costs: &Costs<'_>, spent: Spent, shape: DraftShape) -> f64 {
        let rows_max = self.options.verify_rows_max;
        let realized = self.realized.ratio(costs.rows, shape);
        let mut rate = space.solve(costs, rows_max, spent).rate();
        if !space.drafts() && realized > 1.0 {
            let plain_us = costs.plain_us();
            let plain_rate = space.weight() / plain_us;
            let behind = Spent { before_us: HORIZON_STEPS * plain_us, rate: plain_rate / realized, ..spent };
            rate = space.solve(costs, rows_max, behind).rate_after(behind.before_us, behind.rate);
        }
        if space.drafts() { rate * realized } else { rate }
    }

    /// Decides which lagging rows may catch up and draft in this step, given the plan that assumes
    /// all rows caught up; clears the positions of the others.
    ///
    /// A row is admitted if its gain over the output still to come covers the cost at the plan's
    /// rate.
    fn admit_lagging(&self, space: &mut Workspace, costs: &Costs<'_>, view: &StepView) {
        let step_us = space.step_us(costs);
        let tokens: f64 = (0..costs.rows).map(|row| space.tokens(row, space.lengths[row])).sum();
        let rate = tokens / step_us;
        let drafts: u32 = space.lengths.iter().sum();
        let draft_us = (step_us - costs.plain_us()) / f64::from(drafts.max(1));
        let horizon_steps = self.lifetime.output_tokens() * costs.rows as f64 / tokens;
        let budget_us = CATCH_UP_SHARE * costs.plain_us();
        let mut total_us = 0.0;
        for (index, row) in view.decoding.iter().enumerate().filter(|(_, row)| lags(row)) {
            let cost_us = costs.catch_up_us(row);
            let length = space.lengths[index];
            let gain = space.tokens(index, length) - 1.0 - rate * draft_us * f64::from(length);
            let pays = gain * horizon_steps > rate * cost_us;
            // The first row may exceed the share, or a long prompt would never be admitted.
            let fits = total_us + cost_us <= budget_us || total_us == 0.0;
            if pays && fits {
                total_us += cost_us;
            } else {
                space.rows[index].positions = 0;
            }
        }
    }

    /// Plans a probe of one row if one is due.
    fn probe(&self, space: &mut Workspace, costs: &Costs<'_>, view: &StepView) -> Intent {
        let index = self.gate.probe_row(costs.rows);
        let row = &view.decoding[index];
        let drafts = self.positions(row.drafts_max).min(PROBE_DRAFTS);
        let verify_us = costs.verify_us(drafts as usize) - costs.plain_us();
        let draft_us = costs.draft_round_us(1) + costs.draft_call_us(1) * f64::from(drafts);
        let cost_us = costs.catch_up_us(row) + verify_us + draft_us;
        if drafts > 0 && self.gate.probe_is_due(cost_us) {
            space.lengths[index] = drafts;
            return Intent::Probe;
        }
        Intent::Draft
    }
}
