//! Published policies behind the same traits, for comparison and ablation; each module names its
//! source. They ignore objectives unless they say otherwise, and use the profile's times without
//! online correction, as their originals do. `none` and `fixed:K` are [`Fixed`](super::Fixed).

mod adaserve;
mod adaspec;
mod adaspec_verifier;
mod eagle2;
mod paths;
mod smartspec;
mod threshold;

pub use adaserve::AdaServe;
pub use adaspec::{AdaSpec, AdaSpecGate};
pub use adaspec_verifier::AdaSpecVerifier;
pub(super) use adaspec_verifier::VerifierBuffers;
pub use eagle2::Eagle2;
pub(super) use paths::PathBuffers;
pub use smartspec::SmartSpec;
pub use threshold::Threshold;

use crate::protocol::{StepDecision, StepView};
use crate::timing::cost_model::{CostModel, Work};

/// `tokens` drafts for every sequence, all prefill that is offered.
fn draft_everywhere(view: &StepView, tokens: u32) -> StepDecision {
    StepDecision {
        rate: 0.0,
        drafts: view.decoding.iter().map(|row| tokens.min(row.drafts_max)).collect(),
        prefill_tokens: view.prefill_tokens_max,
        warm_draft: tokens > 0,
        ..StepDecision::default()
    }
}

/// Time of a step that drafts `length` tokens for every sequence and verifies `rows` rows,
/// in microseconds, from the profile alone. A step that drafts has one drafting round.
fn symmetric_us(cost: &CostModel, view: &StepView, length: u32, rows: u32) -> f64 {
    let batch = view.decoding.len() as u32;
    let context_tokens: u64 = view.decoding.iter().map(|row| u64::from(row.context_tokens)).sum();
    let queries = f64::from(rows) / f64::from(batch.max(1));
    let target = Work {
        rows,
        context_tokens,
        attended_tokens: (context_tokens as f64 * queries) as u64,
        ..Work::default()
    };
    let call = Work { rows: batch, context_tokens, attended_tokens: context_tokens, ..Work::default() };
    let draft_us = match &cost.draft {
        Some(draft) if length > 0 => {
            draft.terms().round_us + draft.decode_us(&call) * f64::from(draft.draft_calls(length))
        }
        _ => 0.0,
    };
    cost.host_us + cost.target.decode_us(&target) + draft_us
}

#[cfg(test)]
mod tests;
