//! Steps that draft trees: which drafts are fed, and which are verified.
//!
//! A row of the planner lists the drafts of a request's tree by falling survival, so that whatever is
//! taken from its front is a tree. What may follow a draft that can be fed is a row of its own, forecast
//! as the chain that would follow. One solution over all of them says which branches are worth another
//! draft call. docs/policy.md, "Trees", has the argument.

use super::forest::Forest;
use super::option::Next;
use super::workspace::Workspace;
use super::{SURVIVAL_MIN, SpecServe};
use crate::policy::survival::{POSITIONS_MAX, forecast_confidence};
use crate::protocol::{DecodeView, DraftSet, DraftShape, DraftedRow, Intent, OpenDraft, Proposal, Step};

/// How drafts may stand to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// Chains only.
    #[default]
    Chain,
    /// Trees in every step that drafts.
    Tree,
    /// Whichever of them does better at the load.
    Auto,
}

/// The shapes' names, for texts.
pub const SHAPE_NAMES: &str = "chain, tree, auto";

/// A text that names no shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown shape {0:?}; known are {SHAPE_NAMES}")]
pub struct UnknownShape(String);

impl Shape {
    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Shape::Chain => "chain",
            Shape::Tree => "tree",
            Shape::Auto => "auto",
        }
    }
}

impl std::str::FromStr for Shape {
    type Err = UnknownShape;

    fn from_str(text: &str) -> Result<Shape, UnknownShape> {
        let known = [Shape::Chain, Shape::Tree, Shape::Auto].into_iter().find(|shape| shape.name() == text);
        known.ok_or_else(|| UnknownShape(text.to_owned()))
    }
}

impl SpecServe {
    /// Appends the survival of each draft of a row to `survival`.
    pub(super) fn measure_tree(&self, view: &DecodeView, row: &DraftedRow, survival: &mut Vec<f32>) {
        let greedy = view.temperature == 0.0;
        let first = survival.len();
        // a choice and its runner-up have one confidence
        let mut last = (u32::MAX, 0, 0.0);
        for (draft, proposal) in row.proposals.iter().enumerate() {
            let place = row.place(draft);
            let alive = place.parent_draft().map_or(1.0, |parent| survival[first + parent]);
            let Proposal { probability, .. } = *proposal;
            let known = (place.depth, probability.to_bits());
            if known != (last.0, last.1) {
                last = (known.0, known.1, self.calibration.acceptance(probability, place.depth + 1, greedy));
            }
            let choice = last.2;
            let conditional = match place.rank {
                0 => choice,
                _ => (1.0 - choice) * self.runner_ups.share(probability, greedy),
            };
            survival.push(if proposal.finite { alive * conditional } else { 0.0 });
        }
    }

    /// Fills in the drafts that exist.
    fn survey_trees(&self, forest: &mut Forest, step: Step<'_>, rows: &[DraftedRow]) {
        forest.begin(step.view.decoding.len());
        for row in rows {
            let index = row.decoding as usize;
            let most = self.positions(step.granted.drafts[index]) as usize;
            let view = &step.view.decoding[index];
            forest.add_tree(index, (SURVIVAL_MIN, most), |survival| self.measure_tree(view, row, survival));
        }
    }

    /// Fills in what may follow all open drafts, which are by row.
    fn forecast_branches(
        &self,
        forest: &mut Forest,
        step: Step<'_>,
        rows: &[DraftedRow],
        open: &[OpenDraft],
    ) {
        let (means, spread) = (self.forecast.position_means(), self.forecast.spread());
        for of_row in open.chunk_by(|a, b| a.row == b.row) {
            let row = &rows[of_row[0].row as usize];
            let index = row.decoding as usize;
            let most = self.positions(step.granted.drafts[index]) as usize;
            let ratio = self.forecast.request_ratio(step.view.decoding[index].request);
            let mut confidence = [0.0; POSITIONS_MAX + 1];
            let forecast = confidence.iter_mut().enumerate().take(most + 1);
            forecast.for_each(|(position, one)| *one = forecast_confidence(&means, ratio, position));
            let least = forest.least_made(index, most).max(SURVIVAL_MIN);
            for open in of_row {
                let draft = open.draft as usize;
                let (mut alive, from) = (forest.survival(index, draft), row.place(draft).depth as usize + 1);
                let next = Next { mean: alive * confidence[from.min(most)], spread: alive * spread };
                let survival = confidence[from.min(most)..most].iter().map(|one| {
                    alive *= one;
                    alive
                });
                forest.add_branch(index, next, survival.take_while(|&survival| survival >= least));
            }
            forest.hold_to_best(of_row.len(), most);
        }
    }

    /// [`expand`](crate::policy::Policy::expand) of a step of trees.
    pub(super) fn expand_trees(
        &self,
        step: Step<'_>,
        rows: &[DraftedRow],
        open: &[OpenDraft],
        space: &mut Workspace,
        keep: &mut Vec<u32>,
    ) {
        if step.granted.intent == Intent::Probe {
            let of = |draft: &OpenDraft| rows[draft.row as usize].place(draft.draft as usize);
            let choices = (0..).zip(open).filter(|(_, draft)| of(draft).rank == 0);
            keep.extend(choices.map(|(index, _)| index));
            return;
        }
        let (costs, spent) = self.resume(space, step, rows);
        let mut forest = std::mem::take(&mut space.forest);
        self.survey_trees(&mut forest, step, rows);
        self.forecast_branches(&mut forest, step, rows, open);
        space.plant(&forest);
        let plan = space.solve_trees(&costs, self.options.verify_rows_max, spent);
        let branches = &space.lengths[costs.rows..];
        if branches.iter().any(|&length| length > 0) {
            let hurdle = space.hurdle(&costs, plan.rate());
            let goes_on = |(open, grown): (usize, Option<usize>)| {
                let is_planned = grown.is_some_and(|branch| branches[branch] > 0);
                let may = is_planned || forest.clears(&hurdle, open, |request| space.rows[request].weight);
                may.then_some(open as u32)
            };
            keep.extend(forest.grown_numbers().enumerate().filter_map(goes_on));
        }
        space.forest = forest;
    }

    /// [`choose`](crate::policy::Policy::choose) of a step of trees.
    pub(super) fn choose_trees(
        &self,
        step: Step<'_>,
        rows: &[DraftedRow],
        space: &mut Workspace,
        chosen: &mut Vec<DraftSet>,
    ) {
        if step.granted.intent == Intent::Probe {
            chosen.extend(rows.iter().map(|row| DraftSet::first(row.proposals.len())));
            return;
        }
        let (costs, spent) = self.resume(space, step, rows);
        let mut forest = std::mem::take(&mut space.forest);
        self.survey_trees(&mut forest, step, rows);
        space.plant(&forest);
        space.solve(&costs, self.options.verify_rows_max, spent);
        let best = |row: &DraftedRow| (row.decoding as usize, space.lengths[row.decoding as usize]);
        chosen.extend(rows.iter().map(best).map(|(request, count)| forest.best_drafts(request, count)));
        space.forest = forest;
    }

    /// What a step of `rows` requests drafts, if it drafts.
    pub(super) fn shape(&self, rows: usize) -> DraftShape {
        match self.options.shape {
            Shape::Chain => DraftShape::Chain,
            Shape::Tree => DraftShape::Tree,
            Shape::Auto => self.realized.better_shape(rows),
        }
    }
}
