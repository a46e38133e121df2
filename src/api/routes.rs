//! The routes.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::answer::{Answer, Progress};
use super::body;
use super::counters::ApiCounters;
use super::engine::{Engine, EngineFacts};
use super::error::ApiError;
use super::error_code::ErrorCode;
use super::output::Output;
use super::request::{Endpoint, ParsedRequest, unknown_model};
use super::response::Envelope;
use super::stream;
use super::text_routes;
use crate::actors::Submission;
use crate::telemetry::PROMETHEUS_CONTENT_TYPE;
use crate::time::Micros;

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
pub struct App<E: Engine> {
    pub engine: Arc<E>,
    pub limits: ApiLimits,
    counters: Arc<ApiCounters>,
}

type Shared<E> = State<Arc<App<E>>>;

/// All routes, answered by `engine`. `counters` are those of the server: `/metrics` shows them
/// behind the engine's.
pub fn router<E: Engine>(engine: Arc<E>, limits: ApiLimits, counters: Arc<ApiCounters>) -> Router {
    Router::new()
        .route("/v1/completions", post(completions::<E>))
        .route("/v1/chat/completions", post(chat_completions::<E>))
        .route("/v1/models", get(models::<E>))
        .route("/v1/models/{*id}", get(model::<E>))
        .route("/v1/engine/state", get(engine_state::<E>))
        .route("/tokenize", post(text_routes::tokenize::<E>))
        .route("/detokenize", post(text_routes::detokenize::<E>))
        .route("/health/live", get(live::<E>))
        .route("/health/ready", get(ready::<E>))
        .route("/metrics", get(metrics::<E>))
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        .with_state(Arc::new(App { engine, limits, counters }))
}

async fn completions<E: Engine>(State(app): Shared<E>, request: Request) -> Result<Response, ApiError> {
    generate(app, Endpoint::Completions, request).await
}

async fn chat_completions<E: Engine>(State(app): Shared<E>, request: Request) -> Result<Response, ApiError> {
    generate(app, Endpoint::Chat, request).await
}

/// Reads, admits and answers one request. If the client leaves, the server drops this
/// future and with it the [`Answer`], which cancels the request.
async fn generate<E: Engine>(
    app: Arc<App<E>>,
    endpoint: Endpoint,
    request: Request,
) -> Result<Response, ApiError> {
    let (arrival, deadline) = (app.engine.now(), Instant::now() + app.limits.request_timeout);
    let (parts, body) = request.into_parts();
    let (parsed, submission) = off_the_workers(&app, body, parts.headers, move |app, body, headers| {
        prepare(app, endpoint, body, headers, arrival)
    })
    .await?;
    let facts = app.engine.facts();
    let (prompt_tokens, seed) = (submission.prompt.len() as u32, submission.sampling.seed);
    let decoder = app.engine.text().decoder();
    let output = Output::new(decoder, submission.stop_tokens.clone(), parsed.stop_strings);
    let generation = app.engine.submit(submission).await?;
    let mut answer = Answer::new(app.engine.clone(), generation, output, deadline);
    let envelope = Envelope::new(endpoint, answer.id(), &facts.model, prompt_tokens, seed);
    match (answer.next().await, parsed.stream) {
        (Progress::Failed(error), _) => Err(error),
        (first, Some(options)) => Ok(stream::respond(answer, first, envelope, options)),
        (first, None) => whole(answer, first, &envelope).await,
    }
}

/// Everything about a request that needs no waiting.
fn prepare<E: Engine>(
    app: &App<E>,
    endpoint: Endpoint,
    body: &[u8],
    headers: &HeaderMap,
    arrival: Micros,
) -> Result<(ParsedRequest, Submission), ApiError> {
    let facts = app.engine.facts();
    let parsed = ParsedRequest::parse(endpoint, body, headers, facts)?;
    let prompt = parsed.prompt.encode(app.engine.text(), facts)?;
    let submission = parsed.submission(prompt, arrival, facts)?;
    Ok((parsed, submission))
}

/// Reads a body and runs `work` on it; on a thread of its own where the body is long,
/// so that one long prompt does not delay the tokens of others.
pub async fn off_the_workers<E: Engine, T: Send + 'static>(
    app: &Arc<App<E>>,
    body: axum::body::Body,
    headers: HeaderMap,
    work: impl FnOnce(&App<E>, &[u8], &HeaderMap) -> Result<T, ApiError> + Send + 'static,
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

async fn whole<E: Engine>(
    mut answer: Answer<E>,
    first: Progress,
    envelope: &Envelope,
) -> Result<Response, ApiError> {
    let (mut text, mut progress) = (String::new(), first);
    loop {
        match progress {
            Progress::Text(more) => text += &more,
            Progress::Done(ending) => {
                text += &ending.text;
                return Ok(Json(envelope.whole(&text, &ending)).into_response());
            }
            Progress::Failed(error) => return Err(error),
        }
        progress = answer.next().await;
    }
}

async fn models<E: Engine>(State(app): Shared<E>) -> Json<Value> {
    Json(json!({"object": "list", "data": [model_card(app.engine.facts())]}))
}

async fn model<E: Engine>(
    State(app): Shared<E>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let facts = app.engine.facts();
    let Path(id) = id.map_err(|rejection| ApiError::new(ErrorCode::UnknownUrl, rejection.body_text()))?;
    if id == facts.model {
        Ok(Json(model_card(facts)))
    } else {
        Err(unknown_model(&format!("{id:?}"), facts))
    }
}

fn model_card(facts: &EngineFacts) -> Value {
    json!({
        "id": facts.model,
        "object": "model",
        "created": facts.loaded_unix_s,
        "owned_by": "specserve",
        "max_model_len": facts.context_tokens_max,
    })
}

async fn live<E: Engine>(State(app): Shared<E>) -> Response {
    health("live", app.engine.health().not_live)
}

/// Ready implies live.
async fn ready<E: Engine>(State(app): Shared<E>) -> Response {
    let health_now = app.engine.health();
    health("ready", health_now.not_live.or(health_now.not_ready))
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

async fn engine_state<E: Engine>(State(app): Shared<E>) -> Json<Value> {
    Json(app.engine.state().await)
}

async fn metrics<E: Engine>(State(app): Shared<E>) -> Response {
    metrics_page(app.engine.metrics().await + &app.counters.render())
}

/// An answer to `/metrics`.
pub fn metrics_page(text: String) -> Response {
    ([(CONTENT_TYPE, PROMETHEUS_CONTENT_TYPE)], text).into_response()
}

async fn no_route(uri: Uri) -> ApiError {
    ApiError::new(ErrorCode::UnknownUrl, format!("there is nothing at {}", uri.path()))
}

/// 405.
pub async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not take {method}", uri.path());
    ApiError::new(ErrorCode::MethodNotAllowed, message)
}
