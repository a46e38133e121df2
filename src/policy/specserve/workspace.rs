//! Turns a step's view and the time model into a problem for the planner.

use super::forest::Forest;
use super::option::{Hurdle, Next};
use super::worth::Pace;
use crate::policy::planner::{Buffers, Curve, Plan, Problem, Row, solve};
use crate::policy::survival::POSITIONS_MAX;
use crate::protocol::{DecodeView, StepView};
use crate::timing::correction::{Beside, TimeModel};
use crate::timing::cost_model::{LatencyModel, Work, prefill_attended};

/// Least worth of a row's tokens: a batch of worthless rows must still have some.
const WEIGHT_MIN: f32 = 1e-3;

/// Weight of a row's tokens to the planner.
pub(super) fn weight(pace: &Pace, row: &DecodeView) -> f32 {
    pace.worth(row).max(WEIGHT_MIN)
}

/// Lag that needs no admission: a step that accepted all its drafts leaves two tokens.
const LAG_FREE_TOKENS: u32 = 4;

/// Whether a sequence's draft cache has fallen behind by more than one step.
pub(super) fn lags(row: &DecodeView) -> bool {
    row.draft_lag_tokens > LAG_FREE_TOKENS
}

/// Terms of a step's time that do not depend on any decision.
#[derive(Clone, Copy, Debug)]
pub(super) struct Costs<'a> {
    time: &'a TimeModel,
    pub(super) rows: usize,
    /// The target's times beside the step's prefill.
    beside: Beside<'a>,
    /// Context and host, less what the prefill takes: a plain step without the staircase.
    fixed_us: f64,
    /// Mean context of the decoding sequences.
    mean_context_tokens: f64,
}

impl<'a> Costs<'a> {
    /// Of a step that takes `prefill_tokens` of what the view offers.
    pub(super) fn of(time: &'a TimeModel, view: &StepView, prefill_tokens: u32) -> Costs<'a> {
        let rows = view.decoding.len();
        let context_tokens = view.decoding.iter().map(|row| u64::from(row.context_tokens)).sum();
        let work =
            Work { rows: rows as u32, context_tokens, attended_tokens: context_tokens, ..Work::default() };
        let stair_us = time.cost().target.rows_us(rows as u32) * time.target_factor();
        let offered = view.prefilling.iter().fold(0u32, |sum, row| sum.saturating_add(row.remaining_tokens));
        let beside = time.beside(rows as u32, prefill_tokens.min(offered));
        Costs {
            time,
            rows,
            beside,
            fixed_us: time.target_us(&work) - stair_us + time.host_us() - beside.prefill_us,
            mean_context_tokens: context_tokens as f64 / rows.max(1) as f64,
        }
    }

    fn target(&self) -> Curve<'a> {
        Curve { table: self.beside.table, factor: self.beside.factor, row_us: 0.0 }
    }

    fn draft(&self) -> Curve<'a> {
        let Some(draft) = &self.time.cost().draft else { return Curve::ZERO };
        let terms = draft.terms();
        let token_us = (terms.context_token_us + terms.attended_token_us) * self.time.draft_factor();
        Curve {
            table: draft.table_from(0),
            factor: self.time.draft_factor(),
            row_us: token_us * self.mean_context_tokens,
        }
    }

    /// A plain decode step without prefill.
    pub(super) fn plain_us(&self) -> f64 {
        self.fixed_us + self.target().at(self.rows)
    }

    /// Whether all drafts of a step come with its first draft call.
    pub(super) fn drafts_blocks(&self) -> bool {
        self.time.cost().draft.as_ref().is_some_and(LatencyModel::drafts_blocks)
    }

    /// One draft call over `rows` sequences, which drafts another token of each. Nothing if the first
    /// one has drafted them all: that call is the [round](Self::draft_round_us).
    pub(super) fn draft_call_us(&self, rows: usize) -> f64 {
        if self.drafts_blocks() { 0.0 } else { self.draft().at(rows) }
    }

    /// What each row adds to a draft call, in the mean; of a whole block, where a call drafts one.
    pub(super) fn draft_row_us(&self) -> f64 {
        let others = self.rows.saturating_sub(1).max(1) as f64;
        (self.draft().at(self.rows) - self.draft().at(1)).max(0.0) / others
    }

    /// Time of a drafting round over `rows` sequences beside its calls, once per step.
    pub(super) fn draft_round_us(&self, rows: usize) -> f64 {
        let block_us = if self.drafts_blocks() { self.draft().at(rows) } else { 0.0 };
        self.time.draft_round_us() + block_us
    }

    /// A decode step that verifies `drafts` drafts, without what they add for their context.
    pub(super) fn verify_us(&self, drafts: usize) -> f64 {
        self.fixed_us + self.target().at(self.rows + drafts)
    }

    /// Time that each verified draft of a sequence adds beside the staircase.
    pub(super) fn query_us(&self, row: &DecodeView) -> f32 {
        let token_us = self.time.cost().target.terms().attended_token_us * self.time.target_factor();
        (token_us * f64::from(row.context_tokens)) as f32
    }

    /// What catching up adds to a step in which the rows that `drafts` names draft: short lags
    /// recur in every such step.
    pub(super) fn short_lags_us(&self, view: &StepView, drafts: impl Fn(usize) -> bool) -> f64 {
        let rows = view.decoding.iter().enumerate().filter(|&(index, row)| drafts(index) && !lags(row));
        let missed = rows.map(|(_, row)| row.draft_lag_tokens.saturating_sub(1)).sum();
        self.time.catch_up_us(self.rows as u32, missed, u64::from(missed) * self.mean_context_tokens as u64)
    }

    /// Time until the draft model has processed all but the last token of a sequence.
    pub(super) fn catch_up_us(&self, row: &DecodeView) -> f64 {
        let missed = row.draft_lag_tokens.saturating_sub(1);
        let done = row.context_tokens.saturating_sub(row.draft_lag_tokens);
        self.time.catch_up_us(self.rows as u32, missed, prefill_attended(done, missed))
    }
}

