//! Responses as server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::time::timeout;

use super::answer::{Answer, AnswerProgress, Completion};
use super::app::ApiLimits;
use super::backend::Backend;
use super::error::ApiError;
use super::request::StreamOptions;
use super::response::Envelope;

/// Keeps an idle connection open; clients skip it.
const KEEP_ALIVE: &str = ": keep-alive\n\n";

/// Terminates a complete stream.
const DONE: &str = "data: [DONE]\n\n";

/// A streamed answer; writes once per engine step.
struct EventStream<B: Backend> {
    answer: Answer<B>,
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
    let stream = EventStream { answer, envelope, options, keep_alive, ready, opened: false, closed: false };
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
        let progress = match self.ready.take() {
            Some(progress) => progress,
            None => match timeout(self.keep_alive, self.answer.next()).await {
                Ok(progress) => progress,
                Err(_) => return Some(Bytes::from_static(KEEP_ALIVE.as_bytes())),
            },
        };
        let events = match progress {
            AnswerProgress::Text(text) => self.text(&text),
            AnswerProgress::Done(completion) => self.final_events(&completion),
            AnswerProgress::Failed(error) => {
                self.closed = true;
                event(&error.body())
            }
        };
        Some(Bytes::from(events))
    }

    fn text(&mut self, text: &str) -> String {
        let first = !std::mem::replace(&mut self.opened, true);
        event(&self.open_usage(self.envelope.chunk(text, first, None)))
    }

    /// The last text with the finish reason, the usage if requested, and the end marker.
    /// The last chunk carries the metrics.
    fn final_events(&mut self, completion: &Completion) -> String {
        self.closed = true;
        let mut events = String::new();
        if !completion.text.is_empty() || !self.opened {
            events += &self.text(&completion.text);
        }
        let mut last = self.open_usage(self.envelope.chunk("", false, Some(completion.reason)));
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
