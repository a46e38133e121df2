//! `specserve doctor`: diagnoses the machine, or a model directory.

use std::io::Write;

use clap::{Args, ValueEnum};

use super::error::CliError;
use crate::doctor;
use crate::model::{DraftKind, HeadKind, HeadSettings, HubCache, ModelError, ModelRef};

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
    /// What the model is, as draft.kind says it; recognised by default
    #[arg(long, value_enum, requires = "model")]
    kind: Option<Kind>,
    /// What draft.norm_before_residual says of an EAGLE-3 head
    #[arg(long, value_name = "BOOL", requires = "model")]
    norm_before_residual: Option<bool>,
    /// What draft.hidden_state_layers says of a head, such as 2,16,29
    #[arg(long, value_name = "LAYERS", value_delimiter = ',', requires = "model")]
    hidden_state_layers: Option<Vec<usize>>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// A kind of draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A model.
    Model,
    /// An EAGLE-3 head.
    Eagle3,
    /// A DFlash head.
    Dflash,
    /// A DSpark head.
    Dspark,
}

impl From<Kind> for DraftKind {
    fn from(kind: Kind) -> DraftKind {
        match kind {
            Kind::Model => DraftKind::Model,
            Kind::Eagle3 => DraftKind::Head(HeadKind::Eagle3),
            Kind::Dflash => DraftKind::Head(HeadKind::DFlash),
            Kind::Dspark => DraftKind::Head(HeadKind::DSpark),
        }
    }
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
    let settings = HeadSettings {
        kind: args.kind.map(DraftKind::from),
        norm_before_residual: args.norm_before_residual,
        hidden_state_layers: args.hidden_state_layers.clone(),
    };
    let report = doctor::describe_model(&source, target.as_ref(), &settings).map_err(failed)?;
    if args.json {
        writeln!(out, "{:#}", serde_json::json!({ "report": report }))?;
    } else {
        write!(out, "{report}")?;
    }
    Ok(())
}
