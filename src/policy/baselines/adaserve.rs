//! `adaserve`: AdaServe's trees per request under objectives (Li et al., arXiv 2501.12162).
//!
//! Speculate, select, verify: a beam drafts a tree for each request, as deep and as wide as a fixed
//! number of rows leaves to each in this batch. Then those rows are given out. First, the requests that
//! are furthest behind their TPOT objective take their likeliest nodes until the expected tokens of the
//! step, `1 + Σ path probabilities`, bring them back to it; then the likeliest nodes of all requests
//! take what is left.
//!
//! Taken from the paper: the need of a request, `(elapsed + step) / TPOT − tokens`, with no more than a
//! path of the tree can give; the two selections and their order; depth `B₁ / n − 1` and width `B₂ / n`
//! for `n` requests. The paper finds `B₁` and `B₂` on the hardware. Here they are the most rows that a
//! target step and a draft call process in [`STRETCH`] times what one row takes, by the profile. Not
//! kept: more than two children of a node.

use std::sync::Arc;

use super::paths::{Candidate, PathBuffers};
use super::{draft_everywhere, symmetric_us};
use crate::policy::survival::POSITIONS_MAX;
use crate::policy::{Policy, Scratch};
use crate::protocol::{
    DecodeView, DraftSet, DraftShape, DraftedRow, OpenDraft, Step, StepDecision, StepView,
};
use crate::timing::cost_model::{CostModel, LatencyModel, ROWS_MAX};

/// Time of a step at the budget over that of one row.
const STRETCH: f64 = 1.25;
/// Widest beam.
const WIDTH_MAX: u32 = 4;

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct AdaServe {
    cost: Arc<CostModel>,
    draft_tokens_max: u32,
    /// `B₁`: rows of a target step.
    target_rows: u32,
    /// `B₂`: rows of a draft call; 0 without a draft model.
    draft_rows: u32,
}

/// Most rows that a model processes in [`STRETCH`] times what one row takes.
fn budget(model: &LatencyModel) -> u32 {
    let most_us = STRETCH * model.rows_us(1);
    (1..=ROWS_MAX as u32).take_while(|&rows| model.rows_us(rows) <= most_us).last().unwrap_or(1)
}

impl AdaServe {
    /// Starts from the profile's times.
    pub fn new(cost: CostModel, draft_tokens_max: u32) -> AdaServe {
        AdaServe {
            draft_tokens_max: draft_tokens_max.min(POSITIONS_MAX as u32),
            target_rows: budget(&cost.target),
            draft_rows: cost.draft.as_ref().map_or(0, budget),
            cost: Arc::new(cost),
        }
    }

    /// Levels and width of the trees of a batch.
    fn beam(&self, requests: usize) -> (u32, u32) {
        let requests = (requests as u32).max(1);
        let levels = (self.target_rows / requests).saturating_sub(1).min(self.draft_tokens_max);
        (levels, (self.draft_rows / requests).clamp(1, WIDTH_MAX))
    }

    /// Gives the rows of the budget to the ranked drafts of `rows`; `chosen` has a set for each.
    fn select(
        &self,
        view: &StepView,
        rows: &[DraftedRow],
        PathBuffers { order, needs, .. }: &mut PathBuffers,
        chosen: &mut [DraftSet],
    ) {
        let (levels, _) = self.beam(view.decoding.len());
        let step_us = symmetric_us(&self.cost, view, levels, self.target_rows);
        needs.clear();
        let mut next = 0;
        for of_row in order.chunk_by(|a, b| a.row == b.row) {
            let decoding = rows[of_row[0].row as usize].decoding as usize;
            let need = needed_tokens(&view.decoding[decoding], step_us).min(f64::from(levels + 1));
            needs.push((need, next..next + of_row.len()));
            next += of_row.len();
        }
        needs.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.start.cmp(&b.1.start)));
        let mut left = (self.target_rows as usize).saturating_sub(view.decoding.len());
        for (need, drafts) in needs {
            let mut tokens = 1.0;
            for candidate in &order[drafts.clone()] {
                if tokens >= *need || left == 0 {
                    break;
                }
                candidate.take(chosen);
                tokens += f64::from(candidate.path);
                left -= 1;
            }
        }
        order.sort_unstable_by(Candidate::by_path);
        for candidate in order {
            if left == 0 {
                break;
            }
            left -= usize::from(candidate.take(chosen));
        }
    }
}

/// Tokens that a request needs of a step that takes `step_us` to be at its TPOT objective behind it.
fn needed_tokens(row: &DecodeView, step_us: f64) -> f64 {
    let Some(tpot) = row.tpot else { return 0.0 };
    let elapsed_us = row.since_first_token.0 as f64 + step_us;
    elapsed_us / tpot.0.max(1) as f64 - f64::from(row.output_tokens.saturating_sub(1))
}

