//! Cross-origin requests, for web pages of other origins that may use the API.

use std::time::Duration;

use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, Method};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::access::REQUEST_ID;

/// How long a browser may remember that a page may use the API.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// Allows pages of `origins`, or of any origin if `*` is among them. The API uses no cookies, so
/// credentials are not allowed.
pub fn layer(origins: &[HeaderValue]) -> CorsLayer {
    let allowed = match origins.iter().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(origins.iter().cloned()),
    };
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST])
        // clients send an authorization header, which a wildcard does not cover
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([REQUEST_ID, RETRY_AFTER])
        .max_age(MAX_AGE)
}
