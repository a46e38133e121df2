//! Request ids and the access log: one line per request, without a word of its text.

use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use tokio::time::Instant;

use super::error_code::ErrorCode;
use super::probes::is_probe;
use super::watched_body::{BodyWatch, WatchedBody};

/// Carries the id of a request, in both directions.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest id that is taken from a client, in bytes.
const ID_BYTES_MAX: usize = 128;

/// Longest path in the log, in characters.
const PATH_CHARACTERS_MAX: usize = 200;

/// What a generation request has come to. In the request's extensions; the handler fills it in.
#[derive(Clone, Debug, Default)]
pub struct Outcome(Arc<Mutex<Generated>>);

/// The figures of a generation request in its line.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generated {
    /// Prompt tokens.
    pub prompt_tokens: Option<u32>,
    /// Prompt tokens that the prefix cache held.
    pub cached_tokens: Option<u32>,
    /// Output tokens.
    pub output_tokens: Option<u32>,
    /// Arrival to first token, in milliseconds.
    pub ttft_ms: Option<f64>,
    /// Mean time per output token after the first, in milliseconds.
    pub tpot_ms: Option<f64>,
    /// Why the output ended: a finish reason or an error code. `None` while it has not.
    pub reason: Option<&'static str>,
}

impl Outcome {
    /// Changes the figures.
    pub fn note(&self, change: impl FnOnce(&mut Generated)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn get(&self) -> Generated {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Gives a request its id, returns it in the response, and logs the request when the last of its
/// response was sent or its client has gone.
pub async fn trace(mut request: Request, next: Next) -> Response {
    let id = id_of(request.headers());
    let outcome = Outcome::default();
    request.extensions_mut().insert(outcome.clone());
    let mut line = Line::new(&request, &id, outcome);
    let mut response = next.run(request).await;
    line.status = Some(response.status());
    line.error = response.extensions().get::<ErrorCode>().copied();
    response.headers_mut().insert(REQUEST_ID, id);
    response.map(|body| Body::new(WatchedBody::new(body, line)))
}

/// The client's id if it is a short visible text, else a new one.
fn id_of(headers: &HeaderMap) -> HeaderValue {
    let given = headers.get(REQUEST_ID).filter(|id| {
        (1..=ID_BYTES_MAX).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
    });
    given.cloned().unwrap_or_else(|| {
        // Unpredictable and unique, from the random keys of the standard library's hasher.
        let random = || std::hash::RandomState::new().build_hasher().finish();
        HeaderValue::try_from(format!("{:016x}{:016x}", random(), random())).expect("hexadecimal digits")
    })
}

/// The line of one request; written when dropped.
#[derive(Debug)]
struct Line {
    id: String,
    method: Method,
    path: String,
    arrival: Instant,
    /// `None` until there is a response.
    status: Option<StatusCode>,
    error: Option<ErrorCode>,
    /// Whether the whole response was handed to the connection.
    complete: bool,
    outcome: Outcome,
}

impl Line {
    fn new(request: &Request, id: &HeaderValue, outcome: Outcome) -> Line {
        Line {
            id: String::from_utf8_lossy(id.as_bytes()).into_owned(),
            method: request.method().clone(),
            path: request.uri().path().chars().take(PATH_CHARACTERS_MAX).collect(),
            arrival: Instant::now(),
            status: None,
            error: None,
            // the response to a HEAD has no body to be taken
            complete: *request.method() == Method::HEAD,
            outcome,
        }
    }

    /// Why the request ended; `None` if there is no more to say than its status.
    fn reason(&self, generated: &Generated) -> Option<&'static str> {
        match (self.error, generated.reason) {
            (Some(error), _) => Some(error.name()),
            (None, Some(reason)) => Some(reason),
            (None, None) => (!self.complete).then_some("disconnected"),
        }
    }
}

/// The body is dropped before the line is written, and with it an answer that was not finished.
impl BodyWatch for Line {
    fn ended(&mut self) {
        self.complete = true;
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let generated = self.outcome.get();
        let reason = self.reason(&generated);
        let duration_ms = self.arrival.elapsed().as_micros() as f64 / 1e3;
        /// `event!` takes its level as a constant.
        macro_rules! write_line {
            ($level:ident) => {
                tracing::$level!(
                    request_id = self.id,
                    method = self.method.as_str(),
                    path = self.path,
                    status = self.status.map(|status| status.as_u16()),
                    prompt_tokens = generated.prompt_tokens,
                    cached_tokens = generated.cached_tokens,
                    output_tokens = generated.output_tokens,
                    ttft_ms = generated.ttft_ms,
                    tpot_ms = generated.tpot_ms,
                    duration_ms,
                    reason,
                    "request"
                )
            };
        }
        if is_probe(&self.path) {
            write_line!(debug);
        } else {
            write_line!(info);
        }
    }
}
