//! How often a runner-up is right where the drafter's choice is not.
//!
//! The chance that the target takes the second candidate behind a node is
//! `S · (1 − c(q)) · d(q)`: `S` the survival of the node, `c` the calibrated acceptance of the choice
//! with draft probability `q` ([`super::calibration`]), and `d` this table. It has a bin of `q` each,
//! for temperature 0 and for all others, with exponential decay; sparse bins are pulled towards the
//! share over all of them.
//!
//! Runner-ups need not be verified to be learned from, not even drafted: the target's token behind the
//! accepted drafts is known, so wherever a choice is wrong, its runner-up is either right or wrong as
//! well. Behind a rejected draft nothing is known, and nothing is learned (censoring).

use crate::protocol::{StepReport, WrongChoice};
use crate::timing::reliability::{BINS, bin};

/// Temperature 0, and all others.
const KINDS: usize = 2;
/// Share that is expected before anything was seen: the embedded pair's, between temperature 0 and 1.
const PRIOR_SHARE: f64 = 0.45;
/// Weight of this guess, in wrong choices. It decays like observations.
const PRIOR_CHOICES: f64 = 8.0;
/// Weight of the share over all bins in each, in wrong choices.
const POOLED_CHOICES: f64 = 16.0;
/// Half-life of an observation, in wrong choices.
const HALF_LIFE_CHOICES: f64 = 1024.0;

#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    seen: f64,
    right: f64,
}

/// The learned table.
#[derive(Clone, Debug)]
pub struct RunnerUps {
    cells: [[Cell; BINS]; KINDS],
    /// Seen and right over all bins, with the first guess.
    pooled: [Cell; KINDS],
    shares: [[f32; BINS]; KINDS],
}

impl Default for RunnerUps {
    fn default() -> RunnerUps {
        RunnerUps {
            cells: Default::default(),
            pooled: [Cell { seen: PRIOR_CHOICES, right: PRIOR_SHARE * PRIOR_CHOICES }; KINDS],
            shares: [[PRIOR_SHARE as f32; BINS]; KINDS],
        }
    }
}

impl RunnerUps {
    /// Chance that the runner-up beside a wrong choice of this draft probability is right.
    pub fn share(&self, probability: f32, greedy: bool) -> f32 {
        self.shares[kind(greedy)][bin(probability)]
    }

    /// Learns from the wrong choices of a step.
    pub fn observe(&mut self, report: &StepReport) {
        let mut learned = [0u32; KINDS];
        for (row, WrongChoice { proposal, runner_up_is_right, .. }) in report.wrong_choices() {
            if proposal.probability.is_finite() {
                let kind = kind(row.temperature == 0.0);
                let (cell, pooled) =
                    (&mut self.cells[kind][bin(proposal.probability)], &mut self.pooled[kind]);
                for cell in [cell, pooled] {
                    cell.seen += 1.0;
                    cell.right += f64::from(u8::from(runner_up_is_right));
                }
                learned[kind] += 1;
            }
        }
        for (kind, &choices) in learned.iter().enumerate().filter(|(_, choices)| **choices > 0) {
            self.settle(kind, choices);
        }
    }

    /// Decays a kind for so many observations and computes its shares anew.
    fn settle(&mut self, kind: usize, choices: u32) {
        let fade = (-f64::from(choices) / HALF_LIFE_CHOICES).exp2();
        let pooled = &mut self.pooled[kind];
        for cell in self.cells[kind].iter_mut().chain(std::iter::once(&mut *pooled)) {
            cell.seen *= fade;
            cell.right *= fade;
        }
        let mean = pooled.right / pooled.seen;
        for (share, cell) in self.shares[kind].iter_mut().zip(&self.cells[kind]) {
            *share = ((cell.right + mean * POOLED_CHOICES) / (cell.seen + POOLED_CHOICES)) as f32;
        }
    }

    /// The shares, for `/v1/engine/state`.
    pub fn state(&self) -> serde_json::Value {
        serde_json::json!({ "greedy": self.shares[0].to_vec(), "sampled": self.shares[1].to_vec() })
    }
}

fn kind(greedy: bool) -> usize {
    usize::from(!greedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{DecodeView, DraftOutcome, DraftedRow, Proposal, StepView};

    /// A step of one request whose only draft was wrong.
    fn wrong(probability: f32, runner_up_is_right: bool, temperature: f32) -> StepReport {
        let proposal = Proposal { token: 1, runner_up: 2, probability, finite: true, ..Proposal::default() };
        let next = Some(if runner_up_is_right { 2 } else { 3 });
        StepReport {
            view: StepView {
                decoding: vec![DecodeView { temperature, ..DecodeView::example() }],
                ..StepView::default()
            },
            drafted: vec![DraftedRow::chain(0, vec![proposal])],
            outcomes: vec![DraftOutcome { next, ..DraftOutcome::default() }],
            ..StepReport::default()
        }
    }

    #[test]
    fn each_bin_and_kind_learns_its_own_share() {
        let mut table = RunnerUps::default();
        assert_eq!(table.share(0.3, true), PRIOR_SHARE as f32);
        for step in 0..2000 {
            table.observe(&wrong(0.3, step % 10 < 6, 0.0));
            table.observe(&wrong(0.9, step % 10 < 2, 0.0));
            table.observe(&wrong(0.9, step % 10 < 1, 0.8));
        }
        let shares = [table.share(0.3, true), table.share(0.9, true), table.share(0.9, false)];
        for (share, expected) in shares.iter().zip([0.6, 0.2, 0.1]) {
            assert!((share - expected).abs() < 0.02, "{shares:?}");
        }
        let unseen = [table.share(0.6, true), table.share(0.3, false)];
        for (share, expected) in unseen.iter().zip([0.4, 0.1]) {
            assert!((share - expected).abs() < 0.02, "{unseen:?}: a bin without choices leans on the others");
        }
    }

    #[test]
    fn a_drafter_that_changes_is_followed() {
        let mut table = RunnerUps::default();
        (0..4000).for_each(|_| table.observe(&wrong(0.5, true, 0.0)));
        (0..4000).for_each(|_| table.observe(&wrong(0.5, false, 0.0)));
        assert!(table.share(0.5, true) < 0.1, "{}", table.share(0.5, true));
    }

    #[test]
    fn right_choices_and_bad_numbers_teach_nothing() {
        let mut table = RunnerUps::default();
        let mut right = wrong(0.5, true, 0.0);
        right.outcomes[0].next = Some(1);
        table.observe(&right);
        table.observe(&wrong(f32::NAN, true, 0.0));
        assert_eq!(table.state(), RunnerUps::default().state());
    }
}
