//! `specserve serve`: runs the daemon.

use std::future::Future;
use std::io;
use std::path::PathBuf;

use clap::Args;

use super::error::CliError;
use super::host::DaemonHost;
use super::logging;
use super::signals::Signals;
use crate::config::{Config, LogFormat};

/// Serves until SIGTERM or SIGINT. The first signal drains requests in flight for up to
/// server.drain_timeout_ms; a second one exits immediately.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// [`CliError::Config`] for the configuration, [`CliError::Daemon`] for everything after it.
pub async fn run<H: DaemonHost>(args: &ServeArgs, host: &H) -> Result<(), CliError> {
    let config = Config::read(&args.config)?;
    logging::start(&config.telemetry);
    config.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    let format = config.telemetry.log_format;
    let shutdown = shutdown_signal()?;
    host.run(config, shutdown).await.map_err(|error| {
        if format == LogFormat::Json {
            // log collectors do not see the plain-text message printed on exit
            tracing::error!(%error, "the daemon failed");
        }
        CliError::Daemon(error)
    })
}

/// Resolves at the first signal and exits the process at the second.
///
/// Handlers are installed when this returns, before the daemon loads anything.
fn shutdown_signal() -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut signals = Signals::install()?;
    Ok(async move {
        let first = signals.next().await;
        tracing::info!(signal = first.name, "shutting down; send the signal again to exit immediately");
        tokio::spawn(async move {
            let second = signals.next().await;
            tracing::warn!(signal = second.name, "exiting immediately");
            #[expect(clippy::exit, reason = "a second signal skips every destructor on purpose")]
            std::process::exit(i32::from(second.exit_code));
        });
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};

    use super::*;
    use crate::analyzer::RecordOptions;
    use crate::cli::host::{HostError, OnProgress, OnSequence};
    use crate::cli::testing::ScriptedDaemon;
    use crate::timing::profile::Profile;

    /// Set in the process that a test starts to be signalled: how many signals.
    const SIGNALS: &str = "SPECSERVE_TEST_SIGNALS";

    /// Gets its signals at the worst moments: while it serves, and while it drains.
    struct Signalled {
        signals: u32,
    }

    impl DaemonHost for Signalled {
        type Daemon = ScriptedDaemon;

        async fn start(&self, _config: Config) -> Result<ScriptedDaemon, HostError> {
            Err("only runs".into())
        }

        async fn run(
            &self,
            _config: Config,
            shutdown: impl Future<Output = ()> + Send + 'static,
        ) -> Result<(), HostError> {
            kill_process(getpid(), Signal::TERM)?;
            shutdown.await;
            if self.signals == 1 {
                return Ok(());
            }
            kill_process(getpid(), Signal::TERM)?;
            std::future::pending().await
        }

        async fn profile(
            &self,
            _config: Config,
            _budget: Duration,
            _on_progress: OnProgress,
        ) -> Result<Profile, HostError> {
            Err("only runs".into())
        }

        async fn record(
            &self,
            _config: Config,
            _options: RecordOptions,
            _on_sequence: OnSequence,
        ) -> Result<(), HostError> {
            Err("only runs".into())
        }
    }

    fn serve_signalled(signals: u32) {
        let config = concat!(env!("CARGO_MANIFEST_DIR"), "/config/tiny-cpu.toml").into();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        runtime.block_on(run(&ServeArgs { config }, &Signalled { signals })).expect("drained");
    }

    /// Runs this test in a process of its own.
    fn exit_code(signals: &str) -> Option<i32> {
        let name = "cli::serve::tests::the_first_signal_drains_and_the_second_ends_the_process";
        let program = std::env::current_exe().expect("a running program has a path");
        let mut child = Command::new(program);
        child.args(["--exact", name]).env(SIGNALS, signals).stdout(Stdio::null()).stderr(Stdio::null());
        child.status().expect("it starts again").code()
    }

    #[test]
    fn the_first_signal_drains_and_the_second_ends_the_process() {
        if let Ok(signals) = std::env::var(SIGNALS) {
            return serve_signalled(signals.parse().expect("a number"));
        }
        assert_eq!(exit_code("1"), Some(0));
        assert_eq!(exit_code("2"), Some(143));
    }
}
