//! State shared by all routes, and responses that several of them give.

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

/// Limits on the resources a client can take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiLimits {
    /// Longest request body, in bytes.
    pub body_bytes_max: usize,
    /// Longest time to receive a request's head; also the keep-alive timeout of idle connections.
    pub header_timeout: Duration,
    /// Longest time from a request's head to the end of its response.
    pub request_timeout: Duration,
    /// Most concurrent connections per listener. Beyond them idle ones are closed, and of further
    /// ones only probes are answered.
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

/// Bodies longer than this, in bytes, are parsed and tokenized off the async workers.
const INLINE_BODY_BYTES_MAX: usize = 16 << 10;

/// State of the request handlers.
pub struct App<B: Backend> {
    pub backend: Arc<B>,
    pub limits: ApiLimits,
    pub counters: Arc<ApiCounters>,
}

/// Reads a body and runs `work` on it. Long bodies are handled on a blocking thread, so
/// that one long prompt does not delay the token streams of others.
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
        tracing::error!("handler panicked while reading a request: {failure}");
        let message = "the server failed to read this request";
        Err(ApiError::new(ErrorCode::InternalError, message))
    })
}

/// Response of a health route.
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

/// Response of `/metrics`.
pub fn metrics_page(text: String) -> Response {
    ([(CONTENT_TYPE, PROMETHEUS_CONTENT_TYPE)], text).into_response()
}

/// Rejects a method that the route does not support, with 405.
pub async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not support {method}", uri.path());
    ApiError::new(ErrorCode::MethodNotAllowed, message)
}
