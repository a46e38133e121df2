//! One request in flight: engine events in, text deltas out, cancelled on drop.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use super::access::Outcome;
use super::backend::Backend;
use super::error::ApiError;
use super::error_code::ErrorCode;
use super::output::{Output, OutputEnd};
use crate::protocol::{FinishReason, Generation, RequestFailure, RequestId, RequestSummary, TokenEvent};

/// The next event of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum AnswerProgress {
    /// More text, never empty.
    Text(String),
    /// The answer is complete. Terminal.
    Done(Completion),
    /// The answer failed before it was complete. Terminal.
    Failed(ApiError),
}

/// The end of a complete answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The remaining text, possibly empty.
    pub text: String,
    /// Why the output ended, as the API reports it.
    pub reason: FinishReason,
    /// Output tokens up to the API's own end of the output, such as a stop string.
    pub output_tokens: u32,
    /// The engine's statistics; `None` if it failed after the last token.
    pub summary: Option<RequestSummary>,
}

/// An admitted request. Dropping it before its terminal event cancels the request, whether
/// because of a disconnect, a deadline or a failed write.
#[derive(Debug)]
pub struct Answer<B: Backend> {
    backend: Arc<B>,
    id: RequestId,
    events: UnboundedReceiver<TokenEvent>,
    output: Output,
    /// For the access log.
    outcome: Outcome,
    /// When the request times out.
    deadline: Instant,
    /// Whether the engine has sent the terminal event.
    terminal: bool,
}

impl<B: Backend> Answer<B> {
    /// Wraps an admitted request.
    pub fn new(
        backend: Arc<B>,
        generation: Generation,
        output: Output,
        outcome: Outcome,
        deadline: Instant,
    ) -> Answer<B> {
        let Generation { id, events } = generation;
        Answer { backend, id, events, output, outcome, deadline, terminal: false }
    }

    /// The request's id.
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// Output tokens so far, as [`Completion::output_tokens`].
    pub fn output_tokens(&self) -> u32 {
        self.output.tokens()
    }

    /// Waits for the next progress. Must not be called after [`AnswerProgress::Done`] or
    /// [`AnswerProgress::Failed`]. Cancel-safe.
    pub async fn next(&mut self) -> AnswerProgress {
        let progress = self.progress().await;
        match &progress {
            AnswerProgress::Text(_) => {}
            AnswerProgress::Done(completion) => self.note_done(completion),
            AnswerProgress::Failed(error) => self.outcome.note(|seen| seen.reason = Some(error.code.name())),
        }
        progress
    }

    fn note_done(&self, completion: &Completion) {
        self.outcome.note(|seen| {
            seen.reason = Some(completion.reason.name());
            if let Some(summary) = &completion.summary {
                seen.cached_tokens = Some(summary.cached_tokens);
                seen.ttft_ms = Some(summary.ttft().as_millis_f64());
                seen.tpot_ms = summary.tpot().map(|tpot| tpot.as_millis_f64());
            }
        });
    }

    async fn progress(&mut self) -> AnswerProgress {
        loop {
            let Ok(event) = tokio::time::timeout_at(self.deadline, self.events.recv()).await else {
                return AnswerProgress::Failed(timeout());
            };
            match event {
                Some(TokenEvent::Tokens(tokens)) => {
                    let text = self.push(&tokens);
                    if !text.is_empty() {
                        return AnswerProgress::Text(text);
                    }
                }
                Some(TokenEvent::Finished { reason, summary }) => {
                    self.terminal = true;
                    return self.done(reason, Some(summary));
                }
                Some(TokenEvent::Failed(failure)) => {
                    self.terminal = true;
                    return self.failed(failure);
                }
                None => {
                    return self.failed(RequestFailure::Engine(
                        "the request was dropped without a terminal event".to_owned(),
                    ));
                }
            }
        }
    }

    fn push(&mut self, tokens: &[crate::protocol::TokenId]) -> String {
        let was_open = self.output.end().is_none();
        let text = self.output.push(tokens);
        if was_open && self.output.end() == Some(OutputEnd::StopString) {
            self.backend.finish(self.id);
        }
        text
    }

    fn done(&mut self, reason: FinishReason, summary: Option<RequestSummary>) -> AnswerProgress {
        let text = self.output.finish();
        let (reason, output_tokens) = (self.output.finish_reason(reason), self.output.tokens());
        AnswerProgress::Done(Completion { text, reason, output_tokens, summary })
    }

    /// Ends the answer after an engine failure. If the output was already complete, the
    /// caller has lost nothing and the answer counts as done.
    fn failed(&mut self, failure: RequestFailure) -> AnswerProgress {
        match self.output.end() {
            Some(_) => self.done(FinishReason::Stop, None),
            None => AnswerProgress::Failed(failure.into()),
        }
    }
}

impl<B: Backend> Drop for Answer<B> {
    fn drop(&mut self) {
        let output_tokens = self.output.tokens();
        self.outcome.note(|seen| seen.output_tokens = Some(output_tokens));
        if !self.terminal {
            self.backend.cancel(self.id);
        }
    }
}

fn timeout() -> ApiError {
    let message = "the response was not complete within the server's request timeout";
    ApiError::new(ErrorCode::RequestTimeout, message)
}
