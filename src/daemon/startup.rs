//! Startup: from the bound socket to the running engine.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::http::HeaderValue;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::served::EngineBackend;
use super::{Daemon, DaemonError, DrainTimes};
use crate::actors::Engine;
use crate::api::{
    self, ApiCounters, ApiLimits, ApiRules, BoundSocket, OVERFLOW_CONNECTIONS_MAX, Server, SocketOptions,
    TcpListeners, router, starting_router,
};
use crate::config::{Config, ServerConfig, UnknownFields};

/// Shows what the startup is doing; completes "the daemon is starting: …".
#[derive(Clone, Debug)]
pub(super) struct Phase(watch::Sender<String>);

impl Phase {
    /// Shows a new phase.
    pub fn show(&self, now: impl Into<String>) {
        self.0.send_replace(now.into());
    }
}

#[cfg(test)]
impl Default for Phase {
    fn default() -> Phase {
        Phase(watch::Sender::new(String::new()))
    }
}

/// What an assembly reports its phases to.
pub(super) type OnPhase<'a> = &'a Phase;

/// Result of the assembly.
pub(super) type Assembled = Result<(Engine, EngineBackend), DaemonError>;

/// Open files beside the connections: models, sockets, probes, pipes, logs.
const OTHER_FILES: u64 = 128;

/// Raises the process's limit of open files to the most it may have, and warns if that does not do
/// for so many connections.
fn allow_open_files(connections: usize) {
    let limit = getrlimit(Resource::Nofile);
    // left as it is if that fails
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let needed = connections as u64 + OTHER_FILES;
    if let Some(most) = getrlimit(Resource::Nofile).current.filter(|&most| most < needed) {
        tracing::warn!(
            open_files_max = most,
            needed,
            "too few open files for server.connections_max: raise `ulimit -n` or LimitNOFILE="
        );
    }
}

/// How requests are taken, as the configuration says.
fn api_rules(server: &ServerConfig) -> ApiRules {
    let origins = server.cors_origins.iter().flatten();
    let origin = |origin: &String| HeaderValue::try_from(origin).expect("validated by the configuration");
    ApiRules {
        cors_origins: origins.map(origin).collect(),
        unknown_fields: match server.unknown_fields {
            UnknownFields::Refuse => api::UnknownFields::Refuse,
            UnknownFields::Ignore => api::UnknownFields::Ignore,
        },
    }
}

/// A daemon whose socket is open and whose engine is being built; requests get 503.
pub(super) struct StartingDaemon {
    server: Server,
    socket: PathBuf,
    limits: ApiLimits,
    rules: ApiRules,
    counters: Arc<ApiCounters>,
    drain: DrainTimes,
    assembling: JoinHandle<Assembled>,
}

impl StartingDaemon {
    /// Binds the socket, then builds the engine with `assemble` on a blocking thread. Must be
    /// called within a multi-threaded tokio runtime.
    ///
    /// # Errors
    /// If the socket or the TCP address cannot be bound.
    pub async fn begin<A>(config: Config, assemble: A) -> Result<StartingDaemon, DaemonError>
    where
        A: FnOnce(&Config, OnPhase<'_>) -> Assembled + Send + 'static,
    {
        let socket = config.server.socket.clone();
        let options = SocketOptions {
            path: socket.clone(),
            mode: config.server.socket_mode,
            users: config.server.socket_uids.clone(),
        };
        let bound = BoundSocket::bind(&options)?;
        let listeners = 1 + usize::from(config.server.http.is_some());
        allow_open_files(listeners * (config.server.connections_max + OVERFLOW_CONNECTIONS_MAX));
        let limits = ApiLimits {
            body_bytes_max: config.server.body_bytes_max,
            header_timeout: config.server.header_timeout,
            request_timeout: config.server.request_timeout,
            connections_max: config.server.connections_max,
            ..ApiLimits::default()
        };
        let rules = api_rules(&config.server);
        let counters = Arc::<ApiCounters>::default();
        let tcp = TcpListeners { http: config.server.http, admin: config.server.admin };
        let (phase, phases) = watch::channel("initializing".to_owned());
        let routes = starting_router(phases, &rules, counters.clone());
        let server = Server::start(routes, bound, tcp, &limits, counters.clone()).await?;
        let shown = |address: Option<SocketAddr>| address.map(tracing::field::display);
        let TcpListeners { http, admin } = server.tcp_addresses();
        tracing::info!(
            socket = %socket.display(),
            tcp = shown(http),
            admin = shown(admin),
            "listening; starting the engine"
        );
        let drain = DrainTimes { delay: config.server.drain_delay, timeout: config.server.drain_timeout };
        let assembling = tokio::task::spawn_blocking(move || assemble(&config, &Phase(phase)));
        Ok(StartingDaemon { server, socket, limits, rules, counters, drain, assembling })
    }

    /// Waits for the engine. Cancel-safe.
    pub async fn assembled(&mut self) -> Assembled {
        let assembled = (&mut self.assembling).await;
        assembled.map_err(|error| DaemonError::Start(format!("startup panicked: {error}")))?
    }

    /// Routes requests to the assembled engine.
    ///
    /// # Errors
    /// The error of the assembly; the socket is then removed.
    pub async fn finish(self, assembled: Assembled) -> Result<Daemon, DaemonError> {
        let (engine, served) = match assembled {
            Ok(assembled) => assembled,
            Err(error) => {
                self.close().await;
                return Err(error);
            }
        };
        let StartingDaemon { server, socket, limits, rules, counters, drain, .. } = self;
        server.route_to(router(Arc::new(served), limits, rules, counters));
        tracing::info!("serving");
        Ok(Daemon { engine, server, socket, drain })
    }

    /// Aborts startup and removes the socket. An engine under construction cannot be stopped;
    /// it ends with the process.
    pub async fn close(mut self) {
        self.server.close().await;
    }
}
