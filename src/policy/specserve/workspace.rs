//! Turns a step's view and the time model into a problem for the planner, and relaxes its bounds
//! in the order of docs/slo.md, "Inside a step".

use crate::policy::planner::{Buffers, Curve, Plan, Problem, Row, solve};
use crate::policy::slo::{SloState, TpotBound, queue_us, tpot_bound};
use crate::policy::survival::POSITIONS_MAX;
use crate::protocol::{DecodeView, StepView};
use crate::timing::correction::TimeModel;
use crate::timing::cost_model::{Work, prefill_attended};

/// Terms of a step's time that do not depend on any decision.
#[derive(Clone, Copy, Debug)]
pub(super) struct Costs<'a> {
    pub(super) time: &'a TimeModel,
    pub(super) rows: usize,
    /// Context and host: a plain step without the staircase.
    fixed_us: f64,
    /// Mean context of the decoding sequences.
    mean_context_tokens: f64,
}

impl<'a> Costs<'a> {
    pub(super) fn of(time: &'a TimeModel, view: &StepView) -> Costs<'a> {
        let rows = view.decoding.len();
        let context_tokens = view.decoding.iter().map(|row| u64::from(row.context_tokens)).sum();
        let work =
            Work { rows: rows as u32, context_tokens, attended_tokens: context_tokens, ..Work::default() };
        let stair_us = time.cost().target.rows_us(rows as u32) * time.target_factor();
        Costs {
            time,
            rows,
            fixed_us: time.target_us(&work) - stair_us + time.host_us(),
            mean_context_tokens: context_tokens as f64 / rows.max(1) as f64,
        }
    }

    fn target(&self) -> Curve<'a> {
        Curve { table: self.time.cost().target.table(), factor: self.time.target_factor(), row_us: 0.0 }
    }

    fn draft(&self) -> Curve<'a> {
        let Some(draft) = &self.time.cost().draft else { return Curve::ZERO };
        let terms = draft.terms();
        let token_us = (terms.context_token_us + terms.attended_token_us) * self.time.draft_factor();
        Curve {
            table: draft.table(),
            factor: self.time.draft_factor(),
            row_us: token_us * self.mean_context_tokens,
        }
    }

    /// A plain decode step without prefill.
    pub(super) fn plain_us(&self) -> f64 {
        self.fixed_us + self.target().at(self.rows)
    }

    /// One draft call over `rows` sequences.
    pub(super) fn draft_call_us(&self, rows: usize) -> f64 {
        self.draft().at(rows)
    }

    /// Fixed time of a drafting round beside its calls, once per step.
    pub(super) fn draft_round_us(&self) -> f64 {
        self.time.draft_round_us()
    }

    /// A decode step that verifies `drafts` drafts, without what they add for their context.
    pub(super) fn verify_us(&self, drafts: usize) -> f64 {
        self.fixed_us + self.target().at(self.rows + drafts)
    }

    /// Time that each verified draft of a sequence adds beside the staircase.
    fn query_us(&self, row: &DecodeView) -> f32 {
        let token_us = self.time.cost().target.terms().attended_token_us * self.time.target_factor();
        (token_us * f64::from(row.context_tokens)) as f32
    }

    /// Time until the draft model has processed all but the last token of a sequence.
    pub(super) fn catch_up_us(&self, row: &DecodeView) -> f64 {
        let missed = row.draft_lag_tokens.saturating_sub(1);
        let done = row.context_tokens.saturating_sub(row.draft_lag_tokens);
        self.time.catch_up_us(missed, prefill_attended(done, missed))
    }

    /// Time that prefilling the queue's first `tokens` tokens adds.
    pub(super) fn prefill_us(&self, view: &StepView, tokens: u32) -> f64 {
        queue_us(self.time, &view.prefilling, tokens)
    }
}

