//! `specserve`: plans drafting and verification for the most weighted tokens per second. The
//! phases are AdaSpec's (SoCC'25, section 5: predict, execute, correct, verify), per request.
//!
//! - [`plan`](Policy::plan) predicts: which rows draft, if any.
//! - [`extend`](Policy::extend) corrects after every draft call: it plans again with the actual
//!   confidences so far and forecasts for the rest. Rows whose next draft is in the new plan
//!   continue, and with them those whose next draft may turn out worth verifying.
//! - [`select`](Policy::select) chooses what is verified, over all rows at once.
//!
//! A head that drafts blocks makes all drafts of a step in its first call. Its time is that of the
//! round, further drafts cost nothing, and `extend` is not asked.
//!
//! The inputs are the step's view, the corrected time model ([`crate::timing`]), and survival from
//! the draft's own probabilities ([`super::calibration`], [`super::survival`]). docs/policy.md has
//! the mathematics.

mod forest;
mod gate;
mod learner;
mod lifetime;
mod option;
mod predict;
mod realized;
mod trees;
mod workspace;
mod worth;

use gate::Gate;
pub use learner::SpecServeLearner;
use lifetime::Lifetime;
use option::Next;
use realized::Realized;
pub use trees::{SHAPE_NAMES, Shape, UnknownShape};
pub(super) use workspace::Workspace;
use workspace::{Costs, Spent};
use worth::Pace;

use super::calibration::{Calibration, CalibrationMode};
use super::runner_up::RunnerUps;
use super::slo::{Infeasible, check_feasible};
use super::survival::{Forecast, POSITIONS_MAX, forecast_confidence, forecast_survival};
use super::{Policy, Scratch, chains};
use crate::protocol::{
    DraftSet, DraftShape, DraftedRow, Intent, OpenDraft, Slo, Step, StepDecision, StepView,
};
use crate::timing::Reliability;
use crate::timing::correction::TimeModel;
use crate::timing::cost_model::{CostModel, ROWS_MAX};

/// Drafts less likely than this to be accepted are neither drafted nor verified, even where the
/// staircase makes them free.
const SURVIVAL_MIN: f32 = 0.01;

/// Plain steps that a step under way is set among, at the rate that was planned with. On its own,
/// a step with poor drafts would take time for cheap and draft on, and one with good drafts stop.
const HORIZON_STEPS: f64 = 64.0;

/// Settings of [`SpecServe`].
#[derive(Clone, Debug, PartialEq)]
pub struct SpecServeOptions {
    /// Most draft tokens per sequence and step, at most [`POSITIONS_MAX`].
    pub draft_tokens_max: u32,
    /// Most decode and verification rows of one step.
    pub verify_rows_max: u32,
    /// How draft probability becomes survival.
    pub calibration: CalibrationMode,
    /// How drafts may stand to each other.
    pub shape: Shape,
}

impl Default for SpecServeOptions {
    fn default() -> SpecServeOptions {
        SpecServeOptions {
            draft_tokens_max: 8,
            verify_rows_max: ROWS_MAX as u32,
            calibration: CalibrationMode::Learned,
            shape: Shape::Chain,
        }
    }
}

/// `specserve`. See the module's documentation.
#[derive(Clone, Debug)]
pub struct SpecServe {
    options: SpecServeOptions,
    time: TimeModel,
    calibration: Calibration,
    runner_ups: RunnerUps,
    forecast: Forecast,
    gate: Gate,
    realized: Realized,
    pace: Pace,
    lifetime: Lifetime,
}

impl SpecServe {
    /// Starts from a profile's time model and, if it has one, its reliability table.
    pub fn new(cost: CostModel, warm_start: Option<Reliability>, options: SpecServeOptions) -> SpecServe {
        SpecServe {
            calibration: Calibration::new(options.calibration, warm_start),
            runner_ups: RunnerUps::default(),
            options,
            time: TimeModel::new(cost),
            forecast: Forecast::default(),
            gate: Gate::default(),
            realized: Realized::default(),
            pace: Pace::default(),
            lifetime: Lifetime::default(),
        }
    }

