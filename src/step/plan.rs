//! One step as data: what the scheduler plans and what comes back.

use std::sync::Arc;

use crate::policy::Policy;
use crate::protocol::{
    DraftRow, DraftedRow, RequestId, Step, StepDecision, StepView, TokenEvent, Verdict, VerifyRow,
};

/// Everything that the drafter and the verifier need for one step.
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
    /// The target's rows: one per entry of `view.decoding`, in its order and without drafts
    /// yet, then prefill chunks.
    pub rows: Vec<VerifyRow>,
    /// The draft model's rows: first those that propose, then those that only fill the cache.
    pub draft_rows: Vec<DraftRow>,
    /// What each of them is for.
    pub drafting: Vec<Drafting>,
    /// Drafts that were looked up rather than computed, in the order of the decoding sequences.
    pub lookups: Vec<DraftedRow>,
    /// Requests that are part of a step for the first time.
    pub started: Vec<RequestId>,
}

/// What one row of a drafting round is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drafting {
    /// Index into [`StepView::decoding`]; `None` for a row that only fills the cache.
    pub decoding: Option<u32>,
    /// Most proposals; 0 for a row that only fills the cache.
    pub limit: u32,
}

impl StepPlan {
    /// The step as its policy is shown it.
    pub fn step(&self) -> Step<'_> {
        Step { view: &self.view, granted: &self.granted }
    }

    /// Prefill tokens in this step.
    pub fn prefill_tokens(&self) -> u32 {
        self.prefill_rows().map(|row| row.input.tokens.len() as u32).sum()
    }

    /// The prefill chunks.
    pub fn prefill_rows(&self) -> impl Iterator<Item = &VerifyRow> {
        self.rows[self.view.decoding.len()..].iter()
    }
}

/// What a step did to its sequences.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOutcome {
    /// The plan's number.
    pub number: u64,
    /// One per row of the plan.
    pub verdicts: Vec<Verdict>,
    /// Whether the draft model ran the plan's draft rows.
    pub draft_ran: bool,
    /// Proposals made, per decoding sequence.
    pub drafted: Vec<u32>,
    /// Drafts that the target verified, per decoding sequence.
    pub verified: Vec<u32>,
}

/// An event and whom it is for.
pub type Delivery = (RequestId, TokenEvent);
