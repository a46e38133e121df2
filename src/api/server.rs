//! HTTP server on a Unix socket and optionally on TCP, with graceful shutdown.
//!
//! A listener that has run out of connections still answers probes; see `connections`.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::unix::UCred;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::app::ApiLimits;
use super::content_type::Transport;
use super::counters::ApiCounters;
use super::gate::{Gate, Scope};
use super::half_close::{Exchange, HalfClose};
use super::socket::{BoundSocket, SocketFile};
use super::stage::Stage;
use super::tracker::{ConnectionTracker, TrackedConnection};
use super::write_stall::WriteStall;

/// Longest request head (line and headers), in bytes.
pub const HEAD_BYTES_MAX: usize = 64 << 10;

/// How long a write may stall on an unread socket before the connection is closed.
pub const WRITE_STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Pause after a failed accept, usually caused by a lack of descriptors or memory.
const ACCEPT_RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Most connections of the listener for probes.
const PROBE_CONNECTIONS_MAX: usize = 64;

/// How long the backlog must be empty before a listener closes.
const BACKLOG_PAUSE: Duration = Duration::from_millis(20);

/// When it closes even though clients keep connecting.
const BACKLOG_TIMEOUT: Duration = Duration::from_millis(500);

/// Startup errors of the server, for the operator.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The bound Unix socket could not be registered with the runtime.
    #[error("registering the Unix socket with the runtime failed: {0}")]
    Unix(#[source] io::Error),
    /// The TCP address could not be bound.
    #[error("listening on {address} failed: {source}")]
    Tcp {
        /// The configured address.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
}

/// Where a server listens, besides its Unix socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpListeners {
    /// For the whole API.
    pub http: Option<SocketAddr>,
    /// For probes only.
    pub admin: Option<SocketAddr>,
}

/// A running server. Dropping it closes its connections.
#[derive(Debug)]
pub struct Server {
    /// The current router; may be replaced while connections are open.
    routes: watch::Sender<Router>,
    stage: watch::Sender<Stage>,
    tasks: Vec<JoinHandle<()>>,
    /// The connections of each listener.
    trackers: Vec<Arc<ConnectionTracker>>,
    addresses: TcpListeners,
}

