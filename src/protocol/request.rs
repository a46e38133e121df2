//! Requests and their events, in tokens.

use std::sync::Arc;

use super::{Micros, RequestId, SamplingParams, TokenId};

/// Latency objectives of a request (docs/slo.md). `None` is unbounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Slo {
    /// TTFT: arrival at the socket to first token.
    pub ttft: Option<Micros>,
    /// TPOT: mean time per output token after the first.
    pub tpot: Option<Micros>,
}

impl Slo {
    /// Whether a finished request attained its objectives (docs/slo.md). A single-token output
    /// has no TPOT and attains any.
    pub fn is_attained_by(&self, summary: &RequestSummary) -> bool {
        self.ttft.is_none_or(|bound| summary.ttft() <= bound)
            && self.tpot.is_none_or(|bound| summary.tpot().is_none_or(|seen| seen <= bound))
    }
}

/// A validated request, the scheduler's input.
#[derive(Clone, Debug)]
pub struct GenerationRequest {
    /// Id of the request.
    pub id: RequestId,
    /// Prompt tokens; at least one.
    pub prompt: Arc<[TokenId]>,
    /// Most output tokens; at least one. Prompt plus output fit in the context.
    pub max_tokens: u32,
    /// Sampling parameters.
    pub sampling: Arc<SamplingParams>,
    /// Stop tokens: the model's end-of-sequence tokens (unless `ignore_eos`) and the caller's
    /// stop ids. The stop token itself is part of the output stream; the API drops it from
    /// the text.
    pub stop_tokens: Arc<[TokenId]>,
    /// Latency objectives.
    pub slo: Slo,
    /// Index of the request's class in the config; lower is more urgent.
    pub class: u8,
    /// What attaining its objectives is worth beside other requests, 0 to 1000; 1 by default.
    pub weight: f32,
    /// Arrival at the socket.
    pub arrival: Micros,
}

/// Why an output ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// A stop token, an end token or a stop string.
    Stop,
    /// `max_tokens` or the context length.
    Length,
}

impl FinishReason {
    /// Name in the API.
    pub fn name(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        }
    }
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestFailure {
    /// The client disconnected or cancelled.
    #[error("the request was cancelled")]
    Cancelled,
    /// The first token could not be in time any more, and the config rejects such requests. No
    /// token was sent.
    #[error(
        "the first token can no longer meet the TTFT objective of {} ms: the requests before it take too long",
        ttft.as_millis_f64()
    )]
    Late {
        /// The objective.
        ttft: Micros,
    },
    /// No step could take the request in within the time that it may wait. No token was sent.
    #[error(
        "the server is overloaded: the request waited {} ms for its turn, the most it may (scheduler.queue_wait_ms_max)",
        wait_max.as_millis_f64()
    )]
    Overdue {
        /// The longest wait.
        wait_max: Micros,
    },
    /// The drain timeout of a shutdown has passed.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The model returned NaN or infinity for this request.
    #[error("the model produced a number that is not finite")]
    Numerical,
    /// The request's constraint allows no token.
    #[error(
        "the description of the output allows no further token here: it leads to a dead end, or it is too \
         complex for the limits of the grammar's parser"
    )]
    NothingAllowed,
    /// The device or an engine actor failed; the daemon is no longer live.
    #[error("the engine failed: {0}")]
    Engine(String),
}

/// Why a request is ended early, from outside the scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Termination {
    /// The output completed a stop string. Counts as a success.
    Stopped,
    /// The caller is gone or the engine cannot continue.
    Failed(RequestFailure),
}

/// Speculation statistics of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct SpeculationStats {
    /// Verification steps: target steps that yielded tokens after the prefill.
    pub steps: u32,
    /// Draft tokens proposed by the draft model.
    pub drafted: u32,
    /// Draft tokens verified by the target.
    pub verified: u32,
    /// Draft tokens accepted: equal to the target's own samples.
    pub accepted: u32,
    /// Verification steps by how many drafts they accepted, up to the most that one did.
    pub steps_by_accepted: Vec<u32>,
}

impl SpeculationStats {
    /// Counts one verification step.
    pub fn record(&mut self, drafted: u32, verified: u32, accepted: u32) {
        self.steps += 1;
        self.drafted += drafted;
        self.verified += verified;
        self.accepted += accepted;
        let bucket = accepted as usize;
        if self.steps_by_accepted.len() <= bucket {
            self.steps_by_accepted.resize(bucket + 1, 0);
        }
        self.steps_by_accepted[bucket] += 1;
    }
}

/// Times of one finished request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RequestTimes {
    /// Arrival at the socket.
    pub arrival: Micros,
    /// Start of the first step that included the request.
    pub scheduled: Micros,
    /// Time of the first token.
    pub first_token: Micros,
    /// Time of the last token.
    pub last_token: Micros,
}

/// Final statistics of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RequestSummary {
    /// Prompt length in tokens.
    pub prompt_tokens: u32,
    /// Prompt tokens that the prefix cache held when the request first ran.
    pub cached_tokens: u32,
    /// Output tokens, including the stop token.
    pub output_tokens: u32,
    /// Timestamps.
    pub times: RequestTimes,
    /// Speculation statistics.
    pub speculation: SpeculationStats,
    /// Number of preemptions, each followed by recompute.
    pub preemptions: u32,
}

impl RequestSummary {
    /// Queue time: arrival to the first step that included the request.
    pub fn queue_time(&self) -> Micros {
        self.times.scheduled.saturating_sub(self.times.arrival)
    }

    /// Arrival to first token.
    pub fn ttft(&self) -> Micros {
        self.times.first_token.saturating_sub(self.times.arrival)
    }

    /// Mean time per output token after the first; `None` for a single token.
    pub fn tpot(&self) -> Option<Micros> {
        let gaps = u64::from(self.output_tokens.checked_sub(1).filter(|&gaps| gaps > 0)?);
        Some(Micros(self.times.last_token.saturating_sub(self.times.first_token).0 / gaps))
    }
}

/// Events of one request: any number of `Tokens`, then exactly one terminal event
/// (`Finished` or `Failed`).
#[derive(Clone, Debug, PartialEq)]
pub enum TokenEvent {
    /// The next tokens, in order, each once; never empty.
    Tokens(Vec<TokenId>),
    /// The output is complete.
    Finished {
        /// Why the output ended.
        reason: FinishReason,
        /// Final statistics.
        summary: RequestSummary,
    },
    /// The request failed before its output was complete.
    Failed(RequestFailure),
}

impl TokenEvent {
    /// Whether this is the last event.
    pub fn is_terminal(&self) -> bool {
        !matches!(self, TokenEvent::Tokens(_))
    }
}
