//! Before a step: plans prefill, the draft model's catch-up and drafting from forecasts
//! (docs/policy.md, "One step"; docs/slo.md, "Prefill").

use super::gate::PROBE_DRAFTS;
use super::workspace::{Costs, Spent, Workspace};
use super::{SpecServe, StepDecision, StepView};
use crate::policy::slo::{chunk_within, prefill_needed, tolerable_us};
use crate::protocol::{DecodeView, Intent};

/// Lag that needs no admission: a step that accepted all its drafts leaves two tokens.
const LAG_FREE_TOKENS: u32 = 4;
/// Steps within which catching up must pay for itself.
const CATCH_UP_HORIZON_STEPS: f64 = 32.0;
/// Fraction of a plain step that catching up may add beyond the first row.
const CATCH_UP_SHARE: f64 = 0.5;

/// Planned drafting; the lengths are in the workspace.
#[derive(Default)]
struct PlannedDrafts {
    intent: Intent,
    /// Time for the draft model's catch-up of the rows that draft, in microseconds.
    catch_up_us: f64,
}

impl SpecServe {
    /// The whole decision; leaves the planned lengths in `space`.
    pub(super) fn decide(&self, space: &mut Workspace, view: &StepView) -> StepDecision {
        if view.decoding.is_empty() {
            return StepDecision {
                prefill_tokens: view.prefill_tokens_max,
                warm_draft: self.warms_draft(),
                ..StepDecision::default()
            };
        }
        let costs = Costs::of(&self.time, view);
        let due = self.prefill_due(space, &costs, view);
        let prefill_us = costs.prefill_us(view, due);
        let PlannedDrafts { intent, catch_up_us } = self.plan_drafts(space, &costs, view, prefill_us);
        let step_us = space.step_us(&costs) + catch_up_us;
        let room_us = space.limit_us(step_us) - step_us;
        let fits = chunk_within(&self.time, &view.prefilling, room_us, view.prefill_tokens_max);
        let mut decision = StepDecision {
            intent,
            drafts: space.lengths.clone(),
            prefill_tokens: due.max(fits),
            warm_draft: self.warms_draft(),
        };
        if intent == Intent::Draft {
            // `extend` decides after each draft call how far a row really goes.
            let rows = decision.drafts.iter_mut().zip(&view.decoding);
            rows.filter(|(drafts, _)| **drafts > 0)
                .for_each(|(drafts, row)| *drafts = self.positions(row.drafts_max));
        }
        decision
    }

    /// While speculation is on, the draft model prefills prompts too, or it would have to catch up
    /// before the first draft.
    fn warms_draft(&self) -> bool {
        self.gate.is_on() && self.time.has_draft()
    }

    /// Prefill tokens that this step must take: the floor, and what TTFT objectives need as far as
    /// running requests can absorb it. At most as many TPOT objectives are sacrificed as TTFT
    /// objectives can be met. Sets the workspace up.
    fn prefill_due(&self, space: &mut Workspace, costs: &Costs<'_>, view: &StepView) -> u32 {
        let tokens_max = view.prefill_tokens_max;
        let floor = chunk_within(&self.time, &view.prefilling, f64::INFINITY, tokens_max)
            .min(self.options.prefill_tokens_floor);
        space.begin(costs, view, costs.plain_us() + costs.prefill_us(view, floor));
        let needed = prefill_needed(&self.time, &view.prefilling, costs.plain_us(), tokens_max);
        let saved =
            view.prefilling.iter().filter(|row| row.ttft.is_some_and(|ttft| row.since_arrival < ttft));
        let limit_us = self.credit_limit_us(space, view, costs.plain_us(), saved.count());
        let room_us = limit_us.max(space.plain_limit_us()) - costs.plain_us();
        let due = floor.max(chunk_within(&self.time, &view.prefilling, room_us, needed));
        if due > floor {
            // Prefill that is due comes first: the requests' states include it.
            space.begin(costs, view, costs.plain_us() + costs.prefill_us(view, due));
        }
        due
    }

    /// Longest step that all but `sacrificed` of the requests can absorb, in microseconds. Requests
    /// that can't absorb even a plain step do not count.
    fn credit_limit_us(
        &self,
        space: &mut Workspace,
        view: &StepView,
        plain_us: f64,
        sacrificed: usize,
    ) -> f64 {
        let stretch = 1.0 + self.time.margin();
        let tolerable = view.decoding.iter().filter_map(|row| tolerable_us(row, plain_us));
        space.tolerable_us.clear();
        space.tolerable_us.extend(tolerable.map(|us| us / stretch).filter(|&us| us >= plain_us));
        if sacrificed >= space.tolerable_us.len() {
            return f64::INFINITY;
        }
        *space.tolerable_us.select_nth_unstable_by(sacrificed, f64::total_cmp).1
    }

