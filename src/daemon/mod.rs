//! The daemon: startup, serving and shutdown of one deployment.
//!
//! Binds the socket first (`startup`), then loads the models, builds the executor and the policy
//! with its step times, and starts the engine (`assembly`). Profiling and recording build the same
//! executor from the same config.
//!
//! May import: protocol, model, timing, replay, drafting, pacing, policy, executor, scheduler, telemetry,
//! analyzer, actors, grammar, api, config.
#![forbid(unsafe_code)]

mod assembly;
mod chat_features;
mod executor_plan;
mod host_memory;
#[cfg(test)]
mod model_tests;
mod models;
mod profiling;
mod recording;
mod served;
mod startup;
#[cfg(test)]
mod tests;
mod text;

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use profiling::{OnProgress, profile};
pub use recording::{OnSequence, record};
use startup::StartingDaemon;

use crate::actors::{Engine, HealthWatch};
use crate::analyzer::AnalyzerError;
use crate::api::{Server, ServerError, SocketError};
use crate::config::Config;
use crate::model::ModelError;
use crate::policy::registry::BuildError;
use crate::timing::ProfileError;

/// Time that responses get to reach their clients after the engine has shut down.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a daemon failed to start or serve, for the operator.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A model could not be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The executor or the actors could not be started.
    #[error("starting the engine failed: {0}")]
    Start(String),
    /// The profile cannot be read.
    #[error("cannot read the profile {}: {source}", path.display())]
    ProfileFile {
        /// Path of the profile.
        path: PathBuf,
        /// The underlying error.
        source: io::Error,
    },
    /// The profile is invalid, or stale for this machine and these models.
    #[error("{}: {source}", path.display())]
    Profile {
        /// Path of the profile.
        path: PathBuf,
        /// The underlying error.
        source: ProfileError,
    },
    /// Profiling failed.
    #[error(transparent)]
    Analyzer(#[from] AnalyzerError),
    /// The policy cannot be built.
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
    drain: DrainTimes,
}

/// How long the stages of a shutdown take.
#[derive(Clone, Copy, Debug)]
struct DrainTimes {
    /// How long requests are still served, so that load balancers see that it is not ready.
    delay: Duration,
    /// How long requests in flight may take after that.
    timeout: Duration,
}

impl Daemon {
    /// Binds the socket, loads the models and starts the engine; returns once it serves. Must
    /// be called within a multi-threaded tokio runtime.
    ///
    /// # Errors
    /// See [`DaemonError`].
    pub async fn start(config: Config) -> Result<Daemon, DaemonError> {
        let mut starting = StartingDaemon::begin(config, assembly::assemble).await?;
        let assembled = starting.assembled().await;
        starting.finish(assembled).await
    }

    /// Path of the Unix socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Shuts down gracefully. The daemon is not ready from the start, but serves requests for the
    /// drain delay; then it refuses new ones, drains those in flight within the drain timeout and
    /// fails the rest. Probes are answered until all responses have been sent; then it stops
    /// listening and removes the socket.
    pub async fn shutdown(self) {
        let (delay, condition) = (self.drain.delay, self.condition());
        self.engine.handle().health().leave();
        self.server.leave();
        if !delay.is_zero() {
            tracing::info!(seconds = delay.as_secs_f64(), "not ready; serving until load balancers notice");
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                _ = condition.failed() => {}
            }
        }
        self.finish().await;
    }

    /// The shutdown from the first request that is refused.
    async fn finish(self) {
        let Daemon { engine, mut server, drain, .. } = self;
        server.refuse_requests();
        if !engine.drain(drain.timeout).await {
            tracing::warn!("drain timeout exceeded; remaining requests were aborted");
        }
        let answered = server.answered(FLUSH_TIMEOUT).await;
        server.drain();
        if !answered || !server.drained(FLUSH_TIMEOUT).await {
            tracing::warn!("some clients did not read their responses in time");
        }
        server.close().await;
        if !engine.stop().await {
            tracing::warn!("a thread of the engine had panicked");
        }
        tracing::info!("shutdown complete");
    }

    fn condition(&self) -> HealthWatch {
        self.engine.handle().health().clone()
    }
}

/// Serves until `shutdown` resolves, then shuts down gracefully. If startup has not finished
/// by then, it is aborted.
///
/// # Errors
/// As [`Daemon::start`]; and [`DaemonError::Failed`] if the engine fails, after every request
/// has received a terminal error. The process should then exit: device errors are sticky.
pub async fn run(config: Config, shutdown: impl Future<Output = ()> + Send) -> Result<(), DaemonError> {
    serve(StartingDaemon::begin(config, assembly::assemble).await?, shutdown).await
}

async fn serve(
    mut starting: StartingDaemon,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), DaemonError> {
    let mut shutdown = std::pin::pin!(shutdown);
    let assembled = tokio::select! {
        assembled = starting.assembled() => assembled,
        () = shutdown.as_mut() => {
            starting.close().await;
            tracing::info!("startup aborted by signal");
            return Ok(());
        }
    };
    let daemon = starting.finish(assembled).await?;
    let condition = daemon.condition();
    tokio::select! {
        () = shutdown => {
            daemon.shutdown().await;
            Ok(())
        }
        reason = condition.failed() => {
            daemon.finish().await;
            Err(DaemonError::Failed(reason))
        }
    }
}