/// The step at hand as a problem for the planner; `specserve`'s part of [`Scratch`](crate::policy::Scratch).
#[derive(Debug, Default)]
pub struct Workspace {
    planner: Buffers,
    /// The decoding requests, and behind them branches of their trees.
    pub(super) rows: Vec<Row>,
    /// How many of the rows are requests.
    requests: usize,
    pub(super) survival: Vec<f32>,
    pub(super) lengths: Vec<u32>,
    /// What is expected of the next draft of each row.
    pub(super) next: Vec<Next>,
    /// The trees of the step.
    pub(super) forest: Forest,
}

/// Time spent on drafting so far in a step, for one call of the planner.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    pub(super) draft_us: f64,
    /// The long run in which the step stands: its time, in microseconds, and its rate, in weighted
    /// tokens per microsecond.
    pub(super) before_us: f64,
    pub(super) rate: f64,
}

impl Workspace {
    /// One row per decoding sequence; no positions yet.
    pub(super) fn begin(&mut self, costs: &Costs<'_>, pace: &Pace, view: &StepView) {
        self.rows.clear();
        self.rows.extend(view.decoding.iter().map(|row| Row {
            weight: weight(pace, row),
            query_us: costs.query_us(row),
            positions: 0,
            made: 0,
        }));
        self.requests = self.rows.len();
        self.next.clear();
        self.next.resize(self.rows.len(), Next::default());
        self.survival.clear();
        self.survival.resize(self.rows.len() * POSITIONS_MAX, 0.0);
    }