    /// Plans drafting. On return `space.lengths` holds the planned lengths, all zero when a
    /// plain step is at least as good.
    fn plan_drafts(
        &self,
        space: &mut Workspace,
        costs: &Costs<'_>,
        view: &StepView,
        prefill_us: f64,
    ) -> PlannedDrafts {
        space.lengths.clear();
        space.lengths.resize(costs.rows, 0);
        if !self.time.has_draft() || view.decoding.iter().all(|row| row.drafts_max == 0) {
            return PlannedDrafts::default();
        }
        self.forecast_all(view, space);
        space.save_bounds();
        let rows_max = self.options.verify_rows_max;
        let near = view.decoding.iter().filter(|row| !lags(row));
        let mut catch_up_us: f64 = near.map(|row| costs.catch_up_us(row)).sum();
        // Any draft pays for the round; the plain step that it is compared with does not.
        let draft_us = costs.draft_round_us();
        let spent = Spent { draft_us, unpriced_us: prefill_us + catch_up_us, ..Spent::default() };
        let (mut plan, mut rescued) = space.solve(costs, rows_max, spent);
        if space.drafts() && view.decoding.iter().any(lags) {
            space.restore_bounds();
            // Rows that lag may borrow: without drafts they would never get ahead of their bounds.
            let limit_us = self.credit_limit_us(space, view, costs.plain_us(), 0);
            let room_us = limit_us.max(space.plain_limit_us()) - costs.plain_us() - spent.unpriced_us;
            let admitted_us = self.admit_lagging(space, costs, view, room_us);
            catch_up_us += admitted_us;
            let spent = Spent { unpriced_us: spent.unpriced_us + admitted_us, ..spent };
            (plan, rescued) = space.solve(costs, rows_max, spent);
        }
        let plain_rate = costs.rows as f64 / costs.plain_us();
        let gain = plan.map_or(0.0, |plan| plan.rate() / plain_rate);
        if space.drafts() && (rescued || self.gate.opens_for(gain)) {
            return PlannedDrafts { intent: Intent::Draft, catch_up_us };
        }
        space.lengths.fill(0);
        self.probe(space, costs, view, prefill_us)
    }

    /// Decides which lagging rows may catch up and draft in this step, given the plan that assumes
    /// all rows caught up; clears the positions of the others. Returns the time of the catch-up, in
    /// microseconds.
    ///
    /// A row is admitted if its gain over the horizon covers the cost at the plan's rate.
    fn admit_lagging(&self, space: &mut Workspace, costs: &Costs<'_>, view: &StepView, room_us: f64) -> f64 {
        let step_us = space.step_us(costs);
        let tokens: f64 = (0..costs.rows).map(|row| space.tokens(row, space.lengths[row])).sum();
        let rate = tokens / step_us;
        let drafts: u32 = space.lengths.iter().sum();
        let draft_us = (step_us - costs.plain_us()) / f64::from(drafts.max(1));
        let budget_us = room_us.min(CATCH_UP_SHARE * costs.plain_us());
        let mut total_us = 0.0;
        for (index, row) in view.decoding.iter().enumerate().filter(|(_, row)| lags(row)) {
            let cost_us = costs.catch_up_us(row);
            let length = space.lengths[index];
            let gain = space.tokens(index, length) - 1.0 - rate * draft_us * f64::from(length);
            let pays = gain * CATCH_UP_HORIZON_STEPS > rate * cost_us;
            // The first row may exceed the share, or a long prompt would never be admitted.
            let fits = total_us + cost_us <= budget_us || (total_us == 0.0 && cost_us <= room_us);
            if pays && fits {
                total_us += cost_us;
            } else {
                space.rows[index].positions = 0;
            }
        }
        total_us
    }

    /// Plans a probe of one row if one is due and fits the bounds.
    fn probe(
        &self,
        space: &mut Workspace,
        costs: &Costs<'_>,
        view: &StepView,
        prefill_us: f64,
    ) -> PlannedDrafts {
        let index = self.gate.probe_row(costs.rows);
        let row = &view.decoding[index];
        let drafts = self.positions(row.drafts_max).min(PROBE_DRAFTS);
        let catch_up_us = costs.catch_up_us(row);
        let verify_us = costs.verify_us(drafts as usize) - costs.plain_us();
        let draft_us = costs.draft_round_us() + costs.draft_call_us(1) * f64::from(drafts);
        let cost_us = catch_up_us + verify_us + draft_us;
        let room_us = space.plain_limit_us() - costs.plain_us() - prefill_us;
        if drafts > 0 && cost_us <= room_us && self.gate.probe_is_due(cost_us) {
            space.lengths[index] = drafts;
            return PlannedDrafts { intent: Intent::Probe, catch_up_us };
        }
        PlannedDrafts::default()
    }
}

fn lags(row: &DecodeView) -> bool {
    row.draft_lag_tokens > LAG_FREE_TOKENS
}
