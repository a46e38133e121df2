//! Errors in the format of the OpenAI API.

use axum::Json;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::error_code::ErrorCode;
use crate::protocol::{AdmissionError, RequestFailure};

/// `Retry-After` of 503 responses, in seconds.
pub const RETRY_AFTER_S: u16 = 1;

/// Longest message, in characters; messages may quote the request.
const MESSAGE_CHARACTERS_MAX: usize = 600;

/// Longest field name, in characters.
const PARAM_CHARACTERS_MAX: usize = 120;

/// An error response: a status and `{"error": {message, type, param, code}}`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Human-readable message, with the limit and the actual value where there is one.
    pub message: String,
    /// Request field that caused the error.
    pub param: Option<String>,
    /// Machine-readable code; determines the status.
    pub code: ErrorCode,
}

impl ApiError {
    /// Creates an error that is not about a field.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> ApiError {
        ApiError { message: cut(message.into(), MESSAGE_CHARACTERS_MAX), param: None, code }
    }

    /// 400: a field has the wrong type or an invalid value.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError::new(ErrorCode::InvalidValue, message).with_param(param)
    }

    /// 400: the requested feature is not supported.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError::new(ErrorCode::UnsupportedParameter, message).with_param(param)
    }

    /// 400: the prompt, or the prompt and `max_tokens` together, exceed the context. `max_tokens`
    /// is `None` if the prompt alone leaves no room for output.
    ///
    /// The first sentence is the OpenAI API's: LiteLLM and LangChain recognize the error by it.
    pub fn context_exceeded(
        param: &str,
        context_tokens: u32,
        prompt_tokens: u64,
        max_tokens: Option<u32>,
    ) -> ApiError {
        let (part, output) = match max_tokens {
            Some(tokens) => ("prompt or max_tokens", tokens),
            None => ("prompt", 1),
        };
        let requested = prompt_tokens + u64::from(output);
        let at_least = if max_tokens.is_none() { "at least " } else { "" };
        let message = format!(
            "This model's maximum context length is {context_tokens} tokens. However, you requested \
             {at_least}{requested} tokens ({prompt_tokens} in the prompt, {at_least}{output} in the \
             completion). Please reduce the length of the {part}."
        );
        ApiError::new(ErrorCode::ContextLengthExceeded, message).with_param(param)
    }

    /// Sets the field that caused the error.
    pub fn with_param(mut self, param: impl Into<String>) -> ApiError {
        self.param = Some(cut(param.into(), PARAM_CHARACTERS_MAX));
        self
    }

    /// The `type` of the error body, as in the OpenAI API.
    fn kind(&self) -> &'static str {
        match self.code.status() {
            StatusCode::NOT_FOUND => "not_found_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        }
    }

    /// The response body; also the last event of a failed stream.
    pub fn body(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind(),
            "param": self.param,
            "code": self.code.name(),
        }})
    }
}

fn cut(mut text: String, characters_max: usize) -> String {
    if let Some((at, _)) = text.char_indices().nth(characters_max) {
        text.truncate(at);
        text.push('…');
    }
    text
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.code.status();
        let mut response = (status, Json(self.body())).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
        }
        // read by the error counters
        response.extensions_mut().insert(self.code);
        response
    }
}

impl From<AdmissionError> for ApiError {
    fn from(refusal: AdmissionError) -> ApiError {
        let (code, param) = match refusal {
            AdmissionError::QueueFull { .. } => (ErrorCode::QueueFull, None),
            AdmissionError::Unavailable => (ErrorCode::Unavailable, None),
            AdmissionError::TooLarge { .. } => (ErrorCode::KvPoolTooSmall, Some("max_tokens")),
            AdmissionError::TooLate(_) => (ErrorCode::SloTooLate, None),
            AdmissionError::Infeasible(_) => (ErrorCode::SloInfeasible, Some("slo")),
        };
        ApiError { param: param.map(str::to_owned), ..ApiError::new(code, refusal.to_string()) }
    }
}

impl From<RequestFailure> for ApiError {
    fn from(failure: RequestFailure) -> ApiError {
        let code = match failure {
            RequestFailure::Cancelled => ErrorCode::Cancelled,
            RequestFailure::Late { .. } => ErrorCode::SloTooLate,
            RequestFailure::Overdue { .. } => ErrorCode::QueueTimeout,
            RequestFailure::ShuttingDown => ErrorCode::ShuttingDown,
            RequestFailure::Numerical => ErrorCode::NumericalError,
            RequestFailure::NothingAllowed => ErrorCode::GrammarError,
            RequestFailure::Engine(_) => ErrorCode::EngineError,
        };
        ApiError::new(code, failure.to_string())
    }
}
