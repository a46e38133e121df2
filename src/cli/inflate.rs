//! `specserve inflate`: gives a small model the cost of a large one.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, ValueEnum};

use super::error::CliError;
use super::progress;
use super::signals::Signals;
use crate::model::inflate::{InflateOptions, InflateReport, InflateRole, InflateShape, SHAPES, inflate};
use crate::model::{HubCache, ModelRef, ModelSource};
use crate::protocol::{Clock, MonotonicClock};

/// Writes a model with the dimensions of a large one that computes exactly the same function
/// as the small one: real text and acceptance at large-model cost, without a download. Draft
/// heads grow in the same way, for a target that was inflated to the same shape.
#[derive(Args, Debug)]
pub struct InflateArgs {
    /// "embedded:tiny", a Hugging Face directory, or a name on the hub (org/name).
    model: String,
    /// Output directory; must not exist, or be empty. It appears when it is complete.
    out: PathBuf,
    /// Dimensions to grow to; those of its target for a draft head.
    #[arg(long)]
    shape: String,
    /// What MODEL is: a model (of the embedded pair, this one), or a draft head of this kind.
    #[arg(long, value_enum, default_value_t = Role::Target)]
    role: Role,
    /// Vocabulary size, where a pair must agree on it; by default that of the shape.
    #[arg(long, value_name = "TOKENS")]
    vocab: Option<usize>,
    /// Draft vocabulary of a head that has its own; 32,000 by default.
    #[arg(long, value_name = "TOKENS")]
    draft_vocab: Option<usize>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// Role of a model or a draft head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Role {
    /// The target model.
    Target,
    /// The draft model.
    Draft,
    /// An EAGLE-3 head.
    Eagle3,
    /// A DSpark head.
    Dspark,
}

/// Runs the command.
///
/// # Errors
/// [`CliError::Failed`]: an unknown shape, a model that does not fit it, an existing directory.
/// [`CliError::Interrupted`], once what was written is removed.
pub async fn run(args: &InflateArgs, out: &mut impl Write) -> Result<(), CliError> {
    let model = ModelRef::parse(&args.model).map_err(|error| CliError::Failed(error.to_string()))?;
    let shape = InflateShape::named(&args.shape).ok_or_else(|| unknown_shape(&args.shape))?;
    let source =
        model.locate(&HubCache::of_process()).map_err(|error| CliError::Failed(error.to_string()))?;
    let clock = MonotonicClock::start();
    let report = inflate_interruptibly(args, source, shape).await?;
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

async fn inflate_interruptibly(
    args: &InflateArgs,
    source: ModelSource,
    shape: InflateShape,
) -> Result<InflateReport, CliError> {
    let mut signals = Signals::install()?;
    let role = match args.role {
        Role::Target => InflateRole::Target,
        Role::Draft => InflateRole::Draft,
        Role::Eagle3 => InflateRole::Eagle3,
        Role::Dspark => InflateRole::DSpark,
    };
    let options = InflateOptions {
        vocab_size: args.vocab,
        draft_vocab_size: args.draft_vocab,
        ..InflateOptions::default()
    };
    let directory = args.out.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let bar = progress::bar(0, "writing {bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left");
    let shown = bar.clone();
    let mut work = tokio::task::spawn_blocking(move || {
        inflate(&source, role, &directory, &shape, &options, &|progress| {
            shown.set_length(progress.bytes_total);
            shown.set_position(progress.bytes);
            if stopped.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    });
    let ended = tokio::select! {
        ended = &mut work => Ok(ended),
        signal = signals.next() => Err(signal),
    };
    let result = match ended {
        Ok(Ok(report)) => report.map_err(|error| CliError::Failed(error.to_string())),
        Ok(Err(panic)) => Err(CliError::Failed(panic.to_string())),
        Err(signal) => {
            stop.store(true, Ordering::Relaxed);
            // until the files are removed; a second signal does not wait for that
            tokio::select! {
                _ = &mut work => {}
                _ = signals.next() => {}
            }
            Err(CliError::Interrupted(signal))
        }
    };
    bar.finish_and_clear();
    result
}

fn unknown_shape(name: &str) -> CliError {
    let known: Vec<&str> = SHAPES.iter().map(|shape| shape.name).collect();
    CliError::Failed(format!("unknown shape {name:?}; known shapes are {}", known.join(", ")))
}
