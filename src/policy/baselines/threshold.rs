//! `threshold:P`: stops drafting when the draft's confidence falls.
//!
//! The "dynamic speculation" baseline of AdaSpec (arXiv 2503.05096): one length for the batch, drafting goes on
//! while the *mean* draft probability over the batch is at least `P`, up to 8 tokens. It
//! verifies everything that it drafted, and looks at neither load nor objectives. Of a block that a
//! draft head makes at once, it verifies what it would have drafted token by token.

use super::draft_everywhere;
use crate::policy::{Policy, Scratch};
use crate::protocol::{DraftedRow, Step, StepDecision, StepView};

/// See the module's documentation.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    /// `P`, from 0 to 1.
    pub probability: f32,
    /// Most draft tokens per sequence and step.
    pub draft_tokens_max: u32,
}

impl Threshold {
    /// Whether the mean of these draft probabilities is at least `P`.
    fn is_cleared_by(&self, probabilities: impl Iterator<Item = f32>) -> bool {
        let add = |(sum, count), probability| (sum + f64::from(probability), count + 1);
        let (sum, count) = probabilities.fold((0.0, 0u32), add);
        sum >= f64::from(self.probability) * f64::from(count)
    }
}

impl Policy for Threshold {
    fn name(&self) -> String {
        format!("threshold:{}", self.probability)
    }

    fn plan(&self, view: &StepView, _: &mut Scratch) -> StepDecision {
        draft_everywhere(view, self.draft_tokens_max)
    }

    fn extend(&self, _: Step<'_>, rows: &[DraftedRow], active: &[u32], _: &mut Scratch, keep: &mut Vec<u32>) {
        let last = active.iter().filter_map(|&index| rows[index as usize].proposals.last());
        if self.is_cleared_by(last.map(|draft| draft.probability)) {
            keep.extend_from_slice(active);
        }
    }

    fn select(&self, _: Step<'_>, rows: &[DraftedRow], _: &mut Scratch, lengths: &mut Vec<u32>) {
        let longest = rows.iter().map(|row| row.proposals.len()).max().unwrap_or(0);
        let goes_on = |drafts: &usize| {
            let going = rows.iter().filter(|row| row.proposals.len() > *drafts);
            self.is_cleared_by(going.map(|row| row.proposals[drafts - 1].probability))
        };
        let stop = (1..longest).find(|drafts| !goes_on(drafts)).unwrap_or(longest);
        lengths.extend(rows.iter().map(|row| row.proposals.len().min(stop) as u32));
    }
}
