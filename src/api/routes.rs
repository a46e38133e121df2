//! The routes.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::answer::{Answer, Progress};
use super::app::{ApiLimits, App, health, metrics_page, off_the_workers, wrong_method};
use super::counters::ApiCounters;
use super::engine::{Engine, EngineFacts};
use super::error::ApiError;
use super::error_code::ErrorCode;
use super::output::Output;
use super::request::{Endpoint, ParsedRequest, unknown_model};
use super::response::Envelope;
use super::{stream, text_routes};
use crate::protocol::{Micros, Submission};

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

async fn whole<E: Engine>(
    mut answer: Answer<E>,
    first: Progress,
    envelope: &Envelope,
) -> Result<Response, ApiError> {
    let (mut text, mut progress) = (String::new(), first);
    loop {
        match progress {
            Progress::Text(more) => text += &more,
            Progress::Done(completion) => {
                text += &completion.text;
                return Ok(Json(envelope.whole(&text, &completion)).into_response());
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

async fn engine_state<E: Engine>(State(app): Shared<E>) -> Json<Value> {
    Json(app.engine.state().await)
}

async fn metrics<E: Engine>(State(app): Shared<E>) -> Response {
    metrics_page(app.engine.metrics().await + &app.counters.render())
}

async fn no_route(uri: Uri) -> ApiError {
    ApiError::new(ErrorCode::UnknownUrl, format!("there is nothing at {}", uri.path()))
}
