//! `specserve doctor`: diagnoses the machine, or a model directory.

use std::io::Write;

use clap::Args;

use super::error::CliError;
use crate::doctor;
use crate::model::{HubCache, ModelError, ModelRef};

/// Diagnoses the machine: CPU, GPU, driver, libraries, memory, limits.
///
/// With a GPU, also measures copy bandwidth and matrix rate, which takes some seconds.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Describe this model or draft head instead, and say why it cannot be used if so
    #[arg(long)]
    model: Option<String>,
    /// The target that the model is to draft for
    #[arg(long, requires = "model")]
    target: Option<String>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// [`CliError::Failed`] if the model cannot be used; [`CliError::Output`] if the report cannot be
/// written.
pub fn run(args: &DoctorArgs, out: &mut impl Write) -> Result<(), CliError> {
    if let Some(model) = &args.model {
        return run_model(model, args, out);
    }
    let report = doctor::report();
    if args.json {
        writeln!(out, "{:#}", serde_json::json!({ "cuda_works": report.cuda_works(), "report": report }))?;
    } else {
        write!(out, "{report}")?;
    }
    Ok(())
}

fn run_model(model: &str, args: &DoctorArgs, out: &mut impl Write) -> Result<(), CliError> {
    let failed = |error: ModelError| CliError::Failed(error.to_string());
    let locate = |name: &str| ModelRef::parse(name)?.locate(&HubCache::of_process());
    let source = locate(model).map_err(failed)?;
    let target = args.target.as_deref().map(locate).transpose().map_err(failed)?;
    let report = doctor::describe_model(&source, target.as_ref()).map_err(failed)?;
    if args.json {
        writeln!(out, "{:#}", serde_json::json!({ "report": report }))?;
    } else {
        write!(out, "{report}")?;
    }
    Ok(())
}
