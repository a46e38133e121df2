//! The router and the handlers of the generation, model, health and metrics routes.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::access::Outcome;
use super::answer::{Answer, AnswerProgress};
use super::app::{
    ApiLimits, ApiRules, App, health, metrics_page, off_the_workers, with_layers, wrong_method,
};
use super::backend::{Backend, BackendInfo};
use super::counters::ApiCounters;
use super::error::ApiError;
use super::error_code::ErrorCode;
use super::output::Output;
use super::reasoning_tokens::ReasoningTokens;
use super::reply::{Message, Reply};
use super::request::{Endpoint, ParsedRequest, unknown_model};
use super::response::Envelope;
use super::{info_routes, params, stream, text_routes};
use crate::protocol::{Micros, Submission};

type Shared<B> = State<Arc<App<B>>>;

/// Builds the router over `backend`. `counters` are those of the server; `/metrics` appends
/// them to the engine's metrics.
pub fn router<B: Backend>(
    backend: Arc<B>,
    limits: ApiLimits,
    rules: ApiRules,
    counters: Arc<ApiCounters>,
) -> Router {
    let app = Arc::new(App { backend, limits, rules: rules.clone(), counters });
    let routes = Router::new()
        .route("/v1/completions", post(completions::<B>))
        .route("/v1/chat/completions", post(chat_completions::<B>))
        .route("/v1/models", get(models::<B>))
        .route("/v1/models/{*id}", get(model::<B>))
        .route("/v1/engine/state", get(engine_state::<B>))
        .route("/tokenize", post(text_routes::tokenize::<B>))
        .route("/detokenize", post(text_routes::detokenize::<B>))
        .route("/tokenizer_info", get(info_routes::tokenizer_info::<B>))
        .route("/server_info", get(info_routes::server_info::<B>))
        .route("/model_info", get(info_routes::model_info::<B>))
        .route("/version", get(info_routes::version))
        .route("/", get(info_routes::root))
        .route("/health/live", get(live::<B>))
        .route("/health/ready", get(ready::<B>))
        // as other servers name it
        .route("/health", get(ready::<B>))
        .route("/ping", get(ready::<B>).post(ready::<B>))
        .route("/metrics", get(metrics::<B>))
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        .with_state(app);
    with_layers(routes, &rules)
}

async fn completions<B: Backend>(State(app): Shared<B>, request: Request) -> Result<Response, ApiError> {
    generate(app, Endpoint::Completions, request).await
}

async fn chat_completions<B: Backend>(State(app): Shared<B>, request: Request) -> Result<Response, ApiError> {
    generate(app, Endpoint::Chat, request).await
}

/// Handles one generation request. On a disconnect the server drops this future and with
/// it the [`Answer`], which cancels the request.
async fn generate<B: Backend>(
    app: Arc<App<B>>,
    endpoint: Endpoint,
    request: Request,
) -> Result<Response, ApiError> {
    let (arrival, deadline) = (app.backend.now(), Instant::now() + app.limits.request_timeout);
    let (mut parts, body) = request.into_parts();
    let outcome: Outcome = parts.extensions.remove().unwrap_or_default();
    let (parsed, submission) = off_the_workers(&app, body, parts.headers, move |app, body, headers| {
        prepare(app, endpoint, body, headers, arrival)
    })
    .await?;
    let info = app.backend.info();
    let (prompt_tokens, seed) = (submission.prompt.len() as u32, submission.sampling.seed);
    outcome.note(|seen| seen.prompt_tokens = Some(prompt_tokens));
    // a message of its own begins a text, a completion goes on with one
    let before = if parsed.prompt.is_continued() { &submission.prompt[..] } else { &[] };
    let decoder = app.backend.text().decoder(before, &parsed.reply.markers());
    let reasoning_tokens = parsed.reply.reasoning.map(|_| ReasoningTokens::default());
    let decoder = match (&reasoning_tokens, parsed.reply.reasoning) {
        (Some(tokens), Some(rules)) => tokens.counting(decoder, rules),
        _ => decoder,
    };
    let output = Output::new(decoder, submission.stop_tokens.clone(), parsed.stop_strings)
        .with_min_tokens(parsed.min_tokens);
    let generation = app.backend.submit(submission).await?;
    let answer = Answer::new(app.backend.clone(), generation, output, outcome, deadline);
    let envelope = Envelope::new(endpoint, answer.id(), info, prompt_tokens, seed)
        .with_reasoning_tokens(reasoning_tokens);
    let reply = Reply::new(parsed.reply, params::fresh_seed());
    match parsed.stream {
        Some(options) => stream::respond(answer, reply, envelope, options, &app.limits).await,
        None => whole(answer, reply, &envelope).await,
    }
}

/// The synchronous part of a request: parsing, rendering and tokenization.
fn prepare<B: Backend>(
    app: &App<B>,
    endpoint: Endpoint,
    body: &[u8],
    headers: &HeaderMap,
    arrival: Micros,
) -> Result<(ParsedRequest, Submission), ApiError> {
    let info = app.backend.info();
    let mut parsed = ParsedRequest::parse(endpoint, body, headers, info, app.rules.unknown_fields)?;
    parsed.stop_at_special_tokens(app.backend.text());
    parsed.constrain(app.backend.text(), info)?;
    let prompt = parsed.prompt.encode(app.backend.text(), parsed.add_special_tokens, info)?;
    parsed.note_start(app.backend.text(), &prompt)?;
    let submission = parsed.submission(prompt, arrival, info)?;
    Ok((parsed, submission))
}

async fn whole<B: Backend>(
    mut answer: Answer<B>,
    mut reply: Reply,
    envelope: &Envelope,
) -> Result<Response, ApiError> {
    let mut message = Message::default();
    loop {
        match answer.next().await {
            AnswerProgress::Text(more) => message.extend(reply.push(&more)),
            AnswerProgress::Done(completion) => {
                message.extend(reply.finish(&completion.text));
                return Ok(Json(envelope.whole(&message, &completion)).into_response());
            }
            AnswerProgress::Failed(error) => return Err(error),
        }
    }
}

async fn models<B: Backend>(State(app): Shared<B>) -> Json<Value> {
    Json(json!({"object": "list", "data": [model_card(app.backend.info())]}))
}

async fn model<B: Backend>(
    State(app): Shared<B>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let info = app.backend.info();
    let Path(id) = id.map_err(|rejection| ApiError::new(ErrorCode::UnknownUrl, rejection.body_text()))?;
    if id == info.model { Ok(Json(model_card(info))) } else { Err(unknown_model(&format!("{id:?}"), info)) }
}

fn model_card(info: &BackendInfo) -> Value {
    json!({
        "id": info.model,
        "object": "model",
        "root": info.model,
        "created": info.loaded_unix_s,
        "owned_by": "specserve",
        "max_model_len": info.context_tokens_max,
    })
}

async fn live<B: Backend>(State(app): Shared<B>) -> Response {
    health("live", app.backend.health().not_live)
}

/// Reports ready only if also live.
async fn ready<B: Backend>(State(app): Shared<B>) -> Response {
    let health_now = app.backend.health();
    health("ready", health_now.not_live.or(health_now.not_ready))
}

async fn engine_state<B: Backend>(State(app): Shared<B>) -> Json<Value> {
    Json(app.backend.state().await)
}

async fn metrics<B: Backend>(State(app): Shared<B>) -> Response {
    metrics_page(app.backend.metrics().await + &app.counters.render())
}

async fn no_route(uri: Uri) -> ApiError {
    ApiError::new(ErrorCode::UnknownUrl, format!("no route matches {}", uri.path()))
}
