//! The command-line interface. docs/cli.md describes every command.
//!
//! Commands that need a daemon start it through a `DaemonHost`, which `main` provides and tests
//! replace.
//!
//! May import: protocol, stats, model, timing, pacing, replay, policy, scheduler, telemetry, analyzer,
//! simulate, api, config, doctor, hub, charts.
#![forbid(unsafe_code)]

mod answer;
mod chat;
mod check_config;
pub mod client;
mod colour;
mod completions;
mod demo;
mod doctor;
mod error;
mod host;
mod inflate;
mod logging;
mod man;
mod measured_profile;
mod notice;
mod parse;
mod private;
mod profile;
mod progress;
mod pull;
mod record;
mod replay;
mod serve;
mod signals;
mod simulate;
mod submit;
mod table;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod top;
mod whole_file;

use std::io::{Write, stderr, stdout};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

pub use error::{CliError, EXIT_CONFIG, EXIT_FAILED, EXIT_OK};
pub use host::{DaemonHost, HostError, OnProgress, OnSequence, RunningDaemon};

/// Default socket of a daemon.
const SOCKET_DEFAULT: &str = "/tmp/specserve.sock";

/// Serves a large language model with speculative decoding.
#[derive(Parser, Debug)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Serve(serve::ServeArgs),
    Demo(demo::DemoArgs),
    Chat(chat::ChatArgs),
    Submit(submit::SubmitArgs),
    Top(top::TopArgs),
    Pull(pull::PullArgs),
    CheckConfig(check_config::CheckConfigArgs),
    Inflate(inflate::InflateArgs),
    Doctor(doctor::DoctorArgs),
    Simulate(Box<simulate::SimulateArgs>),
    Profile(profile::ProfileArgs),
    Replay(replay::ReplayArgs),
    Record(record::RecordArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
}

/// Parses the arguments, runs the command and reports failures on stderr.
pub fn main<H: DaemonHost>(host: &H) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // If the message itself cannot be printed, there is no way to report that.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(EXIT_FAILED));
        }
    };
    match run(cli.command, host) {
        Ok(()) => ExitCode::from(EXIT_OK),
        Err(error) => {
            if !error.is_silent() {
                let _ = writeln!(stderr(), "specserve: {error}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn run<H: DaemonHost>(command: Command, host: &H) -> Result<(), CliError> {
    let mut out = stdout();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::Failed(format!("cannot start the async runtime: {error}")))?;
    let result = runtime.block_on(async {
        match &command {
            Command::Serve(args) => serve::run(args, host).await,
            Command::Demo(args) => interruptible(demo::run(args, host, &mut out)).await,
            Command::Chat(args) => chat::run(args, host, &mut out).await,
            Command::Submit(args) => interruptible(submit::run(args, &mut out)).await,
            Command::Top(args) => interruptible(top::run(args, &mut out)).await,
            Command::Pull(args) => interruptible(pull::run(args, &mut out)).await,
            Command::CheckConfig(args) => check_config::run(args, &mut out),
            Command::Inflate(args) => inflate::run(args, &mut out).await,
            Command::Doctor(args) => doctor::run(args, &mut out),
            Command::Simulate(args) => simulate::run(args, &mut out),
            Command::Profile(args) => interruptible(profile::run(args, host, &mut out)).await,
            Command::Replay(args) => interruptible(replay::run(args, host, &mut out)).await,
            Command::Record(args) => interruptible(record::run(args, host, &mut out)).await,
            Command::Completions(args) => completions::run(args, Cli::command(), &mut out),
            Command::Man(args) => man::run(args, Cli::command(), &mut out),
        }
    });
    // A blocked read from a terminal cannot be cancelled, so do not wait for it.
    runtime.shutdown_background();
    result
}

/// Runs a command until it finishes or a signal arrives. Dropping the command on a signal
/// cleans up what the default action would leave behind, such as private directories.
async fn interruptible<T>(command: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let mut signals = signals::Signals::install()?;
    tokio::select! {
        result = command => result,
        signal = signals.next() => Err(CliError::Interrupted(signal)),
    }
}
