//! Reading batch files and sending their requests.

use std::io::{BufRead, Read};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::client::{Client, ClientError};

/// Longest line, in bytes: the largest body limit that a daemon can be configured with.
const LINE_BYTES_MAX: u64 = 64 << 20;
/// Retries of a request when the queue is full.
const RETRIES_MAX: u32 = 20;
/// Upper bound of the delay before a retry.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(10);

/// A request line of the file.
pub struct Item {
    /// Line number from 1.
    pub line: u64,
    /// Offset of its end in the file, in bytes.
    pub end_byte: u64,
    /// The request, or why the line is invalid.
    pub request: Result<Request, String>,
}

/// A request to send.
pub struct Request {
    path: &'static str,
    body: Value,
}

/// Reads a file line by line, skipping empty lines. A read error or an overlong line is the
/// last item.
pub struct Lines<R> {
    reader: R,
    line: u64,
    end_byte: u64,
    ended: bool,
}

impl<R: BufRead> Lines<R> {
    /// Creates an iterator over the lines of `reader`.
    pub fn new(reader: R) -> Lines<R> {
        Lines { reader, line: 0, end_byte: 0, ended: false }
    }

    /// Reads the next line; `None` at the end of the file.
    fn read(&mut self) -> Option<Result<String, String>> {
        let mut bytes = Vec::new();
        self.line += 1;
        match self.reader.by_ref().take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut bytes) {
            Ok(0) => return None,
            Ok(length) => self.end_byte += length as u64,
            Err(error) => {
                self.ended = true;
                return Some(Err(format!("reading the file failed: {error}")));
            }
        }
        if bytes.len() as u64 > LINE_BYTES_MAX {
            self.ended = true;
            return Some(Err(format!(
                "the line is longer than the limit of {LINE_BYTES_MAX} bytes; the rest of the file is skipped"
            )));
        }
        Some(String::from_utf8(bytes).map_err(|_| "the line is not UTF-8".to_owned()))
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        while !self.ended {
            let text = self.read()?;
            if text.as_ref().is_ok_and(|text| text.trim().is_empty()) {
                continue;
            }
            let request = text.and_then(|text| parse(&text));
            return Some(Item { line: self.line, end_byte: self.end_byte, request });
        }
        None
    }
}

fn parse(text: &str) -> Result<Request, String> {
    let body: Value = serde_json::from_str(text).map_err(|error| format!("the line is not JSON: {error}"))?;
    let has = |key: &str| body.get(key).is_some();
    if has("stream") {
        return Err("stream is not supported in batches; remove it".to_owned());
    }
    match (has("messages"), has("prompt")) {
        (true, false) => Ok(Request { path: "/v1/chat/completions", body }),
        (false, true) => Ok(Request { path: "/v1/completions", body }),
        _ => Err("the line must have either messages or prompt".to_owned()),
    }
}

/// Sends a request; returns the response or an error object. Retries a full queue.
pub async fn answer(client: &Client, model: &str, request: Result<Request, String>) -> Result<Value, Value> {
    let mut request = request.map_err(|message| json!({ "message": message, "type": "invalid_line" }))?;
    if request.body.get("model").is_none() {
        request.body["model"] = json!(model);
    }
    for _ in 0..RETRIES_MAX {
        match client.post(request.path, &request.body).await {
            Err(error) => match error.retry_after() {
                Some(wait) => tokio::time::sleep(wait.min(RETRY_WAIT_MAX)).await,
                None => return Err(error_object(&error)),
            },
            Ok(response) => return Ok(response),
        }
    }
    client.post(request.path, &request.body).await.map_err(|error| error_object(&error))
}

/// The daemon's error object, or one in the same format.
fn error_object(error: &ClientError) -> Value {
    if let ClientError::Refused { body: Some(body), .. } = error
        && let Some(object) = body.get("error")
    {
        return object.clone();
    }
    json!({ "message": error.to_string(), "type": "client_error" })
}
