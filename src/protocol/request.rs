//! What a caller asks for and what it gets back, in tokens.

use std::sync::Arc;

use super::{Micros, RequestId, SamplingParams, TokenId};

/// A request's latency objectives (docs/slo.md). `None`: no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Slo {
    /// Arrival at the socket to first token.
    pub ttft: Option<Micros>,
    /// Mean time per output token after the first.
    pub tpot: Option<Micros>,
}

impl Slo {
    /// Whether a finished request met all its objectives (docs/slo.md). A single token has
    /// no time per token, and meets that objective.
    pub fn is_attained_by(&self, summary: &RequestSummary) -> bool {
        self.ttft.is_none_or(|bound| summary.ttft() <= bound)
            && self.tpot.is_none_or(|bound| summary.tpot().is_none_or(|seen| seen <= bound))
    }
}

/// A validated request as the scheduler takes it.
#[derive(Clone, Debug)]
pub struct GenerationRequest {
    /// Its name.
    pub id: RequestId,
    /// The prompt; at least one token.
    pub prompt: Arc<[TokenId]>,
    /// At most this many tokens are generated; at least one. Prompt and output
    /// together fit the context.
    pub max_tokens: u32,
    /// How each token is chosen.
    pub sampling: Arc<SamplingParams>,
    /// Tokens that end the output: the model's end tokens (unless `ignore_eos`)
    /// and the caller's stop ids. The ending token itself is part of the output
    /// stream and is dropped where text is made.
    pub stop_tokens: Arc<[TokenId]>,
    /// Latency objectives.
    pub slo: Slo,
    /// Index of the request's class in the config; lower is more urgent.
    pub class: u8,
    /// When it arrived at the socket.
    pub arrival: Micros,
}

/// Why an output ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// A stop token, an end token or a stop string.
    Stop,
    /// `max_tokens` or the context's end.
    Length,
}

/// Why a request ended without an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestFailure {
    /// The caller went away or asked for it.
    #[error("the request was cancelled")]
    Cancelled,
    /// The daemon is going down and the drain time is over.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The model returned NaN or infinity for this request.
    #[error("the model produced a number that is not finite")]
    Numerical,
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

/// What speculation did for one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct SpeculationStats {
    /// Verification steps: target steps that yielded tokens after the prefill.
    pub steps: u32,
    /// Draft tokens proposed by the draft model.
    pub drafted: u32,
    /// Draft tokens given to the target.
    pub verified: u32,
    /// Draft tokens that equalled the target's own.
    pub accepted: u32,
}

/// Times of one finished request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RequestTimes {
    /// Arrival at the socket.
    pub arrival: Micros,
    /// First time that the request was part of a step.
    pub scheduled: Micros,
    /// First token.
    pub first_token: Micros,
    /// Last token.
    pub last_token: Micros,
}

/// Closing figures of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RequestSummary {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens generated, the ending token included.
    pub output_tokens: u32,
    /// Times.
    pub times: RequestTimes,
    /// Speculation.
    pub speculation: SpeculationStats,
    /// How often the request was preempted and recomputed.
    pub preemptions: u32,
}

impl RequestSummary {
    /// Arrival to the first step that the request was part of.
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

/// What the engine sends about one request: any number of `Tokens`, then exactly
/// one of the other two, then nothing (invariant 2).
#[derive(Clone, Debug, PartialEq)]
pub enum TokenEvent {
    /// The next tokens, in order, each once; never empty.
    Tokens(Vec<TokenId>),
    /// The output is complete.
    Finished {
        /// Why.
        reason: FinishReason,
        /// Closing figures.
        summary: RequestSummary,
    },
    /// There is no more output, and it is not complete.
    Failed(RequestFailure),
}

impl TokenEvent {
    /// Whether nothing may follow.
    pub fn is_terminal(&self) -> bool {
        !matches!(self, TokenEvent::Tokens(_))
    }
}
