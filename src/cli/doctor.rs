//! `specserve doctor`: diagnoses the machine.

use std::io::Write;

use clap::Args;

use super::error::CliError;
use crate::doctor;

/// Diagnoses the machine: CPU, GPU, driver, libraries, memory, limits.
///
/// With a GPU, also measures copy bandwidth and matrix rate, which takes some seconds.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// [`CliError::Output`] if the report cannot be written.
pub fn run(args: &DoctorArgs, out: &mut impl Write) -> Result<(), CliError> {
    let report = doctor::report();
    if args.json {
        writeln!(out, "{:#}", serde_json::json!({ "cuda_works": report.cuda_works(), "report": report }))?;
    } else {
        write!(out, "{report}")?;
    }
    Ok(())
}
