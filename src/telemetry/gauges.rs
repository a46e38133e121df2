//! Momentary figures of the engine.

use serde::{Deserialize, Serialize};

/// Momentary figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gauges {
    /// Requests in the running set.
    pub running: u64,
    /// Requests that wait for a place in it.
    pub waiting: u64,
    /// Prompt tokens of those that wait.
    pub waiting_prompt_tokens: u64,
    /// One entry for each model's KV pool.
    pub kv: Vec<KvGauge>,
    /// Whether a draft model is at work; without one decoding goes on plainly.
    pub speculation_enabled: bool,
}

/// The fill of one KV pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvGauge {
    /// `target` or `draft`.
    pub model: String,
    /// Blocks held by requests.
    pub blocks_held: u64,
    /// Blocks in the pool.
    pub blocks_total: u64,
}
