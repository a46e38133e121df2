//! A step as the scheduler plans it.

use std::sync::Arc;

use super::fault::SpeculationFault;
use crate::policy::Policy;
use crate::protocol::{DraftSeed, RequestId, RowRole, Step, StepDecision, StepView, TokenEvent, VerifyRow};

/// Everything that a step needs.
#[derive(Debug)]
pub struct StepPlan {
    /// Counts steps; an outcome names it.
    pub number: u64,
    /// The policy that planned, and that decides the rest of this step.
    pub policy: Arc<dyn Policy>,
    /// What the policy saw.
    pub view: StepView,
    /// What it was granted.
    pub granted: StepDecision,
    /// The target's rows: decoding sequences in the view's order, without drafts yet, then prefill
    /// chunks.
    pub rows: Vec<VerifyRow>,
    /// What the drafter is fed, each for one of the rows.
    pub seeds: Vec<DraftSeed>,
    /// Requests that are part of a step for the first time.
    pub started: Vec<RequestId>,
    /// Why the step was planned without the policy.
    pub fault: Option<SpeculationFault>,
}

impl StepPlan {
    /// The step as its policy is shown it.
    pub fn step(&self) -> Step<'_> {
        Step { view: &self.view, granted: &self.granted }
    }

    /// Whether the drafter takes part.
    pub fn drafts(&self) -> bool {
        !self.seeds.is_empty()
    }

    /// Prefill tokens in this step.
    pub fn prefill_tokens(&self) -> u32 {
        self.prefill_rows().map(|row| row.input.tokens.len() as u32).sum()
    }

    /// The prefill chunks.
    pub fn prefill_rows(&self) -> impl Iterator<Item = &VerifyRow> {
        self.rows.iter().filter(|row| row.role == RowRole::Prefill)
    }
}

/// An event and the request it is for.
pub type Delivery = (RequestId, TokenEvent);
