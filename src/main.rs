//! The `specserve` program: a command line over the library.

use std::future::Future;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use specserve::analyzer::RecordOptions;
use specserve::cli::{self, DaemonHost, HostError, OnProgress, OnSequence, RunningDaemon};
use specserve::config::Config;
use specserve::daemon::{self, Daemon};
use specserve::timing::profile::Profile;

/// Steps are allocated on the engine thread and freed on the device thread, which the system
/// allocator handles slowly (docs/benchmarks.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs daemons in this process.
struct Host;

impl DaemonHost for Host {
    type Daemon = Local;

    async fn start(&self, config: Config) -> Result<Local, HostError> {
        Ok(Local(Daemon::start(config).await?))
    }

    async fn run(
        &self,
        config: Config,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), HostError> {
        Ok(daemon::run(config, shutdown).await?)
    }

    async fn profile(
        &self,
        config: Config,
        budget: Duration,
        mut on_progress: OnProgress,
    ) -> Result<Profile, HostError> {
        let measured =
            tokio::task::spawn_blocking(move || daemon::profile(&config, budget, on_progress.as_mut()));
        Ok(measured.await??)
    }

    async fn record(
        &self,
        config: Config,
        options: RecordOptions,
        mut on_sequence: OnSequence,
    ) -> Result<(), HostError> {
        let recorded =
            tokio::task::spawn_blocking(move || daemon::record(&config, &options, on_sequence.as_mut()));
        Ok(recorded.await??)
    }
}

/// A daemon running beside a command.
struct Local(Daemon);

impl RunningDaemon for Local {
    fn socket(&self) -> &Path {
        self.0.socket()
    }

    async fn shutdown(self) {
        self.0.shutdown().await;
    }
}

fn main() -> ExitCode {
    cli::main(&Host)
}
