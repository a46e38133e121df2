//! The daemon: one deployment, from its config to its socket and back down.
#![forbid(unsafe_code)]

mod assembly;
mod executor_plan;
mod opening;
mod profiling;
mod recording;
mod served;
#[cfg(test)]
mod tests;
mod text;

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use opening::Opening;
pub use profiling::{OnProgress, profile};
pub use recording::{OnSequence, record};

use crate::actors::{Engine, HealthWatch};
use crate::analyzer::AnalyzerError;
use crate::api::{Server, ServerError, SocketError};
use crate::config::Config;
use crate::model::ModelError;
use crate::policy::registry::BuildError;
use crate::timing::ProfileError;

/// How long answers may take to reach their clients once the engine has ended.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a daemon does not serve, for the operator.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A model could not be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The executor or the actors could not be started.
    #[error("the engine could not be started: {0}")]
    Start(String),
    /// The profile can't be read.
    #[error("can't read the profile {}: {source}", path.display())]
    ProfileFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The profile can't be used here.
    #[error("{}: {source}", path.display())]
    Profile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ProfileError,
    },
    /// Measuring failed.
    #[error(transparent)]
    Analyzer(#[from] AnalyzerError),
    /// The policy can't be built.
    #[error(transparent)]
    Policy(#[from] BuildError),
    /// The Unix socket could not be bound.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The server could not be started.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The engine failed while it served.
    #[error("the engine failed: {0}")]
    Failed(String),
}

/// A serving daemon.
#[derive(Debug)]
pub struct Daemon {
    engine: Engine,
    server: Server,
    socket: PathBuf,
    drain_timeout: Duration,
}

impl Daemon {
    /// Opens the door, loads the models and starts the engine; returns once it serves. Must be
    /// called within a multi-threaded tokio runtime.
    ///
    /// # Errors
    /// See [`DaemonError`].
    pub async fn start(config: Config) -> Result<Daemon, DaemonError> {
        let mut opening = Opening::begin(config, assembly::assemble).await?;
        let assembled = opening.assembled().await;
        opening.finish(assembled).await
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Stops accepting, finishes what runs within the drain time, fails the rest, and removes
    /// the socket.
    pub async fn shutdown(self) {
        let Daemon { engine, mut server, drain_timeout, .. } = self;
        engine.handle().health().drain();
        server.drain();
        if !engine.shutdown(drain_timeout).await {
            tracing::warn!("some requests were not finished within the drain time");
        }
        if !server.drained(FLUSH_TIMEOUT).await {
            tracing::warn!("some answers were not read in time");
        }
        server.close().await;
        tracing::info!("ended");
    }

    fn condition(&self) -> HealthWatch {
        self.engine.handle().health().clone()
    }
}

/// Serves until `shutdown` resolves, then shuts down in stages. A daemon that is still starting
/// by then gives up its start.
///
/// # Errors
/// As [`Daemon::start`]; and [`DaemonError::Failed`] as soon as the engine can't go on, after
/// every request has had its terminal error: the process should exit, a device error is sticky.
pub async fn run(config: Config, shutdown: impl Future<Output = ()> + Send) -> Result<(), DaemonError> {
    serve(Opening::begin(config, assembly::assemble).await?, shutdown).await
}

async fn serve(mut opening: Opening, shutdown: impl Future<Output = ()> + Send) -> Result<(), DaemonError> {
    let mut shutdown = std::pin::pin!(shutdown);
    let assembled = tokio::select! {
        assembled = opening.assembled() => assembled,
        () = shutdown.as_mut() => {
            opening.close().await;
            tracing::info!("ended before the engine ran");
            return Ok(());
        }
    };
    let daemon = opening.finish(assembled).await?;
    let condition = daemon.condition();
    tokio::select! {
        () = shutdown => {
            daemon.shutdown().await;
            Ok(())
        }
        reason = condition.failed() => {
            daemon.shutdown().await;
            Err(DaemonError::Failed(reason))
        }
    }
}
