//! Speculation policies: how much to draft, what to verify, how much to prefill.
//!
//! A policy is pure. Its decisions are functions of what it has learned and of the
//! [`StepView`] it is shown; it reads no clock and draws no randomness. Learning
//! happens in one place, [`Policy::observe`], called by the SLO monitor after each
//! step; everybody else holds an immutable snapshot ([`Policy::snapshot`]).
//! Because verification is lossless under any choice (DESIGN, section 5), a policy
//! can make an answer late but never wrong.
#![forbid(unsafe_code)]

mod fixed;

pub mod baselines;
pub mod calibration;
pub mod planner;
pub mod registry;
pub mod slo;
pub mod specserve;
pub mod survival;

use std::fmt::Debug;
use std::sync::Arc;

pub use fixed::Fixed;

use crate::protocol::{DraftedRow, Micros, Slo, Step, StepDecision, StepReport, StepView};

/// Decides how each step speculates. See the module's documentation.
pub trait Policy: Send + Sync + Debug {
    /// The name as the config spells it, `fixed:4` for example.
    fn name(&self) -> String;

    /// Before a step: how far each sequence may draft, and how much to prefill.
    fn plan(&self, view: &StepView) -> StepDecision;

    /// Between two draft calls: which rows draft one more. `rows` are all rows that
    /// drafted in this step, those that have stopped too; `active` are ascending indices
    /// into `rows` of those that just got a proposal and are below their planned length.
    /// Write the members of `active` that go on, ascending. By default all do.
    fn extend(&self, step: Step<'_>, rows: &[DraftedRow], active: &[u32], keep: &mut Vec<u32>) {
        let _ = (step, rows);
        keep.extend_from_slice(active);
    }

    /// After drafting: how many of each row's proposals the target verifies; write one
    /// length per row, at most its proposals. By default all.
    fn select(&self, step: Step<'_>, rows: &[DraftedRow], lengths: &mut Vec<u32>) {
        let _ = step;
        lengths.extend(rows.iter().map(|row| row.proposals.len() as u32));
    }

    /// Learns from a step.
    fn observe(&mut self, report: &StepReport) {
        let _ = report;
    }

    /// How long a step should have taken given what it did, before it is learned from; for
    /// metrics and the watchdog. `None` for policies that predict no times.
    fn predict(&self, report: &StepReport) -> Option<Micros> {
        let _ = report;
        None
    }

    /// Whether an objective can be met by plain decoding of this one request, when
    /// `prompt_tokens` are prefilled in chunks of `chunk_tokens` before its first token (its
    /// own prompt, and those that wait before it). `Ok` for policies without a time model.
    ///
    /// # Errors
    /// The objective that can't be met, and the best that can be hoped for.
    fn check_feasible(
        &self,
        slo: &Slo,
        prompt_tokens: u32,
        chunk_tokens: u32,
    ) -> Result<(), slo::Infeasible> {
        let _ = (slo, prompt_tokens, chunk_tokens);
        Ok(())
    }

    /// An immutable copy of what is known now.
    fn snapshot(&self) -> Arc<dyn Policy>;

    /// What has been learned, for `/v1/engine/state`.
    fn state(&self) -> serde_json::Value {
        serde_json::json!({ "policy": self.name() })
    }
}

#[cfg(test)]
mod testbed;
