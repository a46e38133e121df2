//! Steps that draft trees: which drafts are fed, and which are verified.
//!
//! A row of the planner lists the drafts of a request's tree by falling survival, so that whatever is
//! taken from its front is a tree. What may follow a draft that can be fed is a row of its own, forecast
//! as the chain that would follow. One solution over all of them says which branches are worth another
//! draft call. docs/policy.md, "Trees", has the argument.

use super::option::Next;
use super::workspace::Workspace;
use super::{SURVIVAL_MIN, SpecServe};
use crate::policy::survival::{POSITIONS_MAX, forecast_confidence, forecast_survival};
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
    /// Writes the survival of each draft of a row to `survival`.
    pub(super) fn measure_tree(&self, view: &DecodeView, row: &DraftedRow, survival: &mut Vec<f32>) {
        let greedy = view.temperature == 0.0;
        survival.clear();
        for (draft, proposal) in row.proposals.iter().enumerate() {
            let place = row.place(draft);
            let alive = place.parent_draft().map_or(1.0, |parent| survival[parent]);
            let Proposal { probability, .. } = *proposal;
            let choice = self.calibration.acceptance(probability, place.depth + 1, greedy);
            let conditional = match place.rank {
                0 => choice,
                _ => (1.0 - choice) * self.runner_ups.share(probability, greedy),
            };
            survival.push(if proposal.finite { alive * conditional } else { 0.0 });
        }
    }

    /// Fills in the drafts that exist.
    fn survey_trees(&self, space: &mut Workspace, step: Step<'_>, rows: &[DraftedRow]) {
        let mut survival = std::mem::take(&mut space.tree);
        for row in rows {
            let index = row.decoding as usize;
            self.measure_tree(&step.view.decoding[index], row, &mut survival);
            let most = self.positions(step.granted.drafts[index]) as usize;
            space.rank_drafts(index, &survival, SURVIVAL_MIN, most);
        }
        space.tree = survival;
    }

    /// Fills in a branch: what may follow an open draft that survives with `alive`.
    fn forecast_branch(
        &self,
        space: &mut Workspace,
        means: &[f32; POSITIONS_MAX],
        step: Step<'_>,
        branch: usize,
        (decoding, depth, alive): (usize, u32, f32),
    ) {
        let allowed = self.positions(step.granted.drafts[decoding]);
        let ratio = self.forecast.request_ratio(step.view.decoding[decoding].request);
        let from = depth as usize + 1;
        let mut positions = 0;
        forecast_survival(means, ratio, alive, from, allowed as usize, |depth, survival| {
            space.set_survival(branch, depth - from, survival);
            if survival >= SURVIVAL_MIN {
                positions = (depth - from) as u32 + 1;
            }
        });
        space.rows[branch].positions = positions;
        let next = alive * forecast_confidence(means, ratio, from);
        space.next[branch] = Next { mean: next, spread: alive * self.forecast.spread() };
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
        let of = |draft: &OpenDraft| &rows[draft.row as usize];
        if step.granted.intent == Intent::Probe {
            let is_choice = |draft: &OpenDraft| of(draft).place(draft.draft as usize).rank == 0;
            keep.extend((0..).zip(open).filter(|(_, draft)| is_choice(draft)).map(|(index, _)| index));
            return;
        }
        let (costs, spent) = self.resume(space, step, rows);
        space.add_branches(open.iter().map(|draft| of(draft).decoding as usize));
        self.survey_trees(space, step, rows);
        self.forecast_branches(space, step, rows, open);
        let plan = space.solve_trees(&costs, self.options.verify_rows_max, spent);
        let first = costs.rows;
        if !(0..open.len()).any(|branch| space.lengths[first + branch] > 0) {
            return;
        }
        let hurdle = space.hurdle(&costs, plan.rate());
        let goes_on = |&(index, draft): &(u32, &OpenDraft)| {
            let branch = first + index as usize;
            space.lengths[branch] > 0 || space.branch_clears(&hurdle, of(draft).decoding as usize, branch)
        };
        keep.extend((0..).zip(open).filter(goes_on).map(|(index, _)| index));
    }

    /// Fills in the branches behind all open drafts, which are by row.
    fn forecast_branches(
        &self,
        space: &mut Workspace,
        step: Step<'_>,
        rows: &[DraftedRow],
        open: &[OpenDraft],
    ) {
        let means = self.forecast.position_means();
        let mut survival = std::mem::take(&mut space.tree);
        let mut branch = step.view.decoding.len();
        for of_row in open.chunk_by(|a, b| a.row == b.row) {
            let row = &rows[of_row[0].row as usize];
            let decoding = row.decoding as usize;
            self.measure_tree(&step.view.decoding[decoding], row, &mut survival);
            let branches = branch..branch + of_row.len();
            for (branch, open) in branches.clone().zip(of_row) {
                let draft = open.draft as usize;
                let known = (decoding, row.place(draft).depth, survival[draft]);
                self.forecast_branch(space, &means, step, branch, known);
            }
            let most = self.positions(step.granted.drafts[decoding]) as usize;
            space.hold_to_best(decoding, branches.clone(), most);
            branch = branches.end;
        }
        space.tree = survival;
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
        self.survey_trees(space, step, rows);
        space.solve(&costs, self.options.verify_rows_max, spent);
        chosen.extend(rows.iter().map(|row| space.best_drafts(row.decoding as usize)));
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