    /// The time model as corrected so far.
    pub fn time(&self) -> &TimeModel {
        &self.time
    }

    /// The calibration as learned so far.
    pub fn calibration(&self) -> &Calibration {
        &self.calibration
    }

    /// Most drafts of a row that the scheduler allows and the options want.
    fn positions(&self, allowed: u32) -> u32 {
        allowed.min(self.options.draft_tokens_max).min(POSITIONS_MAX as u32)
    }

    /// Fills in forecasts for rows that have nothing drafted.
    fn forecast_all(&self, view: &StepView, space: &mut Workspace) {
        let means = self.forecast.position_means();
        for (index, row) in view.decoding.iter().enumerate() {
            let allowed = self.positions(row.drafts_max);
            self.forecast_row(space, &means, view, index, (1.0, 0), allowed);
        }
    }

    /// Forecasts positions `from..allowed` of a row whose prefix survives with `alive`.
    fn forecast_row(
        &self,
        space: &mut Workspace,
        means: &[f32; POSITIONS_MAX],
        view: &StepView,
        index: usize,
        (alive, from): (f32, u32),
        allowed: u32,
    ) {
        let ratio = self.forecast.request_ratio(view.decoding[index].request);
        let mut positions = from;
        forecast_survival(means, ratio, alive, from as usize, allowed as usize, |depth, survival| {
            space.set_survival(index, depth, survival);
            if survival >= SURVIVAL_MIN {
                positions = depth as u32 + 1;
            }
        });
        space.rows[index].positions = positions;
        let next = alive * forecast_confidence(means, ratio, from as usize);
        space.next[index] = Next { mean: next, spread: alive * self.forecast.spread() };
    }

    /// Fills in the survival of what a row has drafted. Returns the survival of all of it, or
    /// `None` if a proposal is unusable and the row has to stop.
    fn measure_row(&self, space: &mut Workspace, view: &StepView, row: &DraftedRow) -> Option<f32> {
        let index = row.decoding as usize;
        let greedy = view.decoding[index].temperature == 0.0;
        let mut alive = 1.0;
        let mut positions = 0;
        for (depth, proposal) in row.proposals.iter().take(POSITIONS_MAX).enumerate() {
            if !proposal.finite {
                (space.rows[index].positions, space.rows[index].made) = (positions, positions);
                return None;
            }
            alive *= self.calibration.acceptance(proposal.probability, depth as u32 + 1, greedy);
            space.set_survival(index, depth, alive);
            if alive >= SURVIVAL_MIN {
                positions = depth as u32 + 1;
            }
        }
        space.rows[index].positions = positions;
        space.rows[index].made = row.proposals.len() as u32;
        Some(alive)
    }

    /// Fills in survival while drafting: measured where drafted, forecast behind that for the
    /// `active` rows.
    fn survey(&self, space: &mut Workspace, step: Step<'_>, rows: &[DraftedRow], active: &[u32]) {
        let means = self.forecast.position_means();
        let mut going = active.iter().copied().peekable();
        for (drafted_index, row) in rows.iter().enumerate() {
            let is_active = going.next_if_eq(&(drafted_index as u32)).is_some();
            let alive = self.measure_row(space, step.view, row);
            if let (Some(alive), true) = (alive, is_active) {
                let index = row.decoding as usize;
                let allowed = self.positions(step.granted.drafts[index]);
                let drafted = row.proposals.len() as u32;
                self.forecast_row(space, &means, step.view, index, (alive, drafted), allowed);
            }
        }
    }

    /// Time spent on drafting so far in a step, as predicted. Catch-up is sunk and left out.
    fn spent(&self, costs: &Costs<'_>, rows: &[DraftedRow]) -> Spent {
        let mut answers = [0; POSITIONS_MAX];
        rows.iter().for_each(|row| row.count_answers(&mut answers));
        let calls = answers.iter().take_while(|&&answers| answers > 0);
        let round_us = if answers[0] > 0 { costs.draft_round_us(rows.len()) } else { 0.0 };
        let draft_us = round_us + calls.map(|&answers| costs.draft_call_us(answers)).sum::<f64>();
        Spent { draft_us, ..Spent::default() }
    }

