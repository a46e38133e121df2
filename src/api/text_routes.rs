//! `/tokenize` and `/detokenize`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use serde_json::{Value, json};

use super::app::{App, off_the_workers};
use super::backend::Backend;
use super::chat::Conversation;
use super::error::ApiError;
use super::fields::Fields;
use super::neutral;
use super::params::token_ids;
use super::request::check_model;

/// Tokenizes `prompt`, or `messages` rendered by the chat template. `add_special_tokens`
/// (default true) applies to `prompt`. `model` is optional.
pub async fn tokenize<B: Backend>(
    State(app): State<Arc<App<B>>>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let (parts, body) = request.into_parts();
    off_the_workers(&app, body, parts.headers, |app, body, _| {
        let mut fields = open(app, body)?;
        let text = app.backend.text();
        let add_special = fields.boolean("add_special_tokens")?;
        let (param, tokens) = match fields.string("prompt")? {
            Some(prompt) => ("prompt", text.encode(&prompt, add_special.unwrap_or(true))),
            None => {
                let conversation = Conversation::parse(&mut fields, &app.backend.info().chat)?;
                ("messages", text.render_chat(&conversation).and_then(|prompt| text.encode(&prompt, false)))
            }
        };
        neutral::drop_neutral(&mut fields)?;
        fields.finish()?;
        let tokens = tokens.map_err(|error| ApiError::invalid(param, error.to_string()))?;
        let context = app.backend.info().context_tokens_max;
        Ok(Json(json!({"count": tokens.len(), "max_model_len": context, "tokens": tokens})))
    })
    .await
}

/// Decodes `tokens`, with special tokens written out. `model` is optional.
pub async fn detokenize<B: Backend>(
    State(app): State<Arc<App<B>>>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let (parts, body) = request.into_parts();
    off_the_workers(&app, body, parts.headers, |app, body, _| {
        let mut fields = open(app, body)?;
        let tokens = token_ids("tokens", &fields.required("tokens")?, app.backend.info().vocab_size)?;
        fields.finish()?;
        let text = app.backend.text().decode(&tokens);
        let text = text.map_err(|error| ApiError::invalid("tokens", error.to_string()))?;
        Ok(Json(json!({"prompt": text})))
    })
    .await
}

fn open<B: Backend>(app: &App<B>, body: &[u8]) -> Result<Fields, ApiError> {
    let mut fields = Fields::from_body(body, app.rules.unknown_fields)?;
    check_model(&mut fields, app.backend.info())?;
    Ok(fields)
}
