//! Request bodies, bounded in size and time before anything looks at them.

use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_ENCODING;
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::error::ApiError;
use super::error_code::ErrorCode;

/// Longest time from a request's headers to the end of its body.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Reads a body of at most `bytes_max` bytes. A longer one is not buffered: it is
/// refused by its declared length, or as soon as the bound is passed.
///
/// # Errors
/// 413 too long, 415 compressed, 408 too slow, 400 cut off.
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
        Ok(Err(_)) => Err(ApiError::new(ErrorCode::IncompleteBody, "the body ended before its declared end")),
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