    /// Sets the workspace up for a step in progress.
    fn resume(&self, space: &mut Workspace, step: Step<'_>, rows: &[DraftedRow]) -> (Costs<'_>, Spent) {
        let costs = Costs::of(&self.time, step.view, step.granted.prefill_tokens);
        space.begin(&costs, &self.pace, step.view);
        let mut spent = self.spent(&costs, rows);
        spent.draft_us += costs.short_lags_us(step.view, |index| step.granted.drafts[index] > 0);
        let before_us = HORIZON_STEPS * costs.plain_us();
        if step.granted.rate > 0.0 {
            spent = Spent { before_us, rate: step.granted.rate, ..spent };
        }
        (costs, spent)
    }
}

impl Policy for SpecServe {
    fn name(&self) -> String {
        "specserve".to_owned()
    }

    fn plan(&self, view: &StepView, scratch: &mut Scratch) -> StepDecision {
        self.decide(&mut scratch.specserve, view)
    }

    fn extend(
        &self,
        step: Step<'_>,
        rows: &[DraftedRow],
        active: &[u32],
        scratch: &mut Scratch,
        keep: &mut Vec<u32>,
    ) {
        if step.granted.intent == Intent::Probe {
            keep.extend_from_slice(active);
            return;
        }
        let space = &mut scratch.specserve;
        let (costs, spent) = self.resume(space, step, rows);
        self.survey(space, step, rows, active);
        let plan = space.solve(&costs, self.options.verify_rows_max, spent);
        let longer = |row: &DraftedRow| space.lengths[row.decoding as usize] as usize > row.proposals.len();
        if !active.iter().any(|&index| longer(&rows[index as usize])) {
            return;
        }
        let hurdle = space.hurdle(&costs, plan.rate());
        keep.extend(active.iter().filter(|&&index| {
            let row = &rows[index as usize];
            longer(row) || space.clears(&hurdle, row.decoding as usize)
        }));
    }

    fn select(&self, step: Step<'_>, rows: &[DraftedRow], scratch: &mut Scratch, lengths: &mut Vec<u32>) {
        if step.granted.intent == Intent::Probe {
            let usable = |row: &DraftedRow| row.proposals.iter().take_while(|draft| draft.finite).count();
            lengths.extend(rows.iter().map(|row| usable(row) as u32));
            return;
        }
        let space = &mut scratch.specserve;
        let (costs, spent) = self.resume(space, step, rows);
        for row in rows {
            self.measure_row(space, step.view, row);
        }
        space.solve(&costs, self.options.verify_rows_max, spent);
        lengths.extend(rows.iter().map(|row| space.lengths[row.decoding as usize]));
    }

    fn expand(
        &self,
        step: Step<'_>,
        rows: &[DraftedRow],
        open: &[OpenDraft],
        scratch: &mut Scratch,
        keep: &mut Vec<u32>,
    ) {
        match step.granted.shape {
            DraftShape::Chain => chains::expand(self, step, rows, open, scratch, keep),
            DraftShape::Tree => self.expand_trees(step, rows, open, &mut scratch.specserve, keep),
        }
    }

    fn choose(&self, step: Step<'_>, rows: &[DraftedRow], scratch: &mut Scratch, chosen: &mut Vec<DraftSet>) {
        match step.granted.shape {
            DraftShape::Chain => chains::choose(self, step, rows, scratch, chosen),
            DraftShape::Tree => self.choose_trees(step, rows, &mut scratch.specserve, chosen),
        }
    }

    fn check_feasible(&self, slo: &Slo, prompt_tokens: u32, chunk_tokens: u32) -> Result<(), Infeasible> {
        let step_us = self.time.plain_step_us(1, prompt_tokens.into());
        check_feasible(slo, prompt_tokens, step_us, chunk_tokens, &self.time)
    }
}

#[cfg(test)]
mod tests;
