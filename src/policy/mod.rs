//! Speculation policies: how much to draft, what to verify, how much to prefill.
//!
//! A [`Policy`] is a pure function of what it knows and of the [`StepView`] it is given: it reads
//! no clock and draws no random numbers. It is immutable and shared as `Arc<dyn Policy>`. A
//! [`Learner`] owns the knowledge, updates it from the report of each step, and publishes
//! snapshots. It lives in the engine core.
//!
//! A policy can make an answer late but never wrong: every token is the target's own sample, and
//! drafts only decide how many are known after one pass. docs/policy.md has the mathematics.
//!
//! May import: protocol, stats, timing.
#![forbid(unsafe_code)]

pub(crate) mod chains;
mod fixed;
mod learner;

pub mod baselines;
pub mod calibration;
pub mod planner;
pub mod registry;
pub mod runner_up;
pub mod slo;
pub mod specserve;
pub mod survival;

use std::fmt::Debug;

pub use fixed::Fixed;
pub use learner::{Learner, Static};

use crate::protocol::{DraftSet, DraftedRow, OpenDraft, Slo, Step, StepDecision, StepView};

/// Buffers that the deciding methods of [`Policy`] reuse, so that they allocate nothing in steady
/// state. The contents mean nothing between calls: any scratch will do for any call, on any
/// thread. The caller of a policy owns one.
#[derive(Debug, Default)]
pub struct Scratch {
    specserve: specserve::Workspace,
    verifier: baselines::VerifierBuffers,
    paths: baselines::PathBuffers,
    chains: chains::ChainBuffers,
}

/// Decides how each step speculates. See the module's documentation.
pub trait Policy: Send + Sync + Debug {
    /// The name as the config spells it, `fixed:4` for example.
    fn name(&self) -> String;

    /// Before a step: how far each sequence may draft, and how much to prefill.
    fn plan(&self, view: &StepView, scratch: &mut Scratch) -> StepDecision;

    /// Between two draft calls: which rows draft another token. `rows` are all rows that
    /// drafted in this step, including those that have stopped; `active` are ascending indices
    /// into `rows` of those that just got a proposal and are below their granted length.
    /// Appends the members of `active` that continue to `keep`, ascending. Default: all.
    fn extend(
        &self,
        step: Step<'_>,
        rows: &[DraftedRow],
        active: &[u32],
        scratch: &mut Scratch,
        keep: &mut Vec<u32>,
    ) {
        let _ = (step, rows, scratch);
        keep.extend_from_slice(active);
    }

    /// After drafting: how many of each row's proposals the target verifies. Appends one length
    /// per row to `lengths`, at most the row's proposals. Default: all.
    fn select(&self, step: Step<'_>, rows: &[DraftedRow], scratch: &mut Scratch, lengths: &mut Vec<u32>) {
        let _ = (step, scratch);
        lengths.extend(rows.iter().map(|row| row.proposals.len() as u32));
    }

    /// [`extend`](Self::extend) for steps that draft [trees](crate::protocol::DraftShape): which drafts
    /// are fed next. `open` are the drafts of the last call that the drafter can be fed, by row. Appends
    /// the indices into `open` of those that are fed to `keep`, ascending. A row is fed no more drafts
    /// than it has left of what it was granted; the first ones count.
    ///
    /// Default: asks `extend`, which is right where each row has one open draft.
    fn expand(
        &self,
        step: Step<'_>,
        rows: &[DraftedRow],
        open: &[OpenDraft],
        scratch: &mut Scratch,
        keep: &mut Vec<u32>,
    ) {
        chains::expand(self, step, rows, open, scratch, keep);
    }

    /// [`select`](Self::select) for steps that draft trees: which drafts of each row are verified.
    /// Appends one set per row to `chosen`. A draft whose ancestors are not chosen is not verified, nor
    /// are more than were granted.
    ///
    /// Default: asks `select`, and takes so many of the first drafts.
    fn choose(&self, step: Step<'_>, rows: &[DraftedRow], scratch: &mut Scratch, chosen: &mut Vec<DraftSet>) {
        chains::choose(self, step, rows, scratch, chosen);
    }

    /// Whether plain decoding meets the objectives of a request that runs alone, with
    /// `prompt_tokens` (its own prompt and those queued ahead) prefilled in chunks of
    /// `chunk_tokens` before its first token. `Ok` for policies without a time model.
    ///
    /// # Errors
    /// The objective that can't be met, and the best value that the machine can reach.
    fn check_feasible(
        &self,
        slo: &Slo,
        prompt_tokens: u32,
        chunk_tokens: u32,
    ) -> Result<(), slo::Infeasible> {
        let _ = (slo, prompt_tokens, chunk_tokens);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
