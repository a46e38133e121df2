//! Client errors, with remedies.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::api::ErrorCode;

/// Why a request to the daemon failed, for the operator.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket does not exist.
    #[error("no daemon: {} does not exist; start one with `specserve serve --config FILE`", socket.display())]
    NoSocket {
        /// Expected path of the socket.
        socket: PathBuf,
    },
    /// No process is listening on the socket, or the path is not a socket.
    #[error(
        "no daemon is listening on {}; start one with `specserve serve --config FILE`, which replaces a stale socket",
        socket.display()
    )]
    NotListening {
        /// Path of the socket.
        socket: PathBuf,
    },
    /// The socket's permissions exclude this user.
    #[error("permission denied to connect to {}; check server.socket_mode in the daemon's config", socket.display())]
    NotAllowed {
        /// Path of the socket.
        socket: PathBuf,
    },
    /// The connection could not be made for another reason.
    #[error("cannot connect to {}: {source}", socket.display())]
    Connect {
        /// Path of the socket.
        socket: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The daemon did not respond in time.
    #[error("the daemon did not answer within {} s while {what}", after.as_secs())]
    Timeout {
        /// What the client was waiting for.
        what: &'static str,
        /// The timeout.
        after: Duration,
    },
    /// The daemon responded with an error.
    #[error("{} ({status})", message)]
    Refused {
        /// HTTP status.
        status: u16,
        /// Message of the error.
        message: String,
        /// Value of `Retry-After`, in seconds.
        retry_after: Option<Duration>,
        /// The error object, if the body was one.
        body: Option<Box<serde_json::Value>>,
        /// Request id assigned by the daemon (`x-request-id`).
        request_id: Option<String>,
    },
    /// The daemon closed the connection without a response, as it does to unauthorized users.
    #[error(
        "the daemon behind {} closed the connection without a response; it has exited, or \
        server.socket_uids in its config does not list this user",
        socket.display()
    )]
    HungUp {
        /// Path of the socket.
        socket: PathBuf,
    },
    /// The connection broke, or the response violates the API.
    #[error("invalid response from the daemon: {0}")]
    Protocol(String),
}

impl ClientError {
    pub(super) fn connecting(socket: &Path, source: io::Error) -> ClientError {
        let socket = socket.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => ClientError::NoSocket { socket },
            io::ErrorKind::ConnectionRefused => ClientError::NotListening { socket },
            io::ErrorKind::PermissionDenied => ClientError::NotAllowed { socket },
            _ => ClientError::Connect { socket, source },
        }
    }

    /// Classifies the failure of a request on an established connection.
    pub(super) fn unanswered(socket: &Path, error: &hyper::Error) -> ClientError {
        let source = std::error::Error::source(error);
        // hyper cancels an unwritten request with the earlier error as its source
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

    /// Whether the daemon is still starting.
    pub fn is_starting(&self) -> bool {
        let ClientError::Refused { status: 503, body: Some(body), .. } = self else { return false };
        body.pointer("/error/code").is_some_and(|code| code == ErrorCode::Starting.name())
    }

    /// The delay after which the daemon asked to retry, if it did.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            ClientError::Refused { status: 503, retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