impl Server {
    /// Serves `routes` on the bound socket and on `tcp`, with the `limits` on each, and counts
    /// errors in `counters`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub async fn start(
        routes: Router,
        socket: BoundSocket,
        tcp: TcpListeners,
        limits: &ApiLimits,
        counters: Arc<ApiCounters>,
    ) -> Result<Server, ServerError> {
        let (listener, file, users) = socket.into_parts();
        let unix = UnixListener::from_std(listener).map_err(ServerError::Unix)?;
        let (http, admin) = (bind(tcp.http).await?, bind(tcp.admin).await?);
        let address = |tcp: &Option<TcpListener>| tcp.as_ref().and_then(|tcp| tcp.local_addr().ok());
        let addresses = TcpListeners { http: address(&http), admin: address(&admin) };
        let (stage, stages) = watch::channel(Stage::Open);
        let (routes, routes_now) = watch::channel(routes);
        let acceptor = |scope, connections_max, transport| Acceptor {
            gate: Gate {
                routes: routes_now.clone(),
                counters: counters.clone(),
                stages: stages.clone(),
                scope,
                transport,
                body_bytes_max: limits.body_bytes_max,
            },
            header_timeout: limits.header_timeout,
            half_close_patience: limits.half_close_patience,
            tracker: ConnectionTracker::new(connections_max),
        };
        let all = (Scope::All, limits.connections_max);
        let mut listeners = vec![(all, Transport::Unix, Listener::Unix(unix, users), Some(file))];
        listeners.extend(http.map(|tcp| (all, Transport::Tcp, Listener::Tcp(tcp), None)));
        let probes = (Scope::Probes, PROBE_CONNECTIONS_MAX);
        listeners.extend(admin.map(|tcp| (probes, Transport::Tcp, Listener::Tcp(tcp), None)));
        let (mut tasks, mut trackers) = (Vec::new(), Vec::new());
        for ((scope, connections_max), transport, listener, file) in listeners {
            let acceptor = acceptor(scope, connections_max, transport);
            trackers.push(acceptor.tracker.clone());
            tasks.push(tokio::spawn(acceptor.run(listener, file)));
        }
        Ok(Server { routes, stage, tasks, trackers, addresses })
    }

    /// The bound TCP addresses, with the actual ports where 0 was configured.
    pub fn tcp_addresses(&self) -> TcpListeners {
        self.addresses
    }

    /// Replaces the router, including for open connections.
    pub fn route_to(&self, routes: Router) {
        drop(self.routes.send_replace(routes));
    }

    /// Goes on serving, but closes each connection after its response, so that clients that keep
    /// theirs open go elsewhere.
    pub fn leave(&self) {
        self.advance(Stage::Leaving);
    }

    /// Refuses requests with 503 from now on. Probes are answered, and responses in flight
    /// complete.
    pub fn refuse_requests(&self) {
        self.advance(Stage::Refusing);
    }

    /// Waits up to `patience` until no request is being answered; whether that was so.
    pub async fn answered(&self, patience: Duration) -> bool {
        let quiet = async {
            for tracker in &self.trackers {
                tracker.quiet().await;
            }
        };
        tokio::time::timeout(patience, quiet).await.is_ok()
    }

    /// Stops accepting, removes the socket, and lets requests in flight finish.
    pub fn drain(&self) {
        self.advance(Stage::Draining);
    }

    fn advance(&self, to: Stage) {
        self.stage.send_if_modified(|stage| {
            let advances = *stage < to;
            *stage = to.max(*stage);
            advances
        });
    }

    /// Waits up to `patience` for all connections to finish and returns whether they did.
    /// Called after [`drain`](Self::drain), and again after the engine was told to fail the
    /// remaining requests.
    pub async fn drained(&mut self, patience: Duration) -> bool {
        let tasks = &mut self.tasks;
        let all = async {
            while let Some(task) = tasks.last_mut() {
                // A panic in the accept loop closes its connections as well, so it counts as drained.
                let _ = task.await;
                tasks.pop();
            }
        };
        tokio::time::timeout(patience, all).await.is_ok()
    }

    /// Closes the remaining connections and waits for their tasks.
    pub async fn close(&mut self) {
        self.stage.send_replace(Stage::Closed);
        for task in self.tasks.drain(..) {
            let _ = task.await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn bind(address: Option<SocketAddr>) -> Result<Option<TcpListener>, ServerError> {
    let Some(address) = address else { return Ok(None) };
    let bound = TcpListener::bind(address).await;
    bound.map(Some).map_err(|source| ServerError::Tcp { address, source })
}

enum Listener {
    /// With the user ids that may connect; `None` admits all.
    Unix(UnixListener, Option<Vec<u32>>),
    Tcp(TcpListener),
}

/// The peer of an accepted connection.
enum Peer {
    /// An authorized client.
    Client(Box<dyn Stream>),
    /// A process whose user may not connect. Its connection is already closed.
    Unauthorized(UCred),
}

/// A client's byte stream.
trait Stream: AsyncRead + AsyncWrite + AsFd + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + AsFd + Unpin + Send> Stream for T {}

impl Listener {
    async fn accept(&self) -> io::Result<Peer> {
        match self {
            Listener::Unix(listener, users) => {
                let (stream, _) = listener.accept().await?;
                if let Some(users) = users {
                    let peer = stream.peer_cred()?;
                    if !users.contains(&peer.uid()) {
                        return Ok(Peer::Unauthorized(peer));
                    }
                }
                Ok(Peer::Client(Box::new(stream)))
            }
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Nagle's algorithm would delay small events.
                stream.set_nodelay(true)?;
                Ok(Peer::Client(Box::new(stream)))
            }
        }
    }
}

#[derive(Clone)]
struct Acceptor {
    gate: Gate,
    header_timeout: Duration,
    half_close_patience: Duration,
    /// Per listener, so that one cannot use up the connections of another.
    tracker: Arc<ConnectionTracker>,
}

impl Acceptor {
    /// Accepts until the drain begins, then waits for its connections. `file` is removed as
    /// soon as it stops accepting.
    async fn run(self, listener: Listener, file: Option<SocketFile>) {
        let mut connections = JoinSet::new();
        let mut stages = self.gate.stages.clone();
        loop {
            tokio::select! {
                biased;
                () = reached(&mut stages, Stage::Draining) => break,
                // Reaps finished connections. A panic affects only its own connection.
                Some(_) = connections.join_next() => {}
                stream = self.accept(&listener) => {
                    connections.spawn(self.clone().serve(stream, self.tracker.admit()));
                }
            }
        }
        drop(file);
        // clients in the backlog get an answer
        let backlog = async {
            while let Ok(stream) = tokio::time::timeout(BACKLOG_PAUSE, self.accept(&listener)).await {
                connections.spawn(self.clone().serve(stream, self.tracker.admit()));
            }
        };
        let _ = tokio::time::timeout(BACKLOG_TIMEOUT, backlog).await;
        drop(listener);
        tokio::select! {
            () = reached(&mut stages, Stage::Closed) => connections.shutdown().await,
            () = async { while connections.join_next().await.is_some() {} } => {}
        }
    }

    async fn accept(&self, listener: &Listener) -> Box<dyn Stream> {
        loop {
            self.tracker.room().await;
            match listener.accept().await {
                Ok(Peer::Client(stream)) => return stream,
                Ok(Peer::Unauthorized(peer)) => self.note_unauthorized(peer),
                Err(error) => {
                    tracing::warn!("failed to accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_RETRY_PAUSE).await;
                }
            }
        }
    }

    /// Counts an unauthorized peer. Logs at powers of two only, so that peers cannot flood the log.
    fn note_unauthorized(&self, peer: UCred) {
        let refused = self.gate.counters.count_unauthorized();
        if refused.is_power_of_two() {
            let (uid, pid) = (peer.uid(), peer.pid());
            tracing::warn!(uid, pid, refused, "connection refused: the user is not in server.socket_uids");
        }
    }

    /// Serves one connection until it ends.
    async fn serve(self, stream: Box<dyn Stream>, tracked: TrackedConnection) {
        let exchange = Arc::<Exchange>::default();
        let stream = HalfClose::new(stream, exchange.clone(), self.half_close_patience);
        let io = TokioIo::new(WriteStall::new(stream, WRITE_STALL_TIMEOUT));
        let service = service_fn(|request: Request<Incoming>| {
            // Here and not in `answer`, which runs only after the parser's next read.
            let request = exchange.begin(request);
            self.gate.answer(tracked.begin_request(), exchange.clone(), request)
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(self.header_timeout);
        builder.max_buf_size(HEAD_BYTES_MAX);
        let mut connection = std::pin::pin!(builder.serve_connection(io, service));
        let mut stages = self.gate.stages.clone();
        let leaves = async {
            tokio::select! {
                () = reached(&mut stages, Stage::Draining) => {}
                () = tracked.told_to_close() => {}
            }
            // closing now would reset a client that has sent its request already
            tracked.first_request().await;
        };
        let outcome = tokio::select! {
            outcome = connection.as_mut() => outcome,
            () = leaves => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = outcome {
            if error.is_parse() {
                self.gate.counters.count_bad_head();
            }
            tracing::debug!("connection closed early: {error}");
        }
    }
}

/// Waits until shutdown has reached `stage` or the server is dropped.
async fn reached(stages: &mut watch::Receiver<Stage>, stage: Stage) {
    let _ = stages.wait_for(|now| *now >= stage).await;
}
