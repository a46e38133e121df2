//! Client of the daemon's API over its Unix socket.
//!
//! Each request has its own connection. Dropping it cancels the request, and local
//! connections cost only tens of microseconds.

mod error;
mod sse;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST, RETRY_AFTER};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::notice::StartNotice;
pub use error::ClientError;
pub use sse::{EVENT_BYTES_MAX, SseError, SseParser};

const REQUEST_ID: &str = "x-request-id";
/// Longest response body, in bytes.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout for health, metrics and model lists, which are served from memory.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle timeout of a generation: slightly above the daemon's default request timeout.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(660);
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const READY_POLL: Duration = Duration::from_millis(20);
/// A starting daemon that says nothing new for so long is taken to hang. Some phases, such as
/// reading many gigabytes of weights, take minutes.
const STALL_TIMEOUT: Duration = Duration::from_secs(600);
/// Poll interval while a daemon is starting; it may be profiling its machine.
const STARTING_POLL: Duration = Duration::from_millis(100);

/// Client of one daemon.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Creates a client for `socket`; it connects on use.
    pub fn new(socket: &Path) -> Client {
        Client { socket: socket.to_owned() }
    }

    /// Sends a GET and returns the body.
    ///
    /// # Errors
    /// [`ClientError`], including for any status other than success.
    pub async fn get(&self, path: &str) -> Result<String, ClientError> {
        let response = self.send(Method::GET, path, None, PROBE_TIMEOUT).await?;
        let bytes = read_whole(response, PROBE_TIMEOUT).await?;
        String::from_utf8(bytes.to_vec()).map_err(ClientError::protocol)
    }

    /// Sends a GET and returns the JSON response.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn get_json(&self, path: &str) -> Result<Value, ClientError> {
        serde_json::from_str(&self.get(path).await?).map_err(ClientError::protocol)
    }

    /// Sends a POST of `body` and returns the JSON response.
    ///
    /// # Errors
    /// [`ClientError`], including for any status other than success.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        Ok(self.post_with_id(path, body).await?.body)
    }

    /// As [`post`](Self::post), with status and request id.
    ///
    /// # Errors
    /// As [`post`](Self::post).
    pub async fn post_with_id(&self, path: &str, body: &Value) -> Result<Answered, ClientError> {
        let response = self.send(Method::POST, path, Some(body), ANSWER_TIMEOUT).await?;
        let (status, request_id) = (response.status().as_u16(), request_id(&response));
        let bytes = read_whole(response, ANSWER_TIMEOUT).await?;
        let body = serde_json::from_slice(&bytes).map_err(ClientError::protocol)?;
        Ok(Answered { status, request_id, body })
    }

    /// Sends a POST of `body` and returns the event stream.
    ///
    /// # Errors
    /// [`ClientError`], including for any status other than success.
    pub async fn stream(&self, path: &str, body: &Value) -> Result<EventStream, ClientError> {
        let response = self.send(Method::POST, path, Some(body), ANSWER_TIMEOUT).await?;
        Ok(EventStream {
            body: response.into_body(),
            parser: SseParser::default(),
            events: VecDeque::new(),
            done: false,
        })
    }

    /// Like [`get_json`](Self::get_json), but waits for a daemon that is still starting, as long
    /// as it makes progress, and tells the user on the terminal what it is doing.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Timeout`] if the start makes no progress for ten minutes.
    pub async fn get_json_once_started(&self, path: &str) -> Result<Value, ClientError> {
        self.once_started(path, STALL_TIMEOUT).await
    }

    async fn once_started(&self, path: &str, stall_timeout: Duration) -> Result<Value, ClientError> {
        let mut notice = StartNotice::new();
        let mut phase = String::new();
        let mut since = tokio::time::Instant::now();
        loop {
            let error = match self.get_json(path).await {
                Err(error) if error.is_starting() => error,
                answer => return answer,
            };
            let ClientError::Refused { message, .. } = error else { return Err(error) };
            if message != phase {
                notice.show(&message);
                (phase, since) = (message, tokio::time::Instant::now());
            } else if since.elapsed() > stall_timeout {
                return Err(ClientError::Timeout { what: "starting", after: stall_timeout });
            }
            tokio::time::sleep(STARTING_POLL).await;
        }
    }

    /// What a daemon that is not ready says it is doing; `None` if it is ready or does not answer.
    pub async fn starting_reason(&self) -> Option<String> {
        match self.get("/health/ready").await {
            Err(ClientError::Refused { body: Some(body), .. }) => {
                body["reason"].as_str().map(ToOwned::to_owned)
            }
            _ => None,
        }
    }

    /// Returns the served model's name. Waits for a daemon that is still starting.
    ///
    /// # Errors
    /// As [`get_json_once_started`](Self::get_json_once_started).
    pub async fn model(&self) -> Result<String, ClientError> {
        let models = self.get_json_once_started("/v1/models").await?;
        let name = models.pointer("/data/0/id").and_then(Value::as_str);
        name.map(ToOwned::to_owned).ok_or_else(|| ClientError::protocol("/v1/models lists no model"))
    }

    /// Waits until the daemon is ready.
    ///
    /// # Errors
    /// [`ClientError::Timeout`] after a minute; errors other than
    /// "not ready" immediately.
    pub async fn wait_until_ready(&self) -> Result<(), ClientError> {
        let poll = async {
            loop {
                match self.get("/health/ready").await {
                    Ok(_) => return Ok(()),
                    Err(ClientError::Refused { status: 503, .. }) => tokio::time::sleep(READY_POLL).await,
                    Err(error) => return Err(error),
                }
            }
        };
        within(READY_TIMEOUT, "becoming ready", poll).await?
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        answer_timeout: Duration,
    ) -> Result<Response<Incoming>, ClientError> {
        let connect = within(CONNECT_TIMEOUT, "connecting", UnixStream::connect(&self.socket)).await?;
        let stream = connect.map_err(|source| ClientError::connecting(&self.socket, source))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(ClientError::protocol)?;
        // Ends with the response or when it is dropped; its errors surface at the sender.
        tokio::spawn(connection);
        let text = body.map_or_else(String::new, Value::to_string);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(text)))
            .map_err(ClientError::protocol)?;
        let sent = within(answer_timeout, "generating the response", sender.send_request(request)).await?;
        let response = sent.map_err(|error| ClientError::unanswered(&self.socket, &error))?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(response).await?) }
    }
}