    /// Fills in the drafts of a forest: those that exist in the rows of their requests, and what may
    /// follow them in rows behind these.
    pub(super) fn plant(&mut self, forest: &Forest) {
        for (request, survival) in forest.grown() {
            self.rows.push(Row { positions: survival.len() as u32, ..self.rows[request] });
        }
        // what a row does not have is not read, so old numbers may stay
        self.survival.resize(self.rows.len() * POSITIONS_MAX, 0.0);
        for (request, survival) in forest.requests().enumerate() {
            let mut positions = 0;
            for one in survival {
                self.set_survival(request, positions, one);
                positions += 1;
            }
            (self.rows[request].positions, self.rows[request].made) = (positions as u32, positions as u32);
        }
        for (row, (_, survival)) in (self.requests..).zip(forest.grown()) {
            survival.iter().enumerate().for_each(|(depth, &one)| self.set_survival(row, depth, one));
        }
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

    /// What drafting on is held against, at a plan's rate in weighted tokens per microsecond.
    pub(super) fn hurdle(&self, costs: &Costs<'_>, rate: f64) -> Hurdle {
        let last = |(row, &length): (usize, &u32)| {
            let depth = (length as usize).checked_sub(1)?;
            Some(self.rows[row].weight * self.survival[depth * self.rows.len() + row])
        };
        let values = self.lengths.iter().enumerate().filter_map(last);
        Hurdle {
            marginal_value: values.fold(f32::INFINITY, f32::min),
            price: (rate * costs.draft_row_us()) as f32,
        }
    }

    /// Whether a row's next draft clears the hurdle.
    pub(super) fn clears(&self, hurdle: &Hurdle, row: usize) -> bool {
        hurdle.is_cleared_by(self.rows[row].weight, self.next[row])
    }

    /// Weighted tokens of a plain step.
    pub(super) fn weight(&self) -> f64 {
        self.rows[..self.requests].iter().map(|row| f64::from(row.weight)).sum()
    }

    /// Plans into `lengths`.
    pub(super) fn solve(&mut self, costs: &Costs<'_>, rows_max: u32, spent: Spent) -> Plan {
        // A call drafts more rows than are verified: it is priced with all that can go on.
        let going = self.rows.iter().filter(|row| row.positions > row.made).count();
        let call_us = [costs.draft_call_us(going)];
        let draft = Curve { table: &call_us, factor: 1.0, row_us: 0.0 };
        self.solve_with(costs, draft, rows_max, spent)
    }

    /// Plans rows and branches into `lengths`. A call is priced with those that are planned: of the
    /// branches that can go on, most are not worth it.
    pub(super) fn solve_trees(&mut self, costs: &Costs<'_>, rows_max: u32, spent: Spent) -> Plan {
        self.solve_with(costs, costs.draft(), rows_max, spent)
    }

    fn solve_with(&mut self, costs: &Costs<'_>, draft: Curve<'_>, rows_max: u32, spent: Spent) -> Plan {
        let problem = Problem {
            rows: &self.rows,
            requests: self.requests,
            survival: &self.survival,
            target: costs.target(),
            draft,
            priced_us: costs.fixed_us + spent.draft_us + spent.before_us,
            priced_tokens: spent.before_us * spent.rate,
            rows_max,
        };
        solve(&problem, &mut self.planner, &mut self.lengths)
    }

    /// The step at the planned lengths with all its draft calls, without prefill and catch-up.
    pub(super) fn step_us(&self, costs: &Costs<'_>) -> f64 {
        let drafts: u32 = self.lengths.iter().sum();
        let queries = self.rows.iter().zip(&self.lengths);
        let queries_us: f64 = queries.map(|(row, &length)| f64::from(row.query_us) * f64::from(length)).sum();
        let calls = self.lengths.iter().copied().max().unwrap_or(0);
        let call_us =
            |call| costs.draft_call_us(self.lengths.iter().filter(|&&length| length > call).count());
        let rows = self.lengths.iter().filter(|&&length| length > 0).count();
        let round_us = if calls > 0 { costs.draft_round_us(rows) } else { 0.0 };
        costs.verify_us(drafts as usize) + queries_us + round_us + (0..calls).map(call_us).sum::<f64>()
    }

    /// Whether any row has a planned draft.
    pub(super) fn drafts(&self) -> bool {
        self.lengths.iter().any(|&length| length > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::specserve::{SpecServe, SpecServeOptions};
    use crate::protocol::{Micros, RequestId};
    use crate::timing::profile::tests::gpu_like;

    fn view(weights: &[f32]) -> StepView {
        let row = |&weight: &f32| DecodeView {
            request: RequestId(1),
            context_tokens: 100,
            output_tokens: 1,
            since_first_token: Micros::ZERO,
            tpot: None,
            weight,
            draft_lag_tokens: 1,
            drafts_max: 8,
            temperature: 0.0,
        };
        StepView { decoding: weights.iter().map(row).collect(), ..StepView::default() }
    }

    /// Planned lengths; more may be drafted.
    fn drafts(weights: &[f32]) -> Vec<u32> {
        let cost = gpu_like().cost_model().expect("valid");
        let policy = SpecServe::new(cost, None, SpecServeOptions::default());
        let mut space = Workspace::default();
        policy.decide(&mut space, &view(weights));
        space.lengths
    }

    #[test]
    fn requests_without_worth_are_planned_like_any_when_there_are_no_others() {
        assert!(drafts(&[1.0; 4]).iter().all(|&length| length > 0));
        assert_eq!(drafts(&[0.0; 4]), drafts(&[1.0; 4]));
    }

    #[test]
    fn beside_a_worthy_request_those_without_worth_get_shorter_drafts() {
        let drafts = drafts(&[1.0, 0.0, 1.0, 0.0]);
        assert!(drafts[0] > drafts[1] && drafts[2] > drafts[3], "{drafts:?}");
    }
}
