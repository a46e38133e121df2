//! `specserve demo`: the embedded pair with and without speculation.
//!
//! Both sides run a complete daemon with its socket, one request at a time. Machines are
//! noisy, so the sides alternate over several rounds, the order flips every round, and the
//! report shows medians over rounds.

mod report;
mod round;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;

use super::error::CliError;
use super::host::DaemonHost;
use super::measured_profile::MeasuredProfile;
use super::private::PrivateDaemon;
use super::progress;
use crate::config::Config;
use crate::pacing::ServiceOrder;
use crate::policy::registry::PolicyName;
use report::{DemoReport, Setting};
use round::{Round, warm_up};

/// Time budget for profiling, if the policy needs a profile.
const PROFILE_BUDGET: Duration = Duration::from_secs(2);

/// Prompts of the kinds that the embedded pair was trained on.
pub const PROMPTS: [&str; 8] = [
    "Tell me a story about a brave mouse.",
    "What is a river?",
    "Write a Python function that checks if a number is prime.",
    "Give me three tips to cook.",
    "Why do people sing?",
    "Tell me a story about a boat in a storm.",
    "Write a Python function that adds up a list of numbers.",
    "Give me three tips to sleep well.",
];

/// Compares the embedded pair with and without speculation: speed, and that the outputs
/// are identical.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Policy of the speculative side, for example specserve.
    #[arg(long, value_name = "POLICY", default_value = "fixed:4")]
    policy: PolicyName,
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
    let mut plain = Vec::new();
    let mut speculative = Vec::new();
    for number in 0..args.rounds {
        for side in order(number) {
            let streamed = number == 0 && side == Side::Speculative && !args.json;
            let stream_to: &mut dyn Write = if streamed { &mut *out } else { &mut std::io::sink() };
            let round = session(args, host, (side, profile), stream_to, &progress).await?;
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
        write!(out, "{report}")?;
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

/// Runs one side: starts a daemon, warms it up with output to `stream_to`, runs every prompt.
async fn session<H: DaemonHost>(
    args: &DemoArgs,
    host: &H,
    (side, profile): (Side, Option<&Path>),
    stream_to: &mut dyn Write,
    progress: &ProgressBar,
) -> Result<Round, CliError> {
    let daemon = PrivateDaemon::start(host, config(args, side, profile)).await?;
    let client = daemon.client();
    let measured = async {
        let model = client.model().await?;
        warm_up(&client, &model, args.tokens, stream_to).await?;
        Round::measure(&client, &model, args.tokens, progress).await
    };
    let round = measured.await;
    daemon.shutdown().await;
    round
}

/// The embedded pair. One request at a time needs no order.
fn tiny() -> Config {
    let mut config = Config::default_tiny();
    config.scheduler.order = ServiceOrder::Fifo;
    config
}

fn config(args: &DemoArgs, side: Side, profile: Option<&Path>) -> Config {
    let mut config = tiny();
    config.speculation.policy = match side {
        Side::Plain => PolicyName::None,
        Side::Speculative => args.policy,
    };
    let longest = args.policy.draft_tokens().unwrap_or(0);
    config.speculation.draft_tokens_max = config.speculation.draft_tokens_max.max(longest);
    config.speculation.profile = profile.map(Path::to_owned);
    config
}
