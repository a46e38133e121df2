//! The lines of a batch file, and the answer to one.

use std::io::{BufRead, Read};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::client::{Client, ClientError};

/// Longest line in bytes: the largest body that a daemon can be configured to take.
const LINE_BYTES_MAX: u64 = 64 << 20;
/// How often a request that meets a full queue is sent again.
const RETRIES_MAX: u32 = 20;
/// Longest wait before the next try, whatever the daemon asks for.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(10);

/// A line of the file.
pub struct Item {
    /// Its number, from 1.
    pub line: u64,
    /// Where it ends in the file.
    pub end_byte: u64,
    /// Its request, or what is wrong with it.
    pub request: Result<Request, String>,
}

/// What to send.
pub struct Request {
    path: &'static str,
    body: Value,
}

/// Reads a file line by line, skipping empty ones; a read error or an endless line is the last item.
pub struct Lines<R> {
    reader: R,
    line: u64,
    end_byte: u64,
    ended: bool,
}

impl<R: BufRead> Lines<R> {
    /// The lines of `reader`.
    pub fn new(reader: R) -> Lines<R> {
        Lines { reader, line: 0, end_byte: 0, ended: false }
    }

    /// The next line's text, `None` at the end.
    fn read(&mut self) -> Option<Result<String, String>> {
        let mut bytes = Vec::new();
        self.line += 1;
        match self.reader.by_ref().take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut bytes) {
            Ok(0) => return None,
            Ok(length) => self.end_byte += length as u64,
            Err(error) => {
                self.ended = true;
                return Some(Err(format!("the file can't be read further: {error}")));
            }
        }
        if bytes.len() as u64 > LINE_BYTES_MAX {
            self.ended = true;
            return Some(Err(format!(
                "the line is longer than {LINE_BYTES_MAX} bytes; the rest is not read"
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
        return Err("stream is not for batches: leave it out".to_owned());
    }
    match (has("messages"), has("prompt")) {
        (true, false) => Ok(Request { path: "/v1/chat/completions", body }),
        (false, true) => Ok(Request { path: "/v1/completions", body }),
        _ => Err("the line needs either messages or prompt".to_owned()),
    }
}

/// The daemon's answer, or an error object. A full queue is waited out, up to a bound.
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

/// The daemon's own error object, or one in its shape.
fn error_object(error: &ClientError) -> Value {
    if let ClientError::Refused { body: Some(body), .. } = error
        && let Some(object) = body.get("error")
    {
        return object.clone();
    }
    json!({ "message": error.to_string(), "type": "client_error" })
}
