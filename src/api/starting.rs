//! What is answered while there is no engine yet.
//!
//! The door is open before the models are loaded: a client that comes early is told so at
//! once, instead of waiting for nobody knows what.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use tokio::sync::watch;

use super::app::{health, metrics_page, wrong_method};
use super::counters::ApiCounters;
use super::error::ApiError;
use super::error_code::ErrorCode;

/// What the handlers share.
struct Starting {
    /// What the start is busy with, for people.
    phase: watch::Receiver<&'static str>,
    counters: Arc<ApiCounters>,
}

type Shared = State<Arc<Starting>>;

/// The routes of a daemon that starts: it is live, it is not ready, it has counters of its own,
/// and everything else is refused with 503 until [`router`](super::router) takes over.
pub fn starting_router(phase: watch::Receiver<&'static str>, counters: Arc<ApiCounters>) -> Router {
    Router::new()
        .route("/health/live", get(async || health("live", None)))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .fallback(refuse)
        .method_not_allowed_fallback(wrong_method)
        .with_state(Arc::new(Starting { phase, counters }))
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
