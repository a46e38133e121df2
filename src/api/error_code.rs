//! The closed set of error codes.

use axum::http::StatusCode;

/// Defines [`ErrorCode`] from one table: code, status, name.
macro_rules! error_codes {
    ($($(#[$doc:meta])* $code:ident = $status:ident, $name:literal;)*) => {
        /// The `code` of an error body; also the label of the error counter. Documented in
        /// docs/api.md. Released names never change.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $($(#[$doc])* $code,)*
        }

        impl ErrorCode {
            /// All codes in discriminant order.
            pub const ALL: &[ErrorCode] = &[$(ErrorCode::$code,)*];

            /// Name on the wire.
            pub fn name(self) -> &'static str {
                match self {
                    $(ErrorCode::$code => $name,)*
                }
            }

            /// HTTP status of the response.
            pub fn status(self) -> StatusCode {
                match self {
                    $(ErrorCode::$code => StatusCode::$status,)*
                }
            }
        }
    };
}

error_codes! {
    /// The body is not a JSON object.
    InvalidJson = BAD_REQUEST, "invalid_json";
    /// The body was truncated.
    IncompleteBody = BAD_REQUEST, "incomplete_body";
    /// A required field is missing.
    MissingParameter = BAD_REQUEST, "missing_parameter";
    /// A field has the wrong type or an invalid value.
    InvalidValue = BAD_REQUEST, "invalid_value";
    /// The requested feature is not supported.
    UnsupportedParameter = BAD_REQUEST, "unsupported_parameter";
    /// A field of this name does not exist.
    UnknownParameter = BAD_REQUEST, "unknown_parameter";
    /// Prompt and output exceed the context length.
    ContextLengthExceeded = BAD_REQUEST, "context_length_exceeded";
    /// Prompt and output exceed the whole KV pool.
    KvPoolTooSmall = BAD_REQUEST, "kv_pool_too_small";
    /// The objective cannot be met even on an idle machine.
    SloInfeasible = BAD_REQUEST, "slo_infeasible";
    /// The requested model is not the served one.
    ModelNotFound = NOT_FOUND, "model_not_found";
    /// The route does not exist.
    UnknownUrl = NOT_FOUND, "unknown_url";
    /// The route does not support the method.
    MethodNotAllowed = METHOD_NOT_ALLOWED, "method_not_allowed";
    /// The body was not received in time.
    BodyTimeout = REQUEST_TIMEOUT, "body_timeout";
    /// The body exceeds the size limit.
    BodyTooLarge = PAYLOAD_TOO_LARGE, "body_too_large";
    /// The body is not declared as JSON.
    UnsupportedContentType = UNSUPPORTED_MEDIA_TYPE, "unsupported_content_type";
    /// The body is compressed.
    UnsupportedEncoding = UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding";
    /// The model's logits were not finite.
    NumericalError = INTERNAL_SERVER_ERROR, "numerical_error";
    /// The description of the output allowed no further token.
    GrammarError = INTERNAL_SERVER_ERROR, "grammar_error";
    /// The engine failed.
    EngineError = INTERNAL_SERVER_ERROR, "engine_error";
    /// The API failed internally.
    InternalError = INTERNAL_SERVER_ERROR, "internal_error";
    /// The request was cancelled.
    Cancelled = INTERNAL_SERVER_ERROR, "cancelled";
    /// The request queue is full.
    QueueFull = SERVICE_UNAVAILABLE, "queue_full";
    /// The request waited in the queue for as long as it may.
    QueueTimeout = SERVICE_UNAVAILABLE, "queue_timeout";
    /// All connections are taken.
    TooManyConnections = SERVICE_UNAVAILABLE, "too_many_connections";
    /// The engine has not started yet.
    Starting = SERVICE_UNAVAILABLE, "starting";
    /// The engine does not accept requests.
    Unavailable = SERVICE_UNAVAILABLE, "unavailable";
    /// Queueing would push the first token past its objective.
    SloTooLate = SERVICE_UNAVAILABLE, "slo_too_late";
    /// The daemon is shutting down.
    ShuttingDown = SERVICE_UNAVAILABLE, "shutting_down";
    /// The response was not complete within the request timeout.
    RequestTimeout = GATEWAY_TIMEOUT, "request_timeout";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_docs_list_exactly_these_codes_with_their_statuses() {
        let docs =
            include_str!("../../docs/api.md").split("\n## Errors").nth(1).expect("a section on errors");
        let mut documented = Vec::new();
        for row in docs.lines().filter(|line| line.starts_with("| ") && line.contains('`')) {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            documented.extend(cells[2].split(", ").map(|code| (cells[1], code.trim_matches('`'))));
        }
        let mut known: Vec<(String, &str)> =
            ErrorCode::ALL.iter().map(|code| (code.status().as_u16().to_string(), code.name())).collect();
        documented.sort_unstable();
        known.sort_unstable();
        assert_eq!(documented, known.iter().map(|(status, name)| (&**status, *name)).collect::<Vec<_>>());
    }

    #[test]
    fn codes_are_ordered_by_discriminant() {
        for (place, &code) in ErrorCode::ALL.iter().enumerate() {
            assert_eq!(code as usize, place);
        }
    }
}