/// The step at hand as a problem for the planner; `specserve`'s part of [`Scratch`](crate::policy::Scratch).
#[derive(Debug, Default)]
pub struct Workspace {
    planner: Buffers,
    pub(super) rows: Vec<Row>,
    pub(super) slo_states: Vec<SloState>,
    pub(super) survival: Vec<f32>,
    pub(super) lengths: Vec<u32>,
    saved: Vec<Option<TpotBound>>,
    /// Bounds and lengths that [`relax_recovering`](Self::relax_recovering) may restore.
    bounds: Vec<Option<TpotBound>>,
    bounded_lengths: Vec<u32>,
    /// Longest steps that requests can absorb for urgent prefill.
    pub(super) tolerable_us: Vec<f64>,
}

/// Time spent so far in a step, for one call of the planner.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    pub(super) calls: u32,
    pub(super) draft_us: f64,
    pub(super) unpriced_us: f64,
}

impl Workspace {
    /// One row per decoding sequence, with its bound as seen when the step without further
    /// drafts takes `plain_us`; no positions yet.
    pub(super) fn begin(&mut self, costs: &Costs<'_>, view: &StepView, plain_us: f64) {
        let stretch = 1.0 + costs.time.margin();
        self.rows.clear();
        self.slo_states.clear();
        for row in &view.decoding {
            let (state, bound) = tpot_bound(row, plain_us * stretch);
            let bound = bound.map(|bound| TpotBound {
                credit_us: bound.credit_us / stretch,
                token_us: bound.token_us / stretch,
            });
            self.rows.push(Row { weight: 1.0, query_us: costs.query_us(row), bound, positions: 0 });
            self.slo_states.push(state);
        }
        self.survival.clear();
        self.survival.resize(self.rows.len() * POSITIONS_MAX, 0.0);
    }

    pub(super) fn set_survival(&mut self, row: usize, depth: usize, survival: f32) {
        let index = depth * self.rows.len() + row;
        self.survival[index] = survival;
    }

    /// Expected tokens of a row at its planned length.
    pub(super) fn tokens(&self, row: usize, length: u32) -> f64 {
        let drafts =
            (0..length as usize).map(|depth| f64::from(self.survival[depth * self.rows.len() + row]));
        1.0 + drafts.sum::<f64>()
    }

    /// Plans into `lengths`. Requests that need speculation are bounded first; if no step keeps all
    /// of their bounds, they become best effort. Returns the plan and whether such bounds are kept.
    pub(super) fn solve(&mut self, costs: &Costs<'_>, rows_max: u32, spent: Spent) -> (Option<Plan>, bool) {
        let short = self.slo_states.contains(&SloState::NeedsSpeculation);
        if short && let Some(plan) = self.solve_bounded(costs, rows_max, spent) {
            return (Some(plan), true);
        }
        if short {
            self.release(SloState::NeedsSpeculation);
        }
        let plan = self.solve_bounded(costs, rows_max, spent);
        if self.slo_states.contains(&SloState::Recovering) {
            return (self.relax_recovering(costs, rows_max, spent, plan), false);
        }
        (plan, false)
    }

    /// Drops the bounds of recovering requests if together they get more tokens per time without.
    /// Each bound asks for a step that is short for the request's own tokens; many of them, some
    /// with poor drafts, may leave only a plain step, in which none of them catches up.
    fn relax_recovering(
        &mut self,
        costs: &Costs<'_>,
        rows_max: u32,
        spent: Spent,
        bounded: Option<Plan>,
    ) -> Option<Plan> {
        let bounded_rate = self.recovering_rate(costs, spent, bounded);
        self.bounded_lengths.clone_from(&self.lengths);
        self.bounds.clear();
        self.bounds.extend(self.rows.iter().map(|row| row.bound));
        self.release(SloState::Recovering);
        let free = self.solve_bounded(costs, rows_max, spent);
        if free.is_some() && self.recovering_rate(costs, spent, free) > bounded_rate {
            return free;
        }
        self.lengths.clone_from(&self.bounded_lengths);
        self.rows.iter_mut().zip(&self.bounds).for_each(|(row, bound)| row.bound = *bound);
        bounded
    }

