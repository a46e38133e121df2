//! Errors as OpenAI clients expect them.

use axum::Json;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::actors::AdmissionError;
use crate::request::RequestFailure;

/// What `Retry-After` tells a client that meets a full or draining server, in seconds.
pub const RETRY_AFTER_S: u16 = 1;

/// Longest message, in characters: it may quote what the caller sent.
const MESSAGE_CHARACTERS_MAX: usize = 600;

/// Longest field name, in characters.
const PARAM_CHARACTERS_MAX: usize = 120;

/// An error for the caller: a status and `{"error": {message, type, param, code}}`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// For people: the limit and the actual value where there is one.
    pub message: String,
    /// The request field at fault.
    pub param: Option<String>,
    /// For programs; never changes once released.
    pub code: &'static str,
}

impl ApiError {
    /// An error without a field.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status, message: cut(message.into(), MESSAGE_CHARACTERS_MAX), param: None, code }
    }

    /// 400: a field has a wrong type or value.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_value", message).with_param(param)
    }

    /// 400: the server does not do this.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "unsupported_parameter", message).with_param(param)
    }

    /// The same error, about a field.
    pub fn with_param(mut self, param: impl Into<String>) -> ApiError {
        self.param = Some(cut(param.into(), PARAM_CHARACTERS_MAX));
        self
    }

    /// OpenAI's coarse error type.
    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::NOT_FOUND => "not_found_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        }
    }

    /// The body; also the last event of a stream that fails.
    pub fn body(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind(),
            "param": self.param,
            "code": self.code,
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
        let mut response = (self.status, Json(self.body())).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
        }
        response
    }
}

impl From<AdmissionError> for ApiError {
    fn from(refusal: AdmissionError) -> ApiError {
        let message = refusal.to_string();
        match refusal {
            AdmissionError::QueueFull { .. } => {
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "queue_full", message)
            }
            AdmissionError::Unavailable => {
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
            }
            AdmissionError::TooLarge { .. } => {
                ApiError::new(StatusCode::BAD_REQUEST, "kv_pool_too_small", message).with_param("max_tokens")
            }
            AdmissionError::TooLate(_) => {
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "slo_too_late", message)
            }
            AdmissionError::Infeasible(_) => {
                ApiError::new(StatusCode::BAD_REQUEST, "slo_infeasible", message).with_param("slo")
            }
        }
    }
}

impl From<RequestFailure> for ApiError {
    fn from(failure: RequestFailure) -> ApiError {
        let (status, code) = match failure {
            RequestFailure::Cancelled => (StatusCode::INTERNAL_SERVER_ERROR, "cancelled"),
            RequestFailure::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
            RequestFailure::Numerical => (StatusCode::INTERNAL_SERVER_ERROR, "numerical_error"),
            RequestFailure::Engine(_) => (StatusCode::INTERNAL_SERVER_ERROR, "engine_error"),
        };
        ApiError::new(status, code, failure.to_string())
    }
}
