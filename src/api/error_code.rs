//! The closed list of what an error can be, for programs and for the counters.

use axum::http::StatusCode;

/// Defines [`ErrorCode`] from one table: code, status, name.
macro_rules! error_codes {
    ($($(#[$doc:meta])* $code:ident = $status:ident, $name:literal;)*) => {
        /// What went wrong, as the `code` of an error's body says it. docs/api.md describes
        /// each; a name never changes once released.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $($(#[$doc])* $code,)*
        }

        impl ErrorCode {
            /// Every code, in the order of their discriminants.
            pub const ALL: &[ErrorCode] = &[$(ErrorCode::$code,)*];

            /// Its name on the wire.
            pub fn name(self) -> &'static str {
                match self {
                    $(ErrorCode::$code => $name,)*
                }
            }

            /// The HTTP status that goes with it.
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
    /// The body was cut off.
    IncompleteBody = BAD_REQUEST, "incomplete_body";
    /// A field that has to be there is not.
    MissingParameter = BAD_REQUEST, "missing_parameter";
    /// A field has a wrong type or value.
    InvalidValue = BAD_REQUEST, "invalid_value";
    /// The server does not do this.
    UnsupportedParameter = BAD_REQUEST, "unsupported_parameter";
    /// No field has this name.
    UnknownParameter = BAD_REQUEST, "unknown_parameter";
    /// The context can't hold prompt and output.
    ContextLengthExceeded = BAD_REQUEST, "context_length_exceeded";
    /// The whole KV pool can't hold prompt and output.
    KvPoolTooSmall = BAD_REQUEST, "kv_pool_too_small";
    /// The objective can't be met on an empty machine.
    SloInfeasible = BAD_REQUEST, "slo_infeasible";
    /// Another model is served.
    ModelNotFound = NOT_FOUND, "model_not_found";
    /// There is no such route.
    UnknownUrl = NOT_FOUND, "unknown_url";
    /// The route takes other methods.
    MethodNotAllowed = METHOD_NOT_ALLOWED, "method_not_allowed";
    /// The body came too slowly.
    BodyTimeout = REQUEST_TIMEOUT, "body_timeout";
    /// The body is longer than its bound.
    BodyTooLarge = PAYLOAD_TOO_LARGE, "body_too_large";
    /// The body is compressed.
    UnsupportedEncoding = UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding";
    /// The model's logits were not finite.
    NumericalError = INTERNAL_SERVER_ERROR, "numerical_error";
    /// The engine failed.
    EngineError = INTERNAL_SERVER_ERROR, "engine_error";
    /// The API failed.
    InternalError = INTERNAL_SERVER_ERROR, "internal_error";
    /// The request was cancelled.
    Cancelled = INTERNAL_SERVER_ERROR, "cancelled";
    /// The queue is at its bound.
    QueueFull = SERVICE_UNAVAILABLE, "queue_full";
    /// There is no engine yet.
    Starting = SERVICE_UNAVAILABLE, "starting";
    /// The engine takes no requests.
    Unavailable = SERVICE_UNAVAILABLE, "unavailable";
    /// The requests before it would make its first token too late.
    SloTooLate = SERVICE_UNAVAILABLE, "slo_too_late";
    /// The daemon ends.
    ShuttingDown = SERVICE_UNAVAILABLE, "shutting_down";
    /// The answer was not complete in time.
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
    fn a_code_is_found_at_its_own_place() {
        for (place, &code) in ErrorCode::ALL.iter().enumerate() {
            assert_eq!(code as usize, place);
        }
    }
}
