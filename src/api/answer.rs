//! One request in flight: engine events in, pieces of text out, cancelled when dropped.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use super::backend::Backend;
use super::error::ApiError;
use super::error_code::ErrorCode;
use super::output::{Output, OutputEnd};
use crate::protocol::{FinishReason, Generation, RequestFailure, RequestId, RequestSummary, TokenEvent};

/// The next thing that happened to an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// More text, never empty.
    Text(String),
    /// The answer is complete; nothing follows.
    Done(Completion),
    /// The answer is not complete and there is no more of it.
    Failed(ApiError),
}

/// The end of a complete answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The last text, possibly empty.
    pub text: String,
    /// Why the output ended, as the API reports it.
    pub reason: FinishReason,
    /// Tokens of the output as the caller counts them.
    pub output_tokens: u32,
    /// The engine's figures; `None` if it failed between the last token and its report.
    pub summary: Option<RequestSummary>,
}

/// An admitted request. Dropping it before its end cancels the request, whichever way
/// it is dropped: a client that left, a deadline, a failed write.
#[derive(Debug)]
pub struct Answer<B: Backend> {
    backend: Arc<B>,
    id: RequestId,
    events: UnboundedReceiver<TokenEvent>,
    output: Output,
    /// When to give up.
    deadline: Instant,
    /// Whether the engine has sent its last event.
    terminal: bool,
}

impl<B: Backend> Answer<B> {
    /// Takes charge of an admitted request.
    pub fn new(backend: Arc<B>, generation: Generation, output: Output, deadline: Instant) -> Answer<B> {
        let Generation { id, events } = generation;
        Answer { backend, id, events, output, deadline, terminal: false }
    }

    /// The request's name.
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// Waits for more. After [`Progress::Done`] or [`Progress::Failed`] it must not be called.
    pub async fn next(&mut self) -> Progress {
        loop {
            let Ok(event) = tokio::time::timeout_at(self.deadline, self.events.recv()).await else {
                return Progress::Failed(timeout());
            };
            match event {
                Some(TokenEvent::Tokens(tokens)) => {
                    let text = self.push(&tokens);
                    if !text.is_empty() {
                        return Progress::Text(text);
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
                None => return self.failed(RequestFailure::Engine("it dropped the request".to_owned())),
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

    fn done(&mut self, reason: FinishReason, summary: Option<RequestSummary>) -> Progress {
        let text = self.output.finish();
        let (reason, output_tokens) = (self.output.finish_reason(reason), self.output.tokens());
        Progress::Done(Completion { text, reason, output_tokens, summary })
    }

    /// A failure after the answer's last token takes nothing from the caller.
    fn failed(&mut self, failure: RequestFailure) -> Progress {
        match self.output.end() {
            Some(_) => self.done(FinishReason::Stop, None),
            None => Progress::Failed(failure.into()),
        }
    }
}

impl<B: Backend> Drop for Answer<B> {
    fn drop(&mut self) {
        if !self.terminal {
            self.backend.cancel(self.id);
        }
    }
}

fn timeout() -> ApiError {
    let message = "the answer was not complete when the server's request timeout passed";
    ApiError::new(ErrorCode::RequestTimeout, message)
}