    /// Expected tokens of all recovering requests per microsecond of the planned step, or of a
    /// plain step without a plan.
    fn recovering_rate(&self, costs: &Costs<'_>, spent: Spent, plan: Option<Plan>) -> f64 {
        let priced_us = plan.map_or(costs.plain_us() + spent.draft_us, |plan| plan.priced_us);
        let recovering = (0..self.rows.len()).filter(|&row| self.slo_states[row] == SloState::Recovering);
        let tokens: f64 = recovering.map(|row| self.tokens(row, self.lengths[row])).sum();
        tokens / (priced_us + spent.unpriced_us)
    }

    /// The step at the planned lengths with all its draft calls, without prefill and catch-up.
    pub(super) fn step_us(&self, costs: &Costs<'_>) -> f64 {
        let drafts: u32 = self.lengths.iter().sum();
        let queries = self.rows.iter().zip(&self.lengths);
        let queries_us: f64 = queries.map(|(row, &length)| f64::from(row.query_us) * f64::from(length)).sum();
        let calls = self.lengths.iter().copied().max().unwrap_or(0);
        let call_us =
            |call| costs.draft_call_us(self.lengths.iter().filter(|&&length| length > call).count());
        let round_us = if calls > 0 { costs.draft_round_us() } else { 0.0 };
        costs.verify_us(drafts as usize) + queries_us + round_us + (0..calls).map(call_us).sum::<f64>()
    }

    /// Whether any row has a planned draft.
    pub(super) fn drafts(&self) -> bool {
        self.lengths.iter().any(|&length| length > 0)
    }

    /// Longest step that the bounds allow at the planned lengths, in microseconds; bounds
    /// that a step of `step_us` already breaks do not count.
    pub(super) fn limit_us(&self, step_us: f64) -> f64 {
        let limit = |(row, terms): (usize, &Row)| {
            terms.bound.map(|bound| bound.deadline_us(self.tokens(row, self.lengths[row])))
        };
        let limits = self.rows.iter().enumerate().filter_map(limit);
        limits.filter(|&limit_us| limit_us >= step_us).fold(f64::INFINITY, f64::min)
    }

    /// Longest step without drafts that all requests but those that need speculation allow.
    pub(super) fn plain_limit_us(&self) -> f64 {
        let bound = |(row, state): (&Row, &SloState)| {
            row.bound.filter(|_| *state != SloState::NeedsSpeculation).map(|bound| bound.deadline_us(1.0))
        };
        self.rows.iter().zip(&self.slo_states).filter_map(bound).fold(f64::INFINITY, f64::min)
    }

    /// Drops the bounds of all requests in a state.
    fn release(&mut self, released: SloState) {
        for (row, state) in self.rows.iter_mut().zip(&self.slo_states) {
            if *state == released {
                row.bound = None;
            }
        }
    }

    /// Keeps all bounds for [`restore_bounds`](Self::restore_bounds).
    pub(super) fn save_bounds(&mut self) {
        self.saved.clear();
        self.saved.extend(self.rows.iter().map(|row| row.bound));
    }

    pub(super) fn restore_bounds(&mut self) {
        self.rows.iter_mut().zip(&self.saved).for_each(|(row, bound)| row.bound = *bound);
    }

    fn solve_bounded(&mut self, costs: &Costs<'_>, rows_max: u32, spent: Spent) -> Option<Plan> {
        let problem = Problem {
            rows: &self.rows,
            survival: &self.survival,
            target: costs.target(),
            draft: costs.draft(),
            calls_made: spent.calls,
            priced_us: costs.fixed_us + spent.draft_us,
            unpriced_us: spent.unpriced_us,
            rows_max,
        };
        solve(&problem, &mut self.planner, &mut self.lengths)
    }
}
