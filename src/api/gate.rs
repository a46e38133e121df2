//! What happens to a request before it is routed: whether it is let in, and the books of it.

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

use super::connections::Place;
use super::counters::ApiCounters;
use super::error::ApiError;
use super::error_code::ErrorCode;
use super::house::{Busy, BusyBody};
use super::routes::is_probe;
use super::server::Stage;

/// How long the body of a refused request is read. A client that still writes when its connection
/// is closed may lose the response.
const REFUSED_BODY_TIMEOUT: Duration = Duration::from_secs(1);

/// What a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    All,
    /// Health, metrics and state.
    Probes,
}

/// The way from a connection to the routes.
#[derive(Clone)]
pub struct Gate {
    /// The current router, read for each request.
    pub routes: watch::Receiver<Router>,
    pub counters: Arc<ApiCounters>,
    pub stages: watch::Receiver<Stage>,
    pub scope: Scope,
    /// Longest body that is read of a request.
    pub body_bytes_max: usize,
}

impl Gate {
    /// Answers one request, or refuses it.
    pub async fn answer(&self, busy: Busy, request: Request<Incoming>) -> Result<Response, Infallible> {
        let refusal = if is_probe(request.uri().path()) { None } else { self.refusal(busy.place) };
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
        if busy.place == Place::Extra || *self.stages.borrow() >= Stage::Leaving {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(&code) = response.extensions().get::<ErrorCode>() {
            self.counters.count_error(code);
        }
        Ok(response.map(|body| Body::new(BusyBody::new(body, busy))))
    }

    /// Why a request that is no probe can't be let in.
    fn refusal(&self, place: Place) -> Option<ApiError> {
        if self.scope == Scope::Probes {
            let message = "this address (server.admin) serves health, metrics and engine state only";
            return Some(ApiError::new(ErrorCode::UnknownUrl, message));
        }
        if *self.stages.borrow() >= Stage::Refusing {
            return Some(ApiError::new(ErrorCode::ShuttingDown, "the server is shutting down"));
        }
        (place == Place::Extra).then(|| {
            let message = "all connections of the server are taken; try again later";
            ApiError::new(ErrorCode::TooManyConnections, message)
        })
    }
}

/// Reads a body to its end, within bounds, and forgets it.
async fn discard(mut body: Incoming, bytes_max: usize) {
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
    // what is not there in time is not waited for
    let _ = tokio::time::timeout(REFUSED_BODY_TIMEOUT, read).await;
}
