//! Diagnoses the machine for the executors: capabilities, problems and remedies.
//!
//! Runs on any machine and in any build. Checks that cannot run are reported as such.
//!
//! May import: executor.

#[cfg(feature = "cuda")]
mod gpu;
mod host;
mod report;

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
