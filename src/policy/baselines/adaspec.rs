//! AdaSpec (Huang et al., SoCC'25, arXiv 2503.05096): `adaspec` as its authors released it,
//! `adaspec-gated` as the paper describes it.
//!
//! One draft length for the batch. Before drafting, and before each further draft call,
//! goodput is predicted with the running product of draft probabilities as acceptance and a
//! global mean for the position to come; after the call it is corrected with the real
//! probabilities, and drafting stops at the first fall. Then the verification batch is
//! pruned to the next smaller graph size if that raises goodput. Graph sizes are those of the
//! profile at which its time steps; a profile without graphs has the sizes of the release:
//! powers of two, then multiples of 32.
//!
//! Of a block that a draft head makes at once, drafting is paid for before the first length is
//! judged: a batch drafts if any length promises more goodput than none, and verifies up to the first
//! fall.
//!
//! The two differ in the gate alone. With it, no length is drafted whose whole step (drafting,
//! verification and host) is predicted to take longer than the tightest TPOT objective in the
//! batch. The release has it commented out and looks at no objectives.
//!
//! Kept as released, although each costs it something: raw probabilities as acceptance; one
//! never-forgetting mean, updated only by calls that did not lower goodput; the early stop on
//! a cost that is a staircase; pruning one bucket only, and always the same weakest request down
//! to nothing before the next is touched. Not kept: batch expansion (this engine's
//! verification does not need it, so its cost would be fictitious), the context buckets of
//! its time table (the profile is used), and holes in the draft's KV cache.

use std::sync::Arc;

use super::{draft_everywhere, symmetric_us};
use crate::policy::survival::POSITIONS_MAX;
use crate::policy::{Learner, Policy, Scratch};
use crate::protocol::{DraftedRow, Step, StepDecision, StepReport, StepView};
use crate::timing::cost_model::{CostModel, LatencyModel};

/// Mean probability assumed before anything was drafted.
const FIRST_MEAN: f64 = 0.6;
/// Up to this many rows the release captures graphs at powers of two, above at its multiples.
const GRAPH_STRIDE: u32 = 32;

/// What the paper holds the step time against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdaSpecGate {
    /// Factor on the tightest TPOT objective in the batch.
    pub scale: f64,
    /// Bound where no request has an objective, in microseconds; 40 ms is the constant in the
    /// release's unused code.
    pub default_us: f64,
}

impl Default for AdaSpecGate {
    fn default() -> AdaSpecGate {
        AdaSpecGate { scale: 1.0, default_us: 40_000.0 }
    }
}

impl AdaSpecGate {
    /// Longest step that may draft, in microseconds.
    fn bound_us(self, view: &StepView) -> f64 {
        let tightest = view.decoding.iter().filter_map(|row| row.tpot).min();
        tightest.map_or(self.default_us, |tpot| tpot.0 as f64 * self.scale)
    }
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct AdaSpec {
    cost: Arc<CostModel>,
    draft_tokens_max: u32,
    /// `None`: no gate.
    gate: Option<AdaSpecGate>,
    /// Sum and count of all probabilities that count: the global mean `c̄`.
    mean: (f64, f64),
}

/// Sums over the batch of the cumulative probabilities at each position, and of the plain ones.
#[derive(Clone, Copy, Debug, Default)]
struct Confidence {
    cumulative: [f64; POSITIONS_MAX],
    plain: [(f64, f64); POSITIONS_MAX],
}

impl Confidence {
    fn of(rows: &[DraftedRow]) -> Confidence {
        let mut sums = Confidence::default();
        for row in rows {
            let mut alive = 1.0;
            for (depth, proposal) in row.proposals.iter().take(POSITIONS_MAX).enumerate() {
                let probability = f64::from(proposal.probability);
                alive *= probability;
                sums.cumulative[depth] += alive;
                sums.plain[depth].0 += probability;
                sums.plain[depth].1 += 1.0;
            }
        }
        sums
    }
}

/// Where drafting stands after correcting with all real probabilities.
struct Corrected {
    goodput: f64,
    /// The length at which goodput fell, else all that was drafted.
    length: u32,
    fell: bool,
    mean: (f64, f64),
}

impl AdaSpec {
    /// `adaspec`. Starts from the profile's times.
    pub fn released(cost: CostModel, draft_tokens_max: u32) -> AdaSpec {
        let draft_tokens_max = draft_tokens_max.min(POSITIONS_MAX as u32);
        AdaSpec { cost: Arc::new(cost), draft_tokens_max, gate: None, mean: (0.0, 0.0) }
    }

