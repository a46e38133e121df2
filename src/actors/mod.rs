//! The engine's actors and the threads under them (DESIGN, section 3).
//!
//! ```text
//! API ─► Intake ─► BatchBuilder ─► Drafter ─► Verifier ─┐
//!                   ▲    │  (plain steps skip the drafter)
//!                   └────┼──────────────────────────────┘ one outcome per step
//!                        └─► SloMonitor ─► policy snapshots, metrics
//! ```
//! A supervisor starts them, restarts the drafter, and ends the engine on anything else.
#![forbid(unsafe_code)]

mod admission;
mod batch_builder;
mod condition;
mod device;
mod drafter;
mod engine;
mod intake;
mod messages;
mod slo_monitor;
mod supervisor;
#[cfg(test)]
mod tests;
mod verifier;

pub use condition::{Condition, ConditionBoard};
pub use device::Polling;
pub use engine::{Engine, EngineHandle, EngineOptions};
pub use intake::DoorPolicy;
