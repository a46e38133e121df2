//! `specserve serve`: the daemon.

use std::future::Future;
use std::io;
use std::path::PathBuf;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::error::CliError;
use super::host::DaemonHost;
use super::logging;
use crate::config::Config;

/// Exit code after a second SIGINT: 128 and the signal's number, as shells count.
const EXIT_INTERRUPTED: i32 = 130;
/// Exit code after a second SIGTERM.
const EXIT_TERMINATED: i32 = 143;

/// Serves until SIGTERM or SIGINT. The first signal lets requests in flight finish
/// within server.drain_timeout_ms; a second one ends the process at once.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// [`CliError::Config`] and [`CliError::Daemon`].
pub async fn run<H: DaemonHost>(args: &ServeArgs, host: &H) -> Result<(), CliError> {
    let config = Config::read(&args.config)?;
    logging::start(&config.telemetry);
    let shutdown = shutdown_signal()?;
    host.run(config, shutdown).await.map_err(CliError::Daemon)
}

/// Resolves at the first signal, and ends the process at the second.
///
/// Handlers are in place when this returns, before the daemon loads anything.
fn shutdown_signal() -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut signals =
        Signals { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? };
    Ok(async move {
        let first = signals.next().await;
        tracing::info!(signal = first.name, "shutting down; a second signal ends the process at once");
        tokio::spawn(async move {
            let second = signals.next().await;
            tracing::warn!(signal = second.name, "ending at once");
            std::process::exit(second.exit_code);
        });
    })
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

struct Received {
    name: &'static str,
    exit_code: i32,
}

impl Signals {
    async fn next(&mut self) -> Received {
        tokio::select! {
            _ = self.interrupt.recv() => Received { name: "SIGINT", exit_code: EXIT_INTERRUPTED },
            _ = self.terminate.recv() => Received { name: "SIGTERM", exit_code: EXIT_TERMINATED },
        }
    }
}
