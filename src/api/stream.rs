//! Responses as server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::time::{Instant, timeout, timeout_at};

use super::answer::{Answer, AnswerProgress, Completion};
use super::app::ApiLimits;
use super::backend::Backend;
use super::error::ApiError;
use super::reply::{Part, Reply};
use super::request::StreamOptions;
use super::response::Envelope;

/// Keeps an idle connection open; clients skip it.
const KEEP_ALIVE: &str = ": keep-alive\n\n";

/// Terminates a complete stream.
const DONE: &str = "data: [DONE]\n\n";

/// A streamed answer; writes once per engine step.
struct EventStream<B: Backend> {
    answer: Answer<B>,
    reply: Reply,
    envelope: Envelope,
    options: StreamOptions,
    /// Longest silence before a comment.
    keep_alive: Duration,
    /// The first progress, if [`respond`] has got it.
    ready: Option<AnswerProgress>,
    /// Whether a chunk has been written.
    opened: bool,
    /// Whether the last event has been written.
    closed: bool,
}

/// Streams `answer`. A request that fails at once gets an error status; one that waits longer
/// for its first text gets its headers meanwhile, so that the client knows it was taken.
///
/// # Errors
/// The failure of the answer, if it comes before the headers.
pub async fn respond<B: Backend>(
    mut answer: Answer<B>,
    reply: Reply,
    envelope: Envelope,
    options: StreamOptions,
    limits: &ApiLimits,
) -> Result<Response, ApiError> {
    let ready = match timeout(limits.stream_head_wait, answer.next()).await {
        Ok(AnswerProgress::Failed(error)) => return Err(error),
        Ok(first) => Some(first),
        Err(_) => None,
    };
    let keep_alive = limits.stream_keep_alive;
    let stream =
        EventStream { answer, reply, envelope, options, keep_alive, ready, opened: false, closed: false };
    let events = futures::stream::unfold(stream, |mut stream| async {
        let bytes = stream.next().await?;
        Some((Ok::<_, Infallible>(bytes), stream))
    });
    let headers = [(CONTENT_TYPE, "text/event-stream; charset=utf-8"), (CACHE_CONTROL, "no-cache")];
    Ok((headers, Body::from_stream(events)).into_response())
}

impl<B: Backend> EventStream<B> {
    async fn next(&mut self) -> Option<Bytes> {
        if self.closed {
            return None;
        }
        let silent_until = Instant::now() + self.keep_alive;
        loop {
            let progress = match self.ready.take() {
                Some(progress) => progress,
                None => match timeout_at(silent_until, self.answer.next()).await {
                    Ok(progress) => progress,
                    Err(_) => return Some(Bytes::from_static(KEEP_ALIVE.as_bytes())),
                },
            };
            let events = match progress {
                AnswerProgress::Text(text) => {
                    let parts = self.reply.push(&text);
                    self.parts(parts)
                }
                AnswerProgress::Done(completion) => self.final_events(&completion),
                AnswerProgress::Failed(error) => {
                    self.closed = true;
                    event(&error.body())
                }
            };
            // text that may become a call is held back
            if !events.is_empty() {
                return Some(Bytes::from(events));
            }
        }
    }

    /// An event for each part.
    fn parts(&mut self, parts: Vec<Part>) -> String {
        let mut events = String::new();
        for part in parts {
            let first = !std::mem::replace(&mut self.opened, true);
            events += &event(&self.open_usage(self.envelope.chunk(&part, first)));
        }
        events
    }

    /// The last text with the finish reason, the usage if requested, and the end marker.
    /// The last chunk carries the metrics.
    fn final_events(&mut self, completion: &Completion) -> String {
        self.closed = true;
        let parts = self.reply.finish(&completion.text);
        let mut events = self.parts(parts);
        if !self.opened {
            events += &self.parts(vec![Part::Content(String::new())]);
        }
        let calls = self.reply.has_calls();
        let mut last = self.open_usage(self.envelope.last_chunk(completion.reason, calls));
        if self.options.include_usage {
            events += &event(&last);
            last = self.envelope.usage_chunk(completion);
        }
        last["metrics"] = self.envelope.metrics(completion.summary.as_ref());
        events + &event(&last) + DONE
    }

    /// If usage was requested, sets it on a chunk that is not the last: to null, or to the usage
    /// so far if every chunk is to carry that.
    fn open_usage(&self, mut chunk: Value) -> Value {
        if self.options.include_usage {
            chunk["usage"] = match self.options.continuous_usage {
                true => self.envelope.usage(self.answer.output_tokens()),
                false => Value::Null,
            };
        }
        chunk
    }
}

fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}
