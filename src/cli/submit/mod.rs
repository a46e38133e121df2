//! `specserve submit`: runs a batch file of requests.

mod batch;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::PathBuf;

use clap::Args;
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::client::Client;
use super::error::CliError;
use crate::protocol::{Clock, MonotonicClock};
use batch::{Item, Lines, answer};

/// Sends each line of a file as a request. Results keep the file's order. A failed request
/// does not stop the others; the exit code is then 1.
#[derive(Args, Debug)]
pub struct SubmitArgs {
    /// Input file: one JSON object per line with `messages` (chat) or `prompt` (completion) and
    /// any other field of the API.
    #[arg(value_name = "FILE.jsonl")]
    file: PathBuf,
    /// Output file, one JSON object per line; standard output if omitted.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Most concurrent requests.
    #[arg(long, value_name = "REQUESTS", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: u16,
    /// Socket of the daemon.
    #[arg(long, value_name = "PATH", default_value = super::SOCKET_DEFAULT)]
    socket: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]; [`CliError::RequestsFailed`] if all results are written and some are errors.
pub async fn run(args: &SubmitArgs, out: &mut impl Write) -> Result<(), CliError> {
    let failed = |source| CliError::File { path: args.file.clone(), source };
    let file = File::open(&args.file).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    let client = Client::new(&args.socket);
    let model = client.model().await?;
    let batch =
        Batch { client, model, concurrency: usize::from(args.concurrency), progress: progress_bar(bytes) };
    let lines = Lines::new(BufReader::new(file));
    let totals = match &args.out {
        None => batch.run(lines, out).await?,
        Some(path) => {
            let failed = |source| CliError::File { path: path.clone(), source };
            let mut out = BufWriter::new(File::create(path).map_err(failed)?);
            let totals = batch.run(lines, &mut out).await?;
            out.flush().map_err(failed)?;
            totals
        }
    };
    batch.progress.finish_and_clear();
    totals.report()
}

struct Batch {
    client: Client,
    model: String,
    concurrency: usize,
    progress: ProgressBar,
}

/// Totals of a batch.
struct Totals {
    /// Reads the time since the start.
    clock: MonotonicClock,
    requests: u64,
    failed: u64,
    completion_tokens: u64,
}

impl Batch {
    /// Sends the lines, `concurrency` at a time, and writes the results in input order.
    async fn run(&self, lines: impl Iterator<Item = Item>, out: &mut impl Write) -> Result<Totals, CliError> {
        let mut totals =
            Totals { clock: MonotonicClock::start(), requests: 0, failed: 0, completion_tokens: 0 };
        let answers = lines.map(|item| async move {
            let result = answer(&self.client, &self.model, item.request).await;
            (item.line, item.end_byte, result)
        });
        let mut answers = futures::stream::iter(answers).buffered(self.concurrency);
        while let Some((line, end_byte, result)) = answers.next().await {
            totals.count(&result);
            let result = match result {
                Ok(response) => json!({ "line": line, "response": response }),
                Err(error) => json!({ "line": line, "error": error }),
            };
            writeln!(out, "{result}")?;
            self.progress.set_position(end_byte);
        }
        Ok(totals)
    }
}

impl Totals {
    fn count(&mut self, result: &Result<Value, Value>) {
        self.requests += 1;
        match result {
            Err(_) => self.failed += 1,
            Ok(response) => {
                let tokens = response.pointer("/usage/completion_tokens").and_then(Value::as_u64);
                self.completion_tokens += tokens.unwrap_or(0);
            }
        }
    }

    fn report(&self) -> Result<(), CliError> {
        let seconds = self.clock.now().as_secs_f64();
        eprintln!(
            "{} requests, {} failed, {} tokens in {seconds:.1} s, {:.1} tokens/s",
            self.requests,
            self.failed,
            self.completion_tokens,
            self.completion_tokens as f64 / seconds.max(1e-9),
        );
        match self.failed {
            0 => Ok(()),
            failed => Err(CliError::RequestsFailed { failed, requests: self.requests }),
        }
    }
}

fn progress_bar(bytes: u64) -> ProgressBar {
    let template = "{bar:40} {percent:>3} % of the file, {elapsed} elapsed, {eta} left";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(bytes).with_style(style)
}