impl Policy for AdaServe {
    fn name(&self) -> String {
        "adaserve".to_owned()
    }

    fn plan(&self, view: &StepView, _: &mut Scratch) -> StepDecision {
        let (levels, width) = self.beam(view.decoding.len());
        let drafts = match levels {
            0 => 0,
            _ if self.draft_rows == 0 => 0,
            _ => (1 + (levels - 1) * width).min(self.draft_tokens_max),
        };
        StepDecision { shape: DraftShape::Tree, ..draft_everywhere(view, drafts) }
    }

    fn expand(
        &self,
        step: Step<'_>,
        rows: &[DraftedRow],
        open: &[OpenDraft],
        scratch: &mut Scratch,
        keep: &mut Vec<u32>,
    ) {
        let (levels, width) = self.beam(step.view.decoding.len());
        scratch.paths.widen(rows, open, (width as usize, levels), keep);
    }

    fn choose(&self, step: Step<'_>, rows: &[DraftedRow], scratch: &mut Scratch, chosen: &mut Vec<DraftSet>) {
        scratch.paths.rank(rows);
        let from = chosen.len();
        chosen.resize(from + rows.len(), DraftSet::default());
        self.select(step.view, rows, &mut scratch.paths, &mut chosen[from..]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::paths::tests::tree;
    use super::*;
    use crate::protocol::{Micros, RequestId};
    use crate::timing::profile::tests::gpu_like;

    fn policy() -> AdaServe {
        AdaServe::new(gpu_like().cost_model().expect("valid"), 8)
    }

    /// A request that got `tokens` after its first in 100 ms.
    fn request(tokens: u32, tpot_ms: Option<u64>) -> DecodeView {
        DecodeView {
            request: RequestId(u64::from(tokens)),
            output_tokens: tokens + 1,
            since_first_token: Micros::from_millis(100),
            tpot: tpot_ms.map(Micros::from_millis),
            ..DecodeView::example()
        }
    }

    fn chosen(target_rows: u32, decoding: Vec<DecodeView>) -> Vec<usize> {
        let nodes = [(0, 0, 0, 0.9), (0, 0, 1, 0.5), (1, 1, 0, 0.9), (1, 1, 1, 0.5), (3, 2, 0, 0.9)];
        let rows: Vec<DraftedRow> = (0..decoding.len() as u32).map(|row| tree(row, &nodes)).collect();
        let view = StepView { decoding, ..StepView::default() };
        let mut chosen = Vec::new();
        let granted = StepDecision::default();
        let policy = AdaServe { target_rows, ..policy() };
        let step = Step { view: &view, granted: &granted };
        policy.choose(step, &rows, &mut Scratch::default(), &mut chosen);
        chosen.iter().map(|set| set.len()).collect()
    }

    #[test]
    fn what_fits_the_budget_is_verified_and_no_more() {
        assert_eq!(chosen(100, vec![request(50, None); 3]), [5, 5, 5]);
        assert_eq!(chosen(9, vec![request(50, None); 3]).iter().sum::<usize>(), 6);
        assert_eq!(chosen(2, vec![request(50, None); 3]), [0, 0, 0]);
    }

    #[test]
    fn a_request_behind_its_objective_is_served_before_likelier_drafts_of_others() {
        let late = request(1, Some(15));
        let relaxed = request(50, Some(15));
        assert_eq!(chosen(6, vec![relaxed.clone(), late]), [1, 3]);
        let even = chosen(6, vec![relaxed.clone(), relaxed]);
        assert_eq!(even, [2, 2], "without need, the likeliest paths of all");
    }

    #[test]
    fn the_need_is_what_the_objective_asks_for_less_what_there_is() {
        let needed = |tokens, tpot_ms| needed_tokens(&request(tokens, tpot_ms), 20_000.0);
        assert_eq!(needed(5, Some(10)), 7.0);
        assert_eq!(needed(20, Some(10)), -8.0);
        assert_eq!(needed(5, None), 0.0);
    }

    #[test]
    fn trees_get_shallower_and_narrower_as_the_batch_grows_until_none_is_drafted() {
        let policy = AdaServe { target_rows: 64, draft_rows: 32, ..policy() };
        assert_eq!([1, 8, 16, 32, 64].map(|n| policy.beam(n)), [(8, 4), (7, 4), (3, 2), (1, 1), (0, 1)]);
        let view = StepView { decoding: vec![request(5, None); 64], ..StepView::default() };
        assert_eq!(policy.plan(&view, &mut Scratch::default()).drafts, vec![0; 64]);
        assert_eq!(budget(&policy.cost.target), {
            let one = policy.cost.target.rows_us(1);
            (1..=ROWS_MAX as u32).filter(|&rows| policy.cost.target.rows_us(rows) <= 1.25 * one).count()
                as u32
        });
    }
}
