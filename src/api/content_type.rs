//! Protection against web pages: over TCP, a body must be declared as JSON.
//!
//! A page of any origin may make a browser post text or a form to a server on the user's machine,
//! without asking that server first. It has to ask before it posts JSON, and CORS answers that.

use axum::body::HttpBody;
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::ApiError;
use super::error_code::ErrorCode;

/// What a connection came over. In a request's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// The Unix socket, which no browser reaches.
    Unix,
    /// TCP.
    Tcp,
}

/// Refuses a POST over TCP whose body is not declared as JSON, with 415.
pub async fn require_json(request: Request, next: Next) -> Response {
    let over_tcp = request.extensions().get() == Some(&Transport::Tcp);
    let posts_a_body = request.method() == Method::POST && !request.body().is_end_stream();
    if !over_tcp || !posts_a_body || is_json(request.headers()) {
        return next.run(request).await;
    }
    let seen = match request.headers().get(CONTENT_TYPE) {
        Some(seen) => format!("is {seen:?}"),
        None => "is missing".to_owned(),
    };
    let message = format!("content-type must be \"application/json\" and {seen}");
    ApiError::new(ErrorCode::UnsupportedContentType, message).into_response()
}

fn is_json(headers: &HeaderMap) -> bool {
    let declared = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let media_type = declared.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    let subtype = media_type.strip_prefix("application/");
    subtype.is_some_and(|subtype| subtype == "json" || subtype.ends_with("+json"))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn json_may_have_parameters_and_a_suffix() {
        let is_json = |value: &'static str| {
            is_json(&HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(value))]))
        };
        for good in ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"] {
            assert!(is_json(good), "{good}");
        }
        for bad in ["", "text/plain", "text/json", "application/jsonp", "text/plain; application/json"] {
            assert!(!is_json(bad), "{bad}");
        }
        assert!(!super::is_json(&HeaderMap::new()));
    }
}
