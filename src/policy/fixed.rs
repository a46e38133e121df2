//! `fixed:K` and `none`: a constant draft length; zero is plain decoding. Looks at nothing but the
//! batch's composition.

use super::{Policy, Scratch};
use crate::protocol::{StepDecision, StepView};

/// `fixed:K` drafts `K` tokens for every sequence in every step; `none` is `fixed:0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// Draft tokens per sequence and step.
    pub draft_tokens: u32,
}

impl Fixed {
    /// Plain decoding.
    pub const NONE: Fixed = Fixed { draft_tokens: 0 };
}

impl Policy for Fixed {
    fn name(&self) -> String {
        match self.draft_tokens {
            0 => "none".to_owned(),
            k => format!("fixed:{k}"),
        }
    }

    fn plan(&self, view: &StepView, _: &mut Scratch) -> StepDecision {
        StepDecision {
            rate: 0.0,
            drafts: view.decoding.iter().map(|row| self.draft_tokens.min(row.drafts_max)).collect(),
            prefill_tokens: view.prefill_tokens_max,
            warm_draft: self.draft_tokens > 0,
            ..StepDecision::default()
        }
    }
}
