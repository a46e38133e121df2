//! `specserve submit`: runs a batch of requests.

mod lines;
mod outcome;
mod request;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, IsTerminal, Write, stdin};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use futures::{Stream, StreamExt};
use indicatif::ProgressBar;
use serde_json::json;

use super::client::{Answered, Client};
use super::error::CliError;
use super::{notice, progress};
use crate::protocol::{Clock, MonotonicClock, unix_time};
use lines::{Item, Lines};
use outcome::{Failure, Outcome};
use request::Request;

/// Standard input as the name of the input file.
const STANDARD_INPUT: &str = "-";
/// Retries of a request when the queue is full.
const RETRIES_MAX: u32 = 20;
/// Upper bound of the delay before a retry.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(10);

/// Sends each line of a file as a request. Results keep the file's order. A failed request
/// does not stop the others; the exit code is then 1.
#[derive(Args, Debug)]
pub struct SubmitArgs {
    /// Input file, or - for standard input: one JSON object per line, either with `messages`
    /// (chat) or `prompt` (completion) and any other field of the API, or a line of an OpenAI
    /// batch: `custom_id`, `method`, `url` and `body`.
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
    let (input, progress) = open(&args.file)?;
    let client = Client::new(&args.socket);
    let model = client.model().await?;
    let batch = Batch { client, model, concurrency: usize::from(args.concurrency), progress };
    let items = read_ahead(input);
    let totals = match &args.out {
        None => batch.run(items, out).await?,
        Some(path) => {
            let failed = |source| CliError::File { path: path.clone(), source };
            let mut out = BufWriter::new(File::create(path).map_err(failed)?);
            let totals = batch.run(items, &mut out).await?;
            out.flush().map_err(failed)?;
            totals
        }
    };
    batch.progress.finish_and_clear();
    totals.report()
}

type Input = Box<dyn BufRead + Send>;

/// Opens the input, with a progress bar over its bytes, or one that counts requests if its
/// length is unknown.
fn open(path: &Path) -> Result<(Input, ProgressBar), CliError> {
    let counting = || progress::spinner("{spinner} {pos} requests, {elapsed} elapsed");
    if path == Path::new(STANDARD_INPUT) {
        let typed = stdin().is_terminal();
        if typed {
            notice::say("Reading requests, one JSON object per line; Ctrl-D ends.");
        }
        let progress = if typed { ProgressBar::hidden() } else { counting() };
        return Ok((Box::new(BufReader::new(stdin())), progress));
    }
    let failed = |source| CliError::File { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    let progress = if about.is_file() {
        progress::bar(about.len(), "{bar:40} {percent:>3} % of the file, {elapsed} elapsed, {eta} left")
    } else {
        counting()
    };
    Ok((Box::new(BufReader::new(file)), progress))
}

/// Reads on its own thread, so that a slow pipe does not delay requests that were read already.
fn read_ahead(input: Input) -> impl Stream<Item = Item> {
    let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
    tokio::task::spawn_blocking(move || {
        for item in Lines::new(input) {
            if sender.blocking_send(item).is_err() {
                return;
            }
        }
    });
    futures::stream::poll_fn(move |context| receiver.poll_recv(context))
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
    /// Why the first request failed that did.
    first_failure: String,
    completion_tokens: u64,
}

impl Batch {
    /// Sends the lines, `concurrency` at a time, and writes the results in input order.
    async fn run(&self, items: impl Stream<Item = Item>, out: &mut impl Write) -> Result<Totals, CliError> {
        let run = format!("{:x}", unix_time().as_micros());
        let mut totals = Totals::start();
        let answers = items.map(|item| async move {
            let result = self.answer(item.request).await;
            (item.end_byte, Outcome { line: item.line, form: item.form, result })
        });
        let mut answers = std::pin::pin!(answers.buffered(self.concurrency));
        while let Some((end_byte, outcome)) = answers.next().await {
            totals.count(&outcome);
            // the bar and the results may share a terminal
            self.progress.suspend(|| writeln!(out, "{}", outcome.to_json(&run)))?;
            match self.progress.length() {
                Some(_) => self.progress.set_position(end_byte),
                None => self.progress.inc(1),
            }
        }
        Ok(totals)
    }

    /// Sends a request. Retries a full queue.
    async fn answer(&self, request: Result<Request, String>) -> Result<Answered, Failure> {
        let Request { path, mut body } = request.map_err(Failure::Line)?;
        if body.get("model").is_none() {
            body["model"] = json!(self.model);
        }
        for _ in 0..RETRIES_MAX {
            match self.client.post_with_id(path, &body).await {
                Err(error) => match error.retry_after() {
                    Some(wait) => tokio::time::sleep(wait.min(RETRY_WAIT_MAX)).await,
                    None => return Err(Failure::Client(error)),
                },
                Ok(answer) => return Ok(answer),
            }
        }
        self.client.post_with_id(path, &body).await.map_err(Failure::Client)
    }
}

impl Totals {
    fn start() -> Totals {
        Totals {
            clock: MonotonicClock::start(),
            requests: 0,
            failed: 0,
            first_failure: String::new(),
            completion_tokens: 0,
        }
    }

    fn count(&mut self, outcome: &Outcome) {
        self.requests += 1;
        self.completion_tokens += outcome.completion_tokens();
        if let Some(failure) = outcome.failure() {
            if self.failed == 0 {
                self.first_failure = failure;
            }
            self.failed += 1;
        }
    }

    fn report(self) -> Result<(), CliError> {
        let seconds = self.clock.now().as_secs_f64();
        let (requests, failed, tokens) = (self.requests, self.failed, self.completion_tokens);
        let speed = tokens as f64 / seconds.max(1e-9);
        notice::say(format_args!(
            "{requests} requests, {failed} failed, {tokens} tokens in {seconds:.1} s, {speed:.1} tokens/s"
        ));
        match self.failed {
            0 => Ok(()),
            failed => {
                Err(CliError::RequestsFailed { failed, requests: self.requests, first: self.first_failure })
            }
        }
    }
}