    /// `adaspec-gated`. Starts from the profile's times.
    pub fn gated(cost: CostModel, draft_tokens_max: u32, gate: AdaSpecGate) -> AdaSpec {
        AdaSpec { gate: Some(gate), ..AdaSpec::released(cost, draft_tokens_max) }
    }

    /// Whether drafts come in blocks.
    fn drafts_blocks(&self) -> bool {
        self.cost.draft.as_ref().is_some_and(LatencyModel::drafts_blocks)
    }

    /// `G(g)` of the length `g`, `drafts` of which are paid for; −1 where the gate is closed.
    fn goodput(&self, view: &StepView, drafts: u32, length: u32, cumulative: &[f64; POSITIONS_MAX]) -> f64 {
        let batch = view.decoding.len() as u32;
        let step_us = symmetric_us(&self.cost, view, drafts, batch * (length + 1));
        if length > 0 && self.gate.is_some_and(|gate| step_us > gate.bound_us(view)) {
            return -1.0;
        }
        (f64::from(batch) + cumulative[..length as usize].iter().sum::<f64>()) / step_us
    }

    /// Replays the correct phase over what has been drafted.
    fn correct(&self, view: &StepView, rows: &[DraftedRow], sums: &Confidence) -> Corrected {
        let drafted = rows.iter().map(|row| row.proposals.len()).max().unwrap_or(0).min(POSITIONS_MAX);
        let goodput = |length: u32| {
            let paid = if self.drafts_blocks() { drafted as u32 } else { length };
            self.goodput(view, paid, length, &sums.cumulative)
        };
        let mut now = Corrected { goodput: goodput(0), length: 0, fell: false, mean: self.mean };
        for length in 1..=drafted {
            let goodput = goodput(length as u32);
            now.fell = goodput < now.goodput;
            (now.goodput, now.length) = (goodput, length as u32);
            if now.fell {
                break;
            }
            let (sum, count) = sums.plain[length - 1];
            now.mean = (now.mean.0 + sum, now.mean.1 + count);
        }
        now
    }

    /// Prunes `lengths` by `excess` drafts: the request with the smallest last cumulative
    /// probability loses all of its drafts before the next loses any.
    fn prune(rows: &[DraftedRow], lengths: &mut [u32], excess: u32) {
        let product =
            |row: &DraftedRow| -> f32 { row.proposals.iter().map(|draft| draft.probability).product() };
        let mut left = excess;
        while left > 0 {
            let alive = (0..rows.len()).filter(|&index| lengths[index] > 0);
            let weakest = alive.min_by(|&a, &b| product(&rows[a]).total_cmp(&product(&rows[b])));
            let Some(weakest) = weakest else { return };
            let taken = left.min(lengths[weakest]);
            lengths[weakest] -= taken;
            left -= taken;
        }
    }

    /// Goodput of verifying `lengths`, the drafting being paid for.
    fn verified_goodput(&self, view: &StepView, rows: &[DraftedRow], lengths: &[u32]) -> f64 {
        let batch = view.decoding.len() as u32;
        let calls = rows.iter().map(|row| row.proposals.len()).max().unwrap_or(0) as u32;
        let mut tokens = f64::from(batch);
        for (row, &length) in rows.iter().zip(lengths) {
            let mut alive = 1.0;
            for proposal in &row.proposals[..length as usize] {
                alive *= f64::from(proposal.probability);
                tokens += alive;
            }
        }
        tokens / symmetric_us(&self.cost, view, calls, batch + lengths.iter().sum::<u32>())
    }
}

/// The largest graph that the release would capture below `rows`.
fn released_graph_below(rows: u32) -> u32 {
    match rows {
        0 | 1 => 0,
        2..=GRAPH_STRIDE => 1 << (rows - 1).ilog2(),
        _ => (rows - 1) / GRAPH_STRIDE * GRAPH_STRIDE,
    }
}

fn mean_of((sum, count): (f64, f64)) -> f64 {
    if count > 0.0 { sum / count } else { FIRST_MEAN }
}

impl Policy for AdaSpec {
    fn name(&self) -> String {
        if self.gate.is_some() { "adaspec-gated" } else { "adaspec" }.to_owned()
    }

