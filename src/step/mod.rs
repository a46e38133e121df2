//! One step, from plan to outcome.
//!
//! ```text
//! StepPlan ──draft_round──► Drafted ──select──► Drafted ──verify_round──► Stepped
//! (scheduler)  draft model            policy               target        outcome → scheduler
//!                                                                        report  → SLO monitor
//! ```
//! The functions take an executor and a clock and hold no state: the drafter and verifier
//! actors run them on the device thread, tests and the simulator call them in a row.
#![forbid(unsafe_code)]

mod draft_round;
mod plan;
mod verify_round;

pub use draft_round::{Drafted, draft_round};
pub use plan::{Delivery, Drafting, StepOutcome, StepPlan};
pub use verify_round::{Stepped, verify_round};
