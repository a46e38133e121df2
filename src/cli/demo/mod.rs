//! `specserve demo`: the embedded pair with and without speculation.
//!
//! First one answer, with the passes of the target marked, then figures.
//! Both sides run a complete daemon with its socket, one request at a time. Machines are
//! noisy, so the sides alternate over several rounds, the order flips every round, and the
//! report shows medians over rounds.

mod next_steps;
mod report;
mod round;
mod story;
#[cfg(test)]
mod tests;
mod verdict;

use std::io::{IsTerminal, Write, stdout};
use std::path::Path;
use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use serde_json::Value;

use super::answer::chat;
use super::client::Client;
use super::colour;
use super::error::CliError;
use super::host::DaemonHost;
use super::measured_profile::MeasuredProfile;
use super::private::PrivateDaemon;
use super::progress;
use crate::config::Config;
use crate::pacing::ServiceOrder;
use crate::policy::registry::PolicyName;
use crate::policy::specserve::Shape;
use next_steps::{NextSteps, program};
use report::{DemoReport, Setting};
use round::{Round, request};
use story::{Marks, StoryPrinter, introduce};

/// Time budget for profiling, if the policy needs a profile.
const PROFILE_BUDGET: Duration = Duration::from_secs(2);

/// Room of a batch: a prompt of the demo, or a token with the most drafts of any policy.
const BATCH_TOKENS: u32 = 64;
/// Prompts of the demo are shorter.
const PREFILL_CHUNK_TOKENS: u32 = 32;

/// Prompts of the kinds that the embedded pair was trained on, whose greedy answers end and do not
/// repeat themselves: tests/daemon checks that.
pub const PROMPTS: [&str; 8] = [
    "Tell me a story about a little dog.",
    "What is a river?",
    "Write a Python function that checks if a number is prime.",
    "Give me three tips to stay healthy.",
    "Why do people sleep?",
    "Tell me a story about a farmer.",
    "Write a Python function that counts vowels.",
    "Give me three tips to write well.",
];

/// Compares the embedded pair with and without speculation: speed, and that the outputs
/// are identical.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Policy of the speculative side, for example fixed:4.
    #[arg(long, value_name = "POLICY", default_value = "specserve")]
    policy: PolicyName,
    /// How the drafts of the policy specserve may stand to each other: chain, tree or auto.
    #[arg(long, value_name = "SHAPE", default_value = "chain")]
    shape: Shape,
    /// Most drafts per step.
    #[arg(long, value_name = "TOKENS", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=32))]
    draft_max: u32,
    /// Maximum output tokens per prompt.
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..=1024))]
    tokens: u32,
    /// Rounds per side; each round runs every prompt.
    #[arg(long, value_name = "ROUNDS", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// One of the two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Plain,
    Speculative,
}

/// Runs the command.
///
/// # Errors
/// [`CliError::TextsDiffer`] after the report if outputs differ; otherwise startup and request errors.
pub async fn run<H: DaemonHost>(args: &DemoArgs, host: &H, out: &mut impl Write) -> Result<(), CliError> {
    let policies = [args.policy];
    let profile = MeasuredProfile::prepare(host, &tiny(), &policies, PROFILE_BUDGET).await?;
    let profile = profile.as_ref().map(MeasuredProfile::path);
    let answers = u64::from(args.rounds) * 2 * PROMPTS.len() as u64;
    let progress = progress::bar(answers, "measuring {bar:40} {pos}/{len} requests");
    let marks = if colour::on(stdout().is_terminal()) { Marks::Colours } else { Marks::Bars };
    let mut plain = Vec::new();
    let mut speculative = Vec::new();
    for number in 0..args.rounds {
        for side in order(number) {
            let shown = number == 0 && side == Side::Speculative && !args.json;
            let story: Option<&mut dyn Write> = if shown { Some(&mut *out) } else { None };
            let round =
                session(args, host, (side, profile), story.map(|out| (out, marks)), &progress).await?;
            match side {
                Side::Plain => plain.push(round),
                Side::Speculative => speculative.push(round),
            }
        }
    }
    progress.finish_and_clear();
    let setting = Setting { policy: args.policy, tokens_max: args.tokens };
    let report = DemoReport::new(setting, &plain, &speculative);
    if args.json {
        writeln!(out, "{:#}", serde_json::json!(report))?;
    } else {
        write!(out, "{report}{}", NextSteps(&program()))?;
    }
    match report.different_prompts.len() {
        0 => Ok(()),
        prompts => Err(CliError::TextsDiffer(prompts)),
    }
}

/// The speculative side starts the first round; after that the order flips every round.
fn order(round: u32) -> [Side; 2] {
    if round.is_multiple_of(2) { [Side::Speculative, Side::Plain] } else { [Side::Plain, Side::Speculative] }
}

/// Runs one side: starts a daemon, warms it up with the first prompt, whose answer is printed if
/// there is a `story`, and runs every prompt.
async fn session<H: DaemonHost>(
    args: &DemoArgs,
    host: &H,
    (side, profile): (Side, Option<&Path>),
    story: Option<(&mut dyn Write, Marks)>,
    progress: &ProgressBar,
) -> Result<Round, CliError> {
    let daemon = PrivateDaemon::start(host, config(args, side, profile)).await?;
    let client = daemon.client();
    let measured = async {
        let model = client.model().await?;
        let first = request(&model, PROMPTS[0], args.tokens);
        match story {
            Some((out, marks)) => tell(&client, first, out, marks).await?,
            None => drop(chat(&client, first, |_| Ok(())).await?),
        }
        Round::measure(&client, &model, args.tokens, progress).await
    };
    let round = measured.await;
    daemon.shutdown().await;
    round
}

/// Prints one answer with its passes marked.
async fn tell(client: &Client, body: Value, out: &mut dyn Write, marks: Marks) -> Result<(), CliError> {
    introduce(out, PROMPTS[0], marks)?;
    let mut printer = StoryPrinter::new(out, marks);
    let answer = chat(client, body, |piece| printer.piece(piece)).await?;
    printer.end(&answer)?;
    Ok(())
}

/// The embedded pair for one request at a time: it needs no order, and as few batch shapes are
/// measured, each is measured often enough on a busy machine, too.
fn tiny() -> Config {
    let mut config = Config::default_tiny();
    config.scheduler.order = ServiceOrder::Fifo;
    config.scheduler.running_requests_max = 1;
    config.scheduler.prefill_chunk_tokens_max = PREFILL_CHUNK_TOKENS;
    config.executor.batch_sequences_max = 1;
    config.executor.batch_tokens_max = BATCH_TOKENS;
    config
}

fn config(args: &DemoArgs, side: Side, profile: Option<&Path>) -> Config {
    let mut config = tiny();
    config.speculation.policy = match side {
        Side::Plain => PolicyName::None,
        Side::Speculative => args.policy,
    };
    let longest = args.policy.draft_tokens().unwrap_or(0);
    config.speculation.draft_tokens_max = args.draft_max.max(longest);
    config.speculation.shape = match side {
        Side::Plain => Shape::Chain,
        Side::Speculative => args.shape,
    };
    config.speculation.profile = profile.map(Path::to_owned);
    config
}
