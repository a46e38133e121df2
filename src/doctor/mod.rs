//! Diagnoses the machine for the executors: capabilities, problems and remedies; and says what a
//! model directory holds.
//!
//! Runs on any machine and in any build. Checks that cannot run are reported as such.
//!
//! May import: protocol, model, executor.

#[cfg(feature = "cuda")]
mod gpu;
mod host;
mod model;
mod report;

pub use model::describe_model;
pub use report::{DoctorReport, Finding, Problem, Severity};

/// Runs all checks. With a GPU this takes some seconds, since bandwidth and matrix rate
/// are measured, and needs 3 GiB of free device memory.
pub fn report() -> DoctorReport {
    let mut report = DoctorReport::default();
    host::build(&mut report);
    host::host(&mut report);
    host::limits(&mut report);
    #[cfg(feature = "cuda")]
    gpu::examine(&mut report);
    report
}
