//! One measurement of the offline analyzer.

use serde::{Deserialize, Serialize};

use super::cost_model::{LatencyModel, Work, prefill_attended};
use crate::protocol::ModelRole;

/// Draft calls of one measured drafting round without catch-up; with catch-up it is one.
/// Rounds have several calls in the engine, too: only the first comes after a pass of the target.
pub const ROUND_CALLS: u32 = 4;

/// One measurement: the median time of one kind of pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfilePoint {
    /// Which model ran.
    pub model: ModelRole,
    /// Decode and verification tokens.
    pub rows: u32,
    /// Sequences that they belong to; divides `rows`.
    pub sequences: u32,
    /// Context of each of those sequences.
    pub context_tokens: u32,
    /// Prefill tokens of one more sequence in the same pass; draft: catch-up tokens of the
    /// first sequence.
    pub prefill_tokens: u32,
    /// Tokens of that sequence that stood before them.
    pub prefill_done_tokens: u32,
    /// Median time.
    pub micros: f64,
}

impl ProfilePoint {
    /// Draft model: rounds that its calls began, per call; of the target there are none.
    pub fn rounds_per_call(&self) -> f64 {
        match self.model {
            ModelRole::Target => 0.0,
            ModelRole::Draft if self.prefill_tokens > 0 => 1.0,
            ModelRole::Draft => 1.0 / f64::from(ROUND_CALLS),
        }
    }

    /// What `model` says it takes.
    pub fn predicted_us(&self, model: &LatencyModel) -> f64 {
        model.micros(&self.work()) + self.rounds_per_call() * model.terms().round_us
    }

    /// The pass's work, as the model sees it.
    pub fn work(&self) -> Work {
        let context = u64::from(self.context_tokens);
        Work {
            rows: self.rows,
            context_tokens: context * u64::from(self.sequences),
            attended_tokens: context * u64::from(self.rows),
            prefill_tokens: self.prefill_tokens,
            prefill_attended_tokens: prefill_attended(self.prefill_done_tokens, self.prefill_tokens),
        }
    }
}