    fn plan(&self, view: &StepView, _: &mut Scratch) -> StepDecision {
        if self.cost.draft.is_none() || view.decoding.is_empty() {
            return draft_everywhere(view, 0);
        }
        let mut predicted = [0.0; POSITIONS_MAX];
        let (mut alive, mean) = (view.decoding.len() as f64, mean_of(self.mean));
        for tokens in &mut predicted {
            alive *= mean;
            *tokens = alive;
        }
        let judged = if self.drafts_blocks() { self.draft_tokens_max } else { 1 };
        let plain = self.goodput(view, 0, 0, &predicted);
        let worth = (1..=judged).any(|length| self.goodput(view, length, length, &predicted) > plain);
        draft_everywhere(view, if worth { self.draft_tokens_max } else { 0 })
    }

    fn extend(
        &self,
        step: Step<'_>,
        rows: &[DraftedRow],
        active: &[u32],
        _: &mut Scratch,
        keep: &mut Vec<u32>,
    ) {
        let mut sums = Confidence::of(rows);
        let now = self.correct(step.view, rows, &sums);
        let drafted = rows.iter().map(|row| row.proposals.len()).max().unwrap_or(0);
        if now.fell || drafted == 0 || drafted >= self.draft_tokens_max as usize {
            return;
        }
        sums.cumulative[drafted] = sums.cumulative[drafted - 1] * mean_of(now.mean);
        let next = drafted as u32 + 1;
        if self.goodput(step.view, next, next, &sums.cumulative) >= now.goodput {
            keep.extend_from_slice(active);
        }
    }

    fn select(&self, step: Step<'_>, rows: &[DraftedRow], _: &mut Scratch, lengths: &mut Vec<u32>) {
        let most = match self.drafts_blocks() {
            true => self.correct(step.view, rows, &Confidence::of(rows)).length,
            false => u32::MAX, // `extend` has stopped there
        };
        let drafted = |row: &DraftedRow| (row.proposals.len() as u32).min(most);
        lengths.extend(rows.iter().map(drafted));
        let verified = step.view.decoding.len() as u32 + lengths.iter().sum::<u32>();
        let full = self.verified_goodput(step.view, rows, lengths);
        let smaller = self.cost.target.previous_size(verified);
        let smaller = smaller.unwrap_or_else(|| released_graph_below(verified));
        Self::prune(rows, lengths, verified - smaller);
        if self.verified_goodput(step.view, rows, lengths) < full {
            lengths.clear();
            lengths.extend(rows.iter().map(drafted));
        }
    }
}

impl Learner for AdaSpec {
    fn observe(&mut self, report: &StepReport) {
        self.mean = self.correct(&report.view, &report.drafted, &Confidence::of(&report.drafted)).mean;
    }

    fn snapshot(&self) -> Arc<dyn Policy> {
        Arc::new(self.clone())
    }

    fn state(&self) -> serde_json::Value {
        serde_json::json!({ "policy": Policy::name(self), "mean_confidence": mean_of(self.mean) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Proposal;

    #[test]
    fn released_graphs_are_powers_of_two_then_multiples_of_thirty_two() {
        let cases = [(24, 16), (33, 32), (64, 32), (100, 96), (32, 16), (2, 1), (1, 0), (0, 0)];
        for (rows, graph) in cases {
            assert_eq!(released_graph_below(rows), graph, "{rows}");
        }
    }

    #[test]
    fn pruning_strips_the_weakest_request_bare_as_released() {
        let row = |probabilities: &[f32]| {
            DraftedRow::chain(
                0,
                probabilities
                    .iter()
                    .map(|&probability| Proposal { probability, finite: true, ..Proposal::default() })
                    .collect(),
            )
        };
        let rows = [row(&[0.9, 0.9, 0.9]), row(&[0.95, 0.58, 0.09]), row(&[0.5, 0.5, 0.5])];
        let mut lengths = [3, 3, 3];
        AdaSpec::prune(&rows, &mut lengths, 4);
        assert_eq!(lengths, [3, 0, 2]);
        AdaSpec::prune(&rows, &mut lengths, 50);
        assert_eq!(lengths, [0, 0, 0]);
    }
}
