//! Static facts about the server, under the names that other servers gave these routes.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};

use super::app::App;
use super::backend::Backend;

/// Version of this program.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What answers here, for people and for clients that only ask whether anything does.
pub async fn root() -> Json<Value> {
    Json(json!({"name": "specserve", "version": VERSION, "api": "/v1"}))
}

/// The version, in the form of vLLM.
pub async fn version() -> Json<Value> {
    Json(json!({"version": VERSION}))
}

/// Model and context, with the field names of SGLang, by which its router knows a worker.
pub async fn server_info<B: Backend>(State(app): State<Arc<App<B>>>) -> Json<Value> {
    let info = app.backend.info();
    Json(json!({
        "version": VERSION,
        "model_path": info.model,
        "tokenizer_path": info.model,
        "served_model_name": info.model,
        "context_length": info.context_tokens_max,
        "tp_size": 1,
        "dp_size": 1,
    }))
}

/// The model, in the form of SGLang.
pub async fn model_info<B: Backend>(State(app): State<Arc<App<B>>>) -> Json<Value> {
    let model = &app.backend.info().model;
    Json(json!({"model_path": model, "tokenizer_path": model, "is_generation": true}))
}

/// Special tokens and chat template, in the form of vLLM. `lm-eval` tokenizes with these and
/// `/tokenize`.
pub async fn tokenizer_info<B: Backend>(State(app): State<Arc<App<B>>>) -> Json<Value> {
    let (info, text) = (app.backend.info(), app.backend.text());
    let mut fields: Map<String, Value> =
        text.special_tokens().into_iter().map(|(name, token)| (name, json!(token))).collect();
    if !fields.contains_key("eos_token") {
        let eos = info.end_tokens.first().and_then(|&token| text.decode(&[token]).ok());
        fields.insert("eos_token".to_owned(), json!(eos));
    }
    fields.insert("chat_template".to_owned(), json!(text.chat_template()));
    fields.insert("vocab_size".to_owned(), json!(info.vocab_size));
    fields.insert("model_max_length".to_owned(), json!(info.context_tokens_max));
    Json(Value::Object(fields))
}
