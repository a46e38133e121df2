//! HTTP server on a Unix socket and optionally on TCP, with graceful shutdown.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::unix::UCred;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::app::ApiLimits;
use super::content_type::Transport;
use super::counters::ApiCounters;
use super::error_code::ErrorCode;
use super::half_close::{Answered, Exchange, HalfClose, Received};
use super::socket::{BoundSocket, SocketFile};
use super::write_stall::WriteStall;

/// Longest request head (line and headers), in bytes.
pub const HEAD_BYTES_MAX: usize = 64 << 10;

/// How long a write may stall on an unread socket before the connection is closed.
pub const WRITE_STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Pause after a failed accept, usually caused by a lack of descriptors or memory.
const ACCEPT_RETRY_PAUSE: Duration = Duration::from_millis(50);

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

/// Shutdown stage; only ever advances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Accepting and serving.
    Open,
    /// No new connections; idle ones are closed and responses in flight complete.
    Draining,
    /// Connections are dropped.
    Closed,
}

/// A running server. Dropping it closes its connections.
#[derive(Debug)]
pub struct Server {
    /// The current router; may be replaced while connections are open.
    routes: watch::Sender<Router>,
    stage: watch::Sender<Stage>,
    tasks: Vec<JoinHandle<()>>,
    tcp_address: Option<SocketAddr>,
}

impl Server {
    /// Serves `routes` on the bound socket, and on `tcp` if given, with at most
    /// `connections_max` connections on each, and counts errors in `counters`. Must be called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub async fn start(
        routes: Router,
        socket: BoundSocket,
        tcp: Option<SocketAddr>,
        limits: &ApiLimits,
        counters: Arc<ApiCounters>,
    ) -> Result<Server, ServerError> {
        let (listener, file, users) = socket.into_parts();
        let unix = UnixListener::from_std(listener).map_err(ServerError::Unix)?;
        let tcp = match tcp {
            None => None,
            Some(address) => {
                let bound = TcpListener::bind(address).await;
                Some(bound.map_err(|source| ServerError::Tcp { address, source })?)
            }
        };
        let tcp_address = tcp.as_ref().and_then(|listener| listener.local_addr().ok());
        let (stage, stages) = watch::channel(Stage::Open);
        let (routes, routes_now) = watch::channel(routes);
        let acceptor = |transport| Acceptor {
            transport,
            routes: routes_now.clone(),
            counters: counters.clone(),
            stages: stages.clone(),
            header_timeout: limits.header_timeout,
            half_close_patience: limits.half_close_patience,
            permits: Arc::new(Semaphore::new(limits.connections_max)),
        };
        let mut tasks =
            vec![tokio::spawn(acceptor(Transport::Unix).run(Listener::Unix(unix, users), Some(file)))];
        tasks.extend(tcp.map(|tcp| tokio::spawn(acceptor(Transport::Tcp).run(Listener::Tcp(tcp), None))));
        Ok(Server { routes, stage, tasks, tcp_address })
    }

    /// The bound TCP address, with the actual port if 0 was configured.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp_address
    }

    /// Replaces the router, including for open connections.
    pub fn route_to(&self, routes: Router) {
        drop(self.routes.send_replace(routes));
    }

    /// Stops accepting, removes the socket, and lets requests in flight finish.
    pub fn drain(&self) {
        self.stage.send_if_modified(|stage| {
            *stage < Stage::Draining && {
                *stage = Stage::Draining;
                true
            }
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
    /// Noted on each request.
    transport: Transport,
    /// The current router, read for each request.
    routes: watch::Receiver<Router>,
    counters: Arc<ApiCounters>,
    stages: watch::Receiver<Stage>,
    header_timeout: Duration,
    half_close_patience: Duration,
    /// One permit per connection. Per listener, because a pending accept holds one.
    permits: Arc<Semaphore>,
}

impl Acceptor {
    /// Accepts until the drain begins, then waits for its connections. `file` is removed as
    /// soon as it stops accepting.
    async fn run(mut self, listener: Listener, file: Option<SocketFile>) {
        let mut connections = JoinSet::new();
        let mut stages = self.stages.clone();
        loop {
            tokio::select! {
                biased;
                () = reached(&mut stages, Stage::Draining) => break,
                // Reaps finished connections. A panic affects only its own connection.
                Some(_) = connections.join_next() => {}
                (stream, permit) = self.accept(&listener) => {
                    connections.spawn(self.clone().serve(stream, permit));
                }
            }
        }
        drop((file, listener));
        tokio::select! {
            () = reached(&mut self.stages, Stage::Closed) => connections.shutdown().await,
            () = async { while connections.join_next().await.is_some() {} } => {}
        }
    }

    async fn accept(&self, listener: &Listener) -> (Box<dyn Stream>, OwnedSemaphorePermit) {
        let permit = self.permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        loop {
            match listener.accept().await {
                Ok(Peer::Client(stream)) => return (stream, permit),
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
        let refused = self.counters.count_unauthorized();
        if refused.is_power_of_two() {
            let (uid, pid) = (peer.uid(), peer.pid());
            tracing::warn!(uid, pid, refused, "connection refused: the user is not in server.socket_uids");
        }
    }

    /// Serves one connection until it ends.
    async fn serve(mut self, stream: Box<dyn Stream>, permit: OwnedSemaphorePermit) {
        let exchange = Arc::<Exchange>::default();
        let stream = HalfClose::new(stream, exchange.clone(), self.half_close_patience);
        let io = TokioIo::new(WriteStall::new(stream, WRITE_STALL_TIMEOUT));
        let (routes, counters) = (self.routes, self.counters.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(self.transport);
            // Here and not in `answer`, which runs only after the parser's next read.
            let request = exchange.begin(request);
            let router = routes.borrow().clone();
            answer(router, counters.clone(), exchange.clone(), request)
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(self.header_timeout);
        builder.max_buf_size(HEAD_BYTES_MAX);
        let mut connection = std::pin::pin!(builder.serve_connection(io, service));
        let outcome = tokio::select! {
            outcome = connection.as_mut() => outcome,
            () = reached(&mut self.stages, Stage::Draining) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = outcome {
            if error.is_parse() {
                self.counters.count_bad_head();
            }
            tracing::debug!("connection closed early: {error}");
        }
        drop(permit);
    }
}

/// Routes one request and counts error responses.
async fn answer(
    router: Router,
    counters: Arc<ApiCounters>,
    exchange: Arc<Exchange>,
    request: Request<Received<Incoming>>,
) -> Result<Response<Answered<Body>>, Infallible> {
    let response = TowerToHyperService::new(router).call(request).await?;
    if let Some(&code) = response.extensions().get::<ErrorCode>() {
        counters.count_error(code);
    }
    Ok(response.map(|body| Answered::new(body, exchange)))
}

/// Waits until shutdown has reached `stage` or the server is dropped.
async fn reached(stages: &mut watch::Receiver<Stage>, stage: Stage) {
    let _ = stages.wait_for(|now| *now >= stage).await;
}
