//! Submission and admission of requests: the API's side of the engine.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;

use super::{RequestId, SamplingParams, Slo, TokenEvent, TokenId};

/// A validated request that the API submits; intake assigns its id.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Prompt tokens; at least one, and within the context together with `max_tokens`.
    pub prompt: Arc<[TokenId]>,
    /// Most output tokens; at least one.
    pub max_tokens: u32,
    /// Sampling parameters.
    pub sampling: Arc<SamplingParams>,
    /// Stop tokens.
    pub stop_tokens: Arc<[TokenId]>,
    /// Latency objectives.
    pub slo: Slo,
    /// Index of the request's class in the config.
    pub class: u8,
    /// What attaining its objectives is worth beside other requests, 0 to 1000; 1 by default.
    pub weight: f32,
    /// Arrival at the socket, on the engine's clock.
    pub arrival: super::Micros,
}

/// Why a submission was rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// The queue is full.
    #[error("the queue is full: {actual} {what} of at most {limit}")]
    QueueFull {
        /// `requests` or `prompt tokens`.
        what: &'static str,
        /// Limit of the queue.
        limit: u64,
        /// Size that the queue would have reached.
        actual: u64,
    },
    /// The daemon is draining or has failed.
    #[error("the server is shutting down")]
    Unavailable,
    /// Prompt and output exceed the whole KV pool.
    #[error("prompt and output need {needed} KV blocks and the pool has {total}")]
    TooLarge {
        /// Blocks for prompt and `max_tokens`.
        needed: u64,
        /// Blocks in the pool.
        total: u64,
    },
    /// The objective cannot be met even on an idle machine, and the config rejects such requests.
    #[error("{0}")]
    Infeasible(String),
    /// The queue would delay the first token past its objective, and the config rejects such requests.
    #[error("with the requests before it, {0}")]
    TooLate(String),
}

/// An admitted request. Dropping its events cancels it at the next step that yields tokens;
/// ending it by its id takes effect at the next step boundary.
#[derive(Debug)]
pub struct Generation {
    /// Id of the request.
    pub id: RequestId,
    /// Event stream. Bounded by construction: at most `max_tokens` non-empty events and a terminal one.
    pub events: UnboundedReceiver<TokenEvent>,
}
