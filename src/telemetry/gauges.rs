//! Gauges of the engine.

use serde::{Deserialize, Serialize};

/// Current state of the engine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gauges {
    /// Requests in the running set.
    pub running: u64,
    /// Requests waiting for admission to the running set.
    pub waiting: u64,
    /// Prompt tokens of the waiting requests.
    pub waiting_prompt_tokens: u64,
    /// KV pools, one per model.
    pub kv: Vec<KvGauge>,
    /// Whether a draft model is active; without one, decoding is plain.
    pub speculation_enabled: bool,
}

/// Usage of one KV pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvGauge {
    /// `target` or `draft`.
    pub model: String,
    /// Blocks held by requests.
    pub blocks_held: u64,
    /// Total blocks in the pool.
    pub blocks_total: u64,
}
