//! What all routes share: the engine, its bounds, and the answers that more than one gives.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::backend::Backend;
use super::body;
use super::counters::ApiCounters;
use super::error::ApiError;
use super::error_code::ErrorCode;
use crate::telemetry::PROMETHEUS_CONTENT_TYPE;

/// Bounds on what one client can cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiLimits {
    /// Longest request body, in bytes.
    pub body_bytes_max: usize,
    /// Longest time to send a request's head; also how long an idle connection is kept.
    pub header_timeout: Duration,
    /// Longest time from a request's head to the end of its answer.
    pub request_timeout: Duration,
    /// Most connections at a time on each listener; later ones wait to be accepted.
    pub connections_max: usize,
}

impl Default for ApiLimits {
    fn default() -> ApiLimits {
        ApiLimits {
            body_bytes_max: 4 << 20,
            header_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(600),
            connections_max: 1024,
        }
    }
}

/// Bodies longer than this are parsed and encoded off the async workers, in bytes.
const INLINE_BODY_BYTES_MAX: usize = 16 << 10;

/// What the handlers share.
pub struct App<B: Backend> {
    pub backend: Arc<B>,
    pub limits: ApiLimits,
    pub counters: Arc<ApiCounters>,
}

/// Reads a body and runs `work` on it; on a thread of its own where the body is long,
/// so that one long prompt does not delay the tokens of others.
pub async fn off_the_workers<B: Backend, T: Send + 'static>(
    app: &Arc<App<B>>,
    body: axum::body::Body,
    headers: HeaderMap,
    work: impl FnOnce(&App<B>, &[u8], &HeaderMap) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let body = body::read(&headers, body, app.limits.body_bytes_max).await?;
    if body.len() <= INLINE_BODY_BYTES_MAX {
        return work(app, &body, &headers);
    }
    let app = app.clone();
    tokio::task::spawn_blocking(move || work(&app, &body, &headers)).await.unwrap_or_else(|failure| {
        tracing::error!("reading a request failed: {failure}");
        let message = "the server failed to read this request";
        Err(ApiError::new(ErrorCode::InternalError, message))
    })
}

/// An answer to a health route.
pub fn health(what: &str, reason: Option<String>) -> Response {
    match reason {
        None => Json(json!({"status": what})).into_response(),
        Some(reason) => {
            let status = format!("not {what}");
            let body = Json(json!({"status": status, "reason": reason}));
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
    }
}

/// An answer to `/metrics`.
pub fn metrics_page(text: String) -> Response {
    ([(CONTENT_TYPE, PROMETHEUS_CONTENT_TYPE)], text).into_response()
}

/// 405.
pub async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not take {method}", uri.path());
    ApiError::new(ErrorCode::MethodNotAllowed, message)
}
