//! What a step did.

use super::{SpeculationFault, StepPlan};
use crate::protocol::{ExecutorError, StepReport, Verdict};

/// What a step did to one row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowOutcome {
    /// The target's verdict.
    pub verdict: Verdict,
    /// Proposals made.
    pub drafted: u32,
    /// Of them, those that the target verified.
    pub verified: u32,
    /// Of the accepted ones, those that the drafter was fed: its cache holds them.
    pub cached: u32,
    /// Whether the verdict is not finite because the request's constraint allows no token.
    pub nothing_allowed: bool,
}

/// What a step did to its sequences, for the scheduler.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOutcome {
    /// The plan's number.
    pub number: u64,
    /// One per row of the plan.
    pub rows: Vec<RowOutcome>,
    /// Whether the drafter ran the plan's seeds.
    pub draft_ran: bool,
}

/// A finished step.
#[derive(Debug)]
pub struct StepResult {
    /// For the scheduler.
    pub outcome: StepOutcome,
    /// For the learner and the SLO monitor.
    pub report: StepReport,
    /// Why it speculated less than planned, if it did.
    pub fault: Option<SpeculationFault>,
    /// The plan, less the view, which the report has. Its many small parts are freed, or reused,
    /// once the device works on the next step.
    pub plan: StepPlan,
}

impl StepResult {
    /// Checks what came from the device before the host acts on it: accepted ≤ verified ≤ drafted,
    /// one token more than was accepted, all of them in the vocabulary.
    ///
    /// # Errors
    /// [`ExecutorError::Device`]: the executor broke its contract.
    pub fn check(&self, vocab_size: u32) -> Result<(), ExecutorError> {
        let rows = &self.plan.rows;
        let outcomes = &self.outcome.rows;
        if outcomes.len() != rows.len() {
            let what = format!("{} verdicts came back for {} rows", outcomes.len(), rows.len());
            return Err(ExecutorError::Device(what));
        }
        for (row, RowOutcome { verdict, drafted, verified, .. }) in rows.iter().zip(outcomes) {
            let request = row.input.request;
            let tokens = verdict.tokens.len() as u32;
            let expected = if row.samples() && verdict.finite { verdict.accepted + 1 } else { 0 };
            if verdict.accepted > *verified || verified > drafted || tokens != expected {
                return Err(ExecutorError::Device(format!(
                    "request {request}: {} accepted of {verified} verified of {drafted} drafted, with {tokens} tokens",
                    verdict.accepted
                )));
            }
            if let Some(token) = verdict.tokens.iter().find(|&&token| token >= vocab_size) {
                let what = format!("request {request}: token {token} of a vocabulary of {vocab_size}");
                return Err(ExecutorError::Device(what));
            }
        }
        Ok(())
    }
}
