//! Why the daemon did not answer, with what to do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::api::ErrorCode;

/// Why a request to the daemon failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no socket.
    #[error("no daemon: {} does not exist; start one with `specserve serve --config FILE`", socket.display())]
    NoSocket {
        /// Where it was looked for.
        socket: PathBuf,
    },
    /// A socket nobody listens on, or something that is no socket.
    #[error(
        "no daemon listens on {}; start one with `specserve serve --config FILE`, it removes a stale socket",
        socket.display()
    )]
    NobodyListens {
        /// The socket.
        socket: PathBuf,
    },
    /// The socket's permission bits don't let this user in.
    #[error("may not connect to {}; its permissions are server.socket_mode of the daemon's config", socket.display())]
    NotAllowed {
        /// The socket.
        socket: PathBuf,
    },
    /// The connection could not be made for another reason.
    #[error("can't connect to {}: {source}", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing came for too long.
    #[error("the daemon did not answer within {} s while {what}", after.as_secs())]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// The bound.
        after: Duration,
    },
    /// The daemon answered with an error.
    #[error("{} ({status})", message)]
    Refused {
        /// HTTP status.
        status: u16,
        /// What it said.
        message: String,
        /// Seconds after which to try again, where it said so.
        retry_after: Option<Duration>,
        /// The error object as it came, if it was one.
        body: Option<serde_json::Value>,
    },
    /// The daemon hung up before it answered: it does that to users whom it does not know.
    #[error(
        "the daemon behind {} closed the connection without an answer; it has ended, or server.socket_uids \
         of its config does not list this user",
        socket.display()
    )]
    HungUp {
        /// The socket.
        socket: PathBuf,
    },
    /// The connection broke, or what came is not what the API promises.
    #[error("the answer can't be used: {0}")]
    Protocol(String),
}

impl ClientError {
    pub(super) fn connecting(socket: &Path, source: io::Error) -> ClientError {
        let socket = socket.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => ClientError::NoSocket { socket },
            io::ErrorKind::ConnectionRefused => ClientError::NobodyListens { socket },
            io::ErrorKind::PermissionDenied => ClientError::NotAllowed { socket },
            _ => ClientError::Connect { socket, source },
        }
    }

    /// Why a request got no answer on a connection that had been made.
    pub(super) fn unanswered(socket: &Path, error: &hyper::Error) -> ClientError {
        let source = std::error::Error::source(error);
        // a request that was never written is cancelled by what went wrong before
        if let Some(cause) = source.and_then(|source| source.downcast_ref::<hyper::Error>()) {
            return ClientError::unanswered(socket, cause);
        }
        let reset = source.and_then(|source| source.downcast_ref::<io::Error>()).is_some_and(|source| {
            matches!(source.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
        });
        if reset || error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
            return ClientError::HungUp { socket: socket.to_owned() };
        }
        ClientError::protocol(error)
    }

    pub(in crate::cli) fn protocol(error: impl std::fmt::Display) -> ClientError {
        ClientError::Protocol(error.to_string())
    }

    /// Whether the daemon is there and its engine is not yet.
    pub fn is_starting(&self) -> bool {
        let ClientError::Refused { status: 503, body: Some(body), .. } = self else { return false };
        body.pointer("/error/code").is_some_and(|code| code == ErrorCode::Starting.name())
    }

    /// When the daemon asked to try again later: in how long.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            ClientError::Refused { status: 503, retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
