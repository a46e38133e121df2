//! What this machine offers to the executors, what is missing, and what to do about it.
//!
//! Works on every machine and in every build: what cannot be looked at is reported as such.

#[cfg(feature = "cuda")]
mod gpu;
mod host;
mod report;

pub use report::{DoctorReport, Fact, Problem, Severity};

/// Looks at everything. With a GPU this takes some seconds, since bandwidth and matrix rate
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
