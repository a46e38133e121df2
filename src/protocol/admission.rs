//! What the API holds of the engine.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;

use super::{RequestId, SamplingParams, Slo, TokenEvent, TokenId};

/// A validated request on its way into the engine; intake gives it its name and arrival time.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The prompt; at least one token, fits the context together with `max_tokens`.
    pub prompt: Arc<[TokenId]>,
    /// Most tokens to generate; at least one.
    pub max_tokens: u32,
    /// Sampling.
    pub sampling: Arc<SamplingParams>,
    /// Tokens that end the output.
    pub stop_tokens: Arc<[TokenId]>,
    /// Objectives.
    pub slo: Slo,
    /// Index of the class in the config.
    pub class: u8,
    /// When the request reached the socket, on the engine's clock.
    pub arrival: super::Micros,
}

/// Why a submission was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// The queue is at its bound.
    #[error("the queue is full: {actual} {what} of at most {limit}")]
    QueueFull {
        /// `requests` or `prompt tokens`.
        what: &'static str,
        /// The bound.
        limit: u64,
        /// What it would have become.
        actual: u64,
    },
    /// The daemon drains or has failed.
    #[error("the server is shutting down")]
    Unavailable,
    /// The request can never be served: KV pool smaller than prompt and output.
    #[error("prompt and output need {needed} KV blocks and the pool has {total}")]
    TooLarge {
        /// Blocks for prompt and `max_tokens`.
        needed: u64,
        /// Blocks in the pool.
        total: u64,
    },
    /// The objective can't be met even on an empty machine, and the config says to refuse.
    #[error("{0}")]
    Infeasible(String),
    /// The requests before it would make its first token too late, and the config says to refuse.
    #[error("with the requests before it, {0}")]
    TooLate(String),
}

/// An admitted request. Dropping its events cancels it at the next step that yields tokens;
/// whoever wants that sooner ends it by its name.
#[derive(Debug)]
pub struct Generation {
    /// Its name.
    pub id: RequestId,
    /// Its events. Bounded by construction: at most `max_tokens` non-empty events and a terminal one.
    pub events: UnboundedReceiver<TokenEvent>,
}
