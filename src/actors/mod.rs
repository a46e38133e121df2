//! The engine's actors and the threads under them.
//!
//! ```text
//! API ─► Intake ─► BatchBuilder ─► Drafter ─► device ─► Verifier ─┐
//!                   ▲    │    └─ plain steps ──▲                  │
//!                   └────┼────────────────────────────────────────┘ one checked result per step
//!                        └─► SloMonitor ─► metrics, attainment
//! ```
//! The batch builder drives the engine core, the drafter owns speculation and its health, the
//! verifier checks what the device returns. A supervisor starts them, restarts the drafter, and
//! ends the engine on any other failure.
//!
//! May import: protocol, kv, pacing, policy, executor, step, scheduler, engine, telemetry.
#![forbid(unsafe_code)]

mod admission;
mod batch_builder;
mod condition;
mod device;
mod drafter;
mod engine;
mod health;
mod intake;
mod messages;
mod slo_monitor;
mod supervisor;
#[cfg(test)]
mod tests;
mod verifier;

pub use condition::{Condition, HealthWatch};
pub use device::Polling;
pub use engine::{Engine, EngineHandle, EngineOptions, EngineParts};
pub use intake::AdmissionPolicy;
