//! State shared by all routes, and responses that several of them give.

use std::sync::Arc;
use std::time::Duration;

use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde_json::json;

use super::backend::Backend;
use super::counters::ApiCounters;
use super::error::ApiError;
use super::error_code::ErrorCode;
use super::fields::UnknownFields;
use super::{access, body, content_type, cors, gate};
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
    /// Longest wait for the first text before a stream's headers are sent without it.
    pub stream_head_wait: Duration,
    /// Longest silence of a stream before a comment is sent.
    pub stream_keep_alive: Duration,
    /// How long a TCP client that has closed its sending side waits before it is checked with an
    /// interim response.
    pub half_close_patience: Duration,
}

impl Default for ApiLimits {
    fn default() -> ApiLimits {
        ApiLimits {
            body_bytes_max: 4 << 20,
            header_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(600),
            connections_max: 1024,
            stream_head_wait: Duration::from_millis(100),
            stream_keep_alive: Duration::from_secs(10),
            half_close_patience: Duration::from_secs(3),
        }
    }
}

/// How requests are taken, beyond the limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiRules {
    /// What to do with fields that the API does not know.
    pub unknown_fields: UnknownFields,
    /// Origins whose web pages may use the API, or `*`; empty: none.
    pub cors_origins: Vec<HeaderValue>,
}

/// Adds what all requests have in common: an id and a line in the log, the answers to browsers, and
/// the refusal of what the gate does not let in and of what only browsers send.
pub fn with_layers(routes: Router, rules: &ApiRules) -> Router {
    let routes = routes.layer(middleware::from_fn(content_type::require_json));
    let routes = routes.layer(middleware::from_fn(gate::refuse));
    let routes = match rules.cors_origins.as_slice() {
        [] => routes,
        origins => routes.layer(cors::layer(origins)),
    };
    routes.layer(middleware::from_fn(access::trace))
}

/// Bodies longer than this, in bytes, are parsed and tokenized off the async workers.
const INLINE_BODY_BYTES_MAX: usize = 16 << 10;

/// What the names of fields begin with that may have a grammar compiled, which takes milliseconds.
const GRAMMAR_FIELDS: [&[u8]; 3] = [b"\"response_format\"", b"\"guided_", b"\"structured_outputs\""];

/// Whether a body is read quickly.
fn is_quick(body: &[u8]) -> bool {
    let has = |name: &&[u8]| body.windows(name.len()).any(|part| part == *name);
    body.len() <= INLINE_BODY_BYTES_MAX && !GRAMMAR_FIELDS.iter().any(has)
}

/// State of the request handlers.
pub struct App<B: Backend> {
    pub backend: Arc<B>,
    pub limits: ApiLimits,
    pub rules: ApiRules,
    pub counters: Arc<ApiCounters>,
}

/// Reads a body and runs `work` on it. Long bodies, and those with grammars, are handled on a blocking
/// thread, so that one of them does not delay the token streams of others.
pub async fn off_the_workers<B: Backend, T: Send + 'static>(
    app: &Arc<App<B>>,
    body: axum::body::Body,
    headers: HeaderMap,
    work: impl FnOnce(&App<B>, &[u8], &HeaderMap) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let body = body::read(&headers, body, app.limits.body_bytes_max).await?;
    if is_quick(&body) {
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
