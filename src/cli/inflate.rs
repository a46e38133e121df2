//! `specserve inflate`: gives a small model the cost of a large one.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::error::CliError;
use crate::model::inflate::{InflateOptions, InflateShape, SHAPES, inflate};
use crate::model::{HubCache, ModelRef};
use crate::protocol::{Clock, ModelRole, MonotonicClock};

/// Writes a model with the dimensions of a large one that computes exactly the same function
/// as the small one: real text and acceptance at large-model cost, without a download.
#[derive(Args, Debug)]
pub struct InflateArgs {
    /// "embedded:tiny", a Hugging Face directory, or a name on the hub (org/name).
    model: String,
    /// Output directory; must not exist.
    out: PathBuf,
    /// Target dimensions.
    #[arg(long)]
    shape: String,
    /// Model of the embedded pair.
    #[arg(long, value_enum, default_value_t = Role::Target)]
    role: Role,
    /// Vocabulary size, where a pair must agree on it; by default that of the shape.
    #[arg(long, value_name = "TOKENS")]
    vocab: Option<usize>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// Role of a model in a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Role {
    /// The target model.
    Target,
    /// The draft model.
    Draft,
}

/// Runs the command.
///
/// # Errors
/// [`CliError::Failed`]: an unknown shape, a model that does not fit it, an existing directory.
pub fn run(args: &InflateArgs, out: &mut impl Write) -> Result<(), CliError> {
    let failed = |error: &dyn std::fmt::Display| CliError::Failed(error.to_string());
    let model = ModelRef::parse(&args.model).map_err(|error| failed(&error))?;
    let shape = InflateShape::named(&args.shape).ok_or_else(|| unknown_shape(&args.shape))?;
    let role = match args.role {
        Role::Target => ModelRole::Target,
        Role::Draft => ModelRole::Draft,
    };
    let options = InflateOptions { vocab_size: args.vocab, ..InflateOptions::default() };
    let source = model.locate(&HubCache::of_process()).map_err(|error| failed(&error))?;
    let clock = MonotonicClock::start();
    let report = inflate(&source, role, &args.out, &shape, &options).map_err(|error| failed(&error))?;
    let seconds = clock.now().as_secs_f64();
    if args.json {
        writeln!(out, "{:#}", serde_json::json!({ "report": report, "seconds": seconds }))?;
        return Ok(());
    }
    writeln!(
        out,
        "{}: {:.2} M parameters became {:.2} M, {:.2} GB in {} files, {seconds:.1} s",
        report.directory.display(),
        report.parameters_before as f64 * 1e-6,
        report.parameters_after as f64 * 1e-6,
        report.weight_bytes as f64 * 1e-9,
        report.shards,
    )?;
    Ok(())
}

fn unknown_shape(name: &str) -> CliError {
    let known: Vec<&str> = SHAPES.iter().map(|shape| shape.name).collect();
    CliError::Failed(format!("unknown shape {name:?}; known shapes are {}", known.join(", ")))
}
