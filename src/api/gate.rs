//! Lets requests in or has them refused, and counts error responses.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::http::header::CONNECTION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio::sync::watch;

use super::connections::Slot;
use super::content_type::Transport;
use super::counters::ApiCounters;
use super::error::ApiError;
use super::error_code::ErrorCode;
use super::half_close::{Answering, Exchange, Receiving};
use super::probes::is_probe;
use super::stage::Stage;
use super::tracker::InFlightRequest;
use super::watched_body::{BodyWatch, WatchedBody};

/// How long the body of a refused request is read. Closing the connection while the client is still
/// writing could cost it the response.
const REFUSED_BODY_TIMEOUT: Duration = Duration::from_secs(1);

/// What a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    All,
    /// Health, metrics and state.
    Probes,
}

/// Takes a request from its connection to the routes.
#[derive(Clone)]
pub struct Gate {
    /// The current router, read for each request.
    pub routes: watch::Receiver<Router>,
    pub counters: Arc<ApiCounters>,
    pub stages: watch::Receiver<Stage>,
    pub scope: Scope,
    /// Noted on each request.
    pub transport: Transport,
    /// Longest body that is read of a request.
    pub body_bytes_max: usize,
}

/// Why a request is refused. In its extensions, for [`refuse`].
#[derive(Clone)]
struct Refusal {
    error: ApiError,
    body_bytes_max: usize,
}

/// A request that is being answered, until its response has been sent.
struct InFlight {
    _answering: Answering,
    _request: InFlightRequest,
}

impl BodyWatch for InFlight {}

impl Gate {
    /// Answers one request, or refuses it.
    pub async fn answer(
        &self,
        in_flight: InFlightRequest,
        exchange: Arc<Exchange>,
        mut request: hyper::Request<WatchedBody<Incoming, Receiving>>,
    ) -> Result<Response, Infallible> {
        request.extensions_mut().insert(self.transport);
        if let Some(error) = self.refusal(request.uri().path(), in_flight.slot) {
            request.extensions_mut().insert(Refusal { error, body_bytes_max: self.body_bytes_max });
        }
        let router = self.routes.borrow().clone();
        let mut response = TowerToHyperService::new(router).call(request).await?;
        if in_flight.slot == Slot::Overflow || *self.stages.borrow() >= Stage::Leaving {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(&code) = response.extensions().get::<ErrorCode>() {
            self.counters.count_error(code);
        }
        let watch = InFlight { _answering: Answering(exchange), _request: in_flight };
        Ok(response.map(|body| Body::new(WatchedBody::new(body, watch))))
    }

    /// Why a request is refused, if it is.
    fn refusal(&self, path: &str, slot: Slot) -> Option<ApiError> {
        if is_probe(path) {
            return None;
        }
        if self.scope == Scope::Probes {
            let message = "this address (server.admin) serves health, metrics and engine state only";
            return Some(ApiError::new(ErrorCode::UnknownUrl, message));
        }
        if *self.stages.borrow() >= Stage::Refusing {
            return Some(ApiError::new(ErrorCode::ShuttingDown, "the server is shutting down"));
        }
        (slot == Slot::Overflow).then(|| {
            let message = "all connections of the server are taken; try again later";
            ApiError::new(ErrorCode::TooManyConnections, message)
        })
    }
}

/// Responds for the routes to a request that the gate refuses, so that it gets its id, its line in
/// the log and its headers for browsers as any other does.
pub async fn refuse(mut request: Request, next: Next) -> Response {
    match request.extensions_mut().remove::<Refusal>() {
        None => next.run(request).await,
        Some(Refusal { error, body_bytes_max }) => {
            discard(request.into_body(), body_bytes_max).await;
            error.into_response()
        }
    }
}

/// Reads a body to its end and discards it, within bounds.
async fn discard(mut body: Body, bytes_max: usize) {
    if body.size_hint().lower() > bytes_max as u64 {
        return;
    }
    let read = async {
        let mut left = bytes_max;
        while let Some(Ok(frame)) = body.frame().await {
            let bytes = frame.data_ref().map_or(0, bytes::Bytes::len);
            match left.checked_sub(bytes) {
                Some(less) => left = less,
                None => return,
            }
        }
    };
    // a slow body is not worth waiting for
    let _ = tokio::time::timeout(REFUSED_BODY_TIMEOUT, read).await;
}
