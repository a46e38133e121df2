//! Why a step speculated less than planned.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What went wrong in the speculative part of a step. The step itself went on without drafts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpeculationFault {
    /// A policy panicked: a bug in it.
    #[error("the policy panicked in `{phase}`: {message}")]
    Policy {
        /// `plan`, `extend`, `select` or `observe`.
        phase: &'static str,
        /// The panic's message.
        message: String,
    },
    /// The drafter returned an error or panicked.
    #[error("the drafter failed: {0}")]
    Drafter(String),
    /// The drafter returned what no drafter may: a token outside of the vocabulary, a probability
    /// that is none, a proposal for a seed that asked for none.
    #[error("the drafter broke its contract: {0}")]
    Contract(String),
}

impl SpeculationFault {
    /// Calls a policy and turns its panic into a fault.
    ///
    /// # Errors
    /// [`SpeculationFault::Policy`].
    pub fn guard_policy<T>(phase: &'static str, call: impl FnOnce() -> T) -> Result<T, SpeculationFault> {
        // decisions take `&self`; what a panicking one wrote to is discarded by the caller
        catch_unwind(AssertUnwindSafe(call)).map_err(|panic| SpeculationFault::Policy {
            phase,
            message: panic_message(panic.as_ref()).to_owned(),
        })
    }
}

/// The message of a caught panic.
pub fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
