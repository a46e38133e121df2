//! `specserve serve`: runs the daemon.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::Args;

use super::SOCKET_DEFAULT;
use super::error::CliError;
use super::host::DaemonHost;
use super::logging;
use super::signals::Signals;
use crate::config::{Config, ConfigError, LogFormat};

/// Serves until SIGTERM or SIGINT. The first signal drains requests in flight for up to
/// server.drain_timeout_ms; a second one exits immediately.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// A model to serve with default settings instead of a configuration file: a directory, a
    /// name on the Hugging Face hub (org/name), or embedded:tiny.
    #[arg(value_name = "MODEL", required_unless_present = "config", conflicts_with = "config")]
    model: Option<String>,
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Draft model for MODEL: a directory, org/name, or ngram. Without it there is no speculation.
    #[arg(long, value_name = "MODEL", requires = "model")]
    draft: Option<String>,
    /// Also serve MODEL on this port of 127.0.0.1, without authentication.
    #[arg(long, value_name = "PORT", requires = "model")]
    port: Option<u16>,
    /// Socket to serve MODEL on, /tmp/specserve.sock by default.
    #[arg(long, value_name = "PATH", requires = "model")]
    socket: Option<PathBuf>,
}

impl ServeArgs {
    fn config(&self) -> Result<Config, ConfigError> {
        match (&self.model, &self.config) {
            (None, Some(file)) => Config::read(file),
            (model, _) => {
                let socket = self.socket.as_deref().unwrap_or(Path::new(SOCKET_DEFAULT));
                let http = self.port.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
                Config::of_models(socket, http, model.as_deref().unwrap_or_default(), self.draft.as_deref())
            }
        }
    }
}

/// Runs the command.
///
/// # Errors
/// [`CliError::Config`] for the configuration, [`CliError::Daemon`] for everything after it.
pub async fn run<H: DaemonHost>(args: &ServeArgs, host: &H) -> Result<(), CliError> {
    let config = args.config()?;
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
        let config = Some(concat!(env!("CARGO_MANIFEST_DIR"), "/config/tiny-cpu.toml").into());
        let args = ServeArgs { model: None, config, draft: None, port: None, socket: None };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        runtime.block_on(run(&args, &Signalled { signals })).expect("drained");
    }

    #[test]
    fn a_model_is_served_without_a_configuration_file() {
        let args = ServeArgs {
            model: Some("models/m".to_owned()),
            config: None,
            draft: Some("ngram".to_owned()),
            port: Some(8123),
            socket: Some("/tmp/m.sock".into()),
        };
        let written = "[server]\nsocket = \"/tmp/m.sock\"\nhttp = \"127.0.0.1:8123\"\n\
                       [target]\nmodel = \"models/m\"\n[draft]\nmodel = \"ngram\"\n";
        assert_eq!(args.config().expect("valid"), Config::parse(written).expect("valid"));
        let alone = ServeArgs { draft: None, port: None, socket: None, ..args };
        let written = format!("[server]\nsocket = \"{SOCKET_DEFAULT}\"\n[target]\nmodel = \"models/m\"\n");
        assert_eq!(alone.config().expect("valid"), Config::parse(&written).expect("valid"));
        let nothing = ServeArgs { model: Some(String::new()), ..alone };
        assert!(nothing.config().is_err(), "the empty name is none");
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
