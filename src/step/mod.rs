//! One step, from plan to result: draft, select, verify.
//!
//! ```text
//! StepPlan ──draft──► Drafted ──select──► Selected ──verify──► StepResult
//! (scheduler)  drafter          policy              target      outcome → scheduler
//!                                                               report  → learner, SLO monitor
//! ```
//! [`run`] is one job of the device thread: a step crosses threads once in each direction. The
//! functions hold no state and read no clock but the one they are given, so the simulator and the
//! tests run the same code in a row.
//!
//! A step that can't speculate as planned still decodes: a policy that panics and a drafter that
//! fails cost the step its drafts, and the result carries the [`SpeculationFault`].
//!
//! A constrained request's masks are computed here, from its committed output and its drafts; a
//! proposal that its mask forbids ends its row. Where its constraint forces all that a row may draft,
//! that is drafted without the drafter.
//!
//! May import: protocol, policy, executor.
#![forbid(unsafe_code)]

mod acceptance;
mod constraint;
mod draft;
mod fault;
mod plan;
mod result;
mod verify;

#[cfg(test)]
mod tests;

pub use acceptance::AcceptanceStats;
pub use draft::{DraftTrack, Drafted, draft};
pub use fault::{SpeculationFault, panic_message};
pub use plan::{Delivery, StepPlan};
pub use result::{RowOutcome, StepOutcome, StepResult};
pub use verify::{Selected, verify};

use crate::executor::Executor;
use crate::policy::Scratch;
use crate::protocol::{Clock, ExecutorError};

/// Runs a whole step.
///
/// # Errors
/// What the target says. The drafter's errors become the result's fault.
pub fn run(
    executor: &mut dyn Executor,
    plan: StepPlan,
    scratch: &mut Scratch,
    clock: &dyn Clock,
) -> Result<StepResult, ExecutorError> {
    let drafted = draft(executor, plan, scratch, clock);
    verify(executor, drafted.select(scratch), clock)
}
