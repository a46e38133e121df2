//! Routes served until the engine has started.
//!
//! The socket accepts before the models are loaded: early clients get an immediate 503
//! instead of hanging until startup finishes.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use tokio::sync::watch;

use super::app::{ApiRules, health, metrics_page, with_layers, wrong_method};
use super::counters::ApiCounters;
use super::error::ApiError;
use super::error_code::ErrorCode;
use super::info_routes;

/// State of the request handlers.
struct Starting {
    /// Current startup phase, human-readable.
    phase: watch::Receiver<String>,
    counters: Arc<ApiCounters>,
}

type Shared = State<Arc<Starting>>;

/// Builds the router of a starting daemon: live, not ready, with its own metrics. All other
/// routes return 503 until [`router`](super::router) replaces this one.
pub fn starting_router(
    phase: watch::Receiver<String>,
    rules: &ApiRules,
    counters: Arc<ApiCounters>,
) -> Router {
    let routes = Router::new()
        .route("/health/live", get(async || health("live", None)))
        .route("/health/ready", get(ready))
        .route("/health", get(ready))
        .route("/ping", get(ready).post(ready))
        .route("/version", get(info_routes::version))
        .route("/metrics", get(metrics))
        .fallback(refuse)
        .method_not_allowed_fallback(wrong_method)
        .with_state(Arc::new(Starting { phase, counters }));
    with_layers(routes, rules)
}

async fn ready(State(starting): Shared) -> Response {
    health("ready", Some(starting.reason()))
}

async fn metrics(State(starting): Shared) -> Response {
    metrics_page(starting.counters.render())
}

async fn refuse(State(starting): Shared) -> ApiError {
    ApiError::new(ErrorCode::Starting, starting.reason())
}

impl Starting {
    fn reason(&self) -> String {
        format!("the daemon is starting: {}", *self.phase.borrow())
    }
}
