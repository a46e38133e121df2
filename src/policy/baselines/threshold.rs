//! `threshold:P`: stops drafting when the draft's confidence falls.
//!
//! The "dynamic speculation" baseline of AdaSpec (arXiv 2503.05096): one length for the batch, drafting goes on
//! while the *mean* draft probability over the batch is at least `P`, up to 8 tokens. It
//! verifies everything that it drafted, and looks at neither load nor objectives.

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

impl Policy for Threshold {
    fn name(&self) -> String {
        format!("threshold:{}", self.probability)
    }

    fn plan(&self, view: &StepView, _: &mut Scratch) -> StepDecision {
        draft_everywhere(view, self.draft_tokens_max)
    }

    fn extend(&self, _: Step<'_>, rows: &[DraftedRow], active: &[u32], _: &mut Scratch, keep: &mut Vec<u32>) {
        let last = active.iter().filter_map(|&index| rows[index as usize].proposals.last());
        let (sum, count) =
            last.fold((0.0, 0u32), |(sum, count), draft| (sum + f64::from(draft.probability), count + 1));
        if sum >= f64::from(self.probability) * f64::from(count) {
            keep.extend_from_slice(active);
        }
    }
}
