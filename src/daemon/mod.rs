//! The daemon: one deployment, from its config to its socket and back down.

mod assembly;
mod executor_plan;
mod profiling;
mod recording;
mod served;
mod text;

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use profiling::{OnProgress, profile};
pub use recording::{OnSequence, record};

use crate::actors::{ConditionBoard, Engine};
use crate::analyzer::AnalyzerError;
use crate::api::{
    ApiCounters, ApiLimits, BoundSocket, Server, ServerError, SocketError, SocketOptions, router,
};
use crate::config::Config;
use crate::model::ModelError;
use crate::policy::profile::ProfileError;
use crate::policy::registry::BuildError;

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
    /// Loads the models, starts the engine, then opens the door. Must be called within a
    /// multi-threaded tokio runtime.
    ///
    /// # Errors
    /// See [`DaemonError`].
    pub async fn start(config: Config) -> Result<Daemon, DaemonError> {
        let socket = config.server.socket.clone();
        let options = SocketOptions { path: socket.clone(), mode: config.server.socket_mode };
        // bound first: a socket in use is better known before a model is loaded
        let bound = BoundSocket::bind(&options)?;
        let limits = ApiLimits {
            body_bytes_max: config.server.body_bytes_max,
            header_timeout: config.server.header_timeout,
            request_timeout: config.server.request_timeout,
            connections_max: config.server.connections_max,
        };
        let tcp = config.server.http;
        let drain_timeout = config.server.drain_timeout;
        let assembled = tokio::task::spawn_blocking(move || assembly::assemble(&config));
        let (engine, served) =
            assembled.await.map_err(|error| DaemonError::Start(format!("start-up panicked: {error}")))??;
        let counters = Arc::<ApiCounters>::default();
        let router = router(Arc::new(served), limits.clone(), counters.clone());
        let server = Server::start(router, bound, tcp, &limits, counters).await?;
        tracing::info!(socket = %socket.display(), tcp = ?server.tcp_address(), "serving");
        Ok(Daemon { engine, server, socket, drain_timeout })
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Stops accepting, finishes what runs within the drain time, fails the rest, and removes
    /// the socket.
    pub async fn shutdown(self) {
        let Daemon { engine, mut server, drain_timeout, .. } = self;
        engine.handle().condition().drain();
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

    fn condition(&self) -> ConditionBoard {
        self.engine.handle().condition().clone()
    }
}

/// Serves until `shutdown` resolves, then shuts down in stages.
///
/// # Errors
/// As [`Daemon::start`]; and [`DaemonError::Failed`] as soon as the engine can't go on, after
/// every request has had its terminal error: the process should exit, a device error is sticky.
pub async fn run(config: Config, shutdown: impl Future<Output = ()> + Send) -> Result<(), DaemonError> {
    let daemon = Daemon::start(config).await?;
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
