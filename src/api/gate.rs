//! Decides whether a request is routed or refused, and counts error responses.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::http::HeaderValue;
use axum::http::header::CONNECTION;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio::sync::watch;

use super::connections::Slot;
use super::content_type::Transport;
use super::counters::ApiCounters;
use super::error::ApiError;
use super::error_code::ErrorCode;
use super::half_close::{Answered, Exchange, Received};
use super::routes::is_probe;
use super::stage::Stage;
use super::tracker::{InFlightBody, InFlightRequest};

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

impl Gate {
    /// Answers one request, or refuses it.
    pub async fn answer(
        &self,
        in_flight: InFlightRequest,
        exchange: Arc<Exchange>,
        mut request: Request<Received<Incoming>>,
    ) -> Result<Response, Infallible> {
        request.extensions_mut().insert(self.transport);
        let refusal = if is_probe(request.uri().path()) { None } else { self.refusal(in_flight.slot) };
        let mut response = match refusal {
            None => {
                let router = self.routes.borrow().clone();
                TowerToHyperService::new(router).call(request).await?
            }
            Some(error) => {
                discard(request.into_body(), self.body_bytes_max).await;
                error.into_response()
            }
        };
        if in_flight.slot == Slot::Overflow || *self.stages.borrow() >= Stage::Leaving {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(&code) = response.extensions().get::<ErrorCode>() {
            self.counters.count_error(code);
        }
        Ok(response.map(|body| {
            let body = Body::new(Answered::new(body, exchange));
            Body::new(InFlightBody::new(body, in_flight))
        }))
    }

    /// Why a request other than a probe is refused.
    fn refusal(&self, slot: Slot) -> Option<ApiError> {
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

/// Reads a body to its end and discards it, within bounds.
async fn discard(mut body: Received<Incoming>, bytes_max: usize) {
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