/// A whole response.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    /// HTTP status, a success.
    pub status: u16,
    /// Request id assigned by the daemon (`x-request-id`).
    pub request_id: Option<String>,
    /// The JSON body.
    pub body: Value,
}

/// Events of one streamed response.
#[derive(Debug)]
pub struct EventStream {
    body: Incoming,
    parser: SseParser,
    events: VecDeque<String>,
    done: bool,
}

impl EventStream {
    /// Returns the next event; `None` after `[DONE]`.
    ///
    /// # Errors
    /// [`ClientError`]: the stream broke, stalled, carried an error or was truncated.
    pub async fn next(&mut self) -> Result<Option<Value>, ClientError> {
        while !self.done {
            if let Some(event) = self.events.pop_front() {
                return self.take(&event);
            }
            let frame = within(ANSWER_TIMEOUT, "streaming", self.body.frame()).await?;
            let frame = frame.ok_or_else(|| ClientError::protocol("the stream ended before [DONE]"))?;
            if let Ok(bytes) = frame.map_err(ClientError::protocol)?.into_data() {
                self.parser.push(&bytes, &mut self.events).map_err(ClientError::protocol)?;
            }
        }
        Ok(None)
    }

    fn take(&mut self, event: &str) -> Result<Option<Value>, ClientError> {
        if event == "[DONE]" {
            self.done = true;
            return Ok(None);
        }
        let event: Value = serde_json::from_str(event).map_err(ClientError::protocol)?;
        match event.pointer("/error/message").and_then(Value::as_str) {
            Some(message) => Err(ClientError::Protocol(message.to_owned())),
            None => Ok(Some(event)),
        }
    }
}

async fn within<F: Future>(bound: Duration, what: &'static str, future: F) -> Result<F::Output, ClientError> {
    timeout(bound, future).await.map_err(|_| ClientError::Timeout { what, after: bound })
}

async fn read_whole(response: Response<Incoming>, bound: Duration) -> Result<Bytes, ClientError> {
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect();
    let collected = within(bound, "sending the response", body).await?;
    Ok(collected.map_err(ClientError::protocol)?.to_bytes())
}

fn request_id(response: &Response<Incoming>) -> Option<String> {
    Some(response.headers().get(REQUEST_ID)?.to_str().ok()?.to_owned())
}

/// Reads the error of an unsuccessful response.
async fn refusal(response: Response<Incoming>) -> Result<ClientError, ClientError> {
    let status = response.status();
    let request_id = request_id(&response);
    let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let bytes = read_whole(response, PROBE_TIMEOUT).await?;
    let body: Option<Box<Value>> = serde_json::from_slice(&bytes).ok();
    let message =
        body.as_ref().and_then(|body| body.pointer("/error/message")?.as_str().map(ToOwned::to_owned));
    Ok(ClientError::Refused {
        status: status.as_u16(),
        message: message.unwrap_or_else(|| status.canonical_reason().unwrap_or("refused").to_owned()),
        retry_after: seconds.map(Duration::from_secs),
        body,
        request_id,
    })
}
