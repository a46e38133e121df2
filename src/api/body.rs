//! Reading request bodies within limits of size and time.

use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_ENCODING;
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::error::ApiError;
use super::error_code::ErrorCode;

/// Longest time from a request's headers to the end of its body.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Reads a body of at most `bytes_max` bytes. Longer bodies are not buffered: they are
/// rejected by their declared length, or as soon as the limit is exceeded.
///
/// # Errors
/// 413 if too long, 415 if compressed, 408 if too slow, 400 if truncated.
pub async fn read(headers: &HeaderMap, body: Body, bytes_max: usize) -> Result<Bytes, ApiError> {
    if let Some(encoding) = headers.get(CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
        let message = format!("content-encoding {encoding:?} is not supported; send plain JSON");
        return Err(ApiError::new(ErrorCode::UnsupportedEncoding, message));
    }
    let declared = body.size_hint().lower();
    if declared > bytes_max as u64 {
        return Err(too_long(bytes_max, &format!("{declared} bytes")));
    }
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, bytes_max).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_long(bytes_max, "more")),
        Ok(Err(_)) => {
            Err(ApiError::new(ErrorCode::IncompleteBody, "the body ended before its declared length"))
        }
        Err(_) => {
            let message = format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs());
            Err(ApiError::new(ErrorCode::BodyTimeout, message))
        }
    }
}

fn too_long(bytes_max: usize, actual: &str) -> ApiError {
    let message = format!("the body may be at most {bytes_max} bytes long and is {actual}");
    ApiError::new(ErrorCode::BodyTooLarge, message)
}
