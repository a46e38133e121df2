//! The `specserve` program: a command line over the library.

use std::future::Future;
use std::path::Path;
use std::process::ExitCode;

use specserve::cli::{self, DaemonHost, HostError, RunningDaemon};
use specserve::config::Config;

/// Stands where the daemon will: every command that needs one says that it is not here.
struct NoDaemon;

const NO_DAEMON: &str = "this build has no engine";

impl DaemonHost for NoDaemon {
    type Daemon = NoDaemon;

    async fn start(&self, _config: Config) -> Result<NoDaemon, HostError> {
        Err(NO_DAEMON.into())
    }

    async fn run(
        &self,
        _config: Config,
        _shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), HostError> {
        Err(NO_DAEMON.into())
    }
}

impl RunningDaemon for NoDaemon {
    fn socket(&self) -> &Path {
        Path::new("")
    }

    async fn shutdown(self) {}
}

fn main() -> ExitCode {
    cli::main(&NoDaemon)
}
