//! One measurement of the offline analyzer.

use serde::{Deserialize, Serialize};

use super::cost_model::{LatencyModel, Work, prefill_attended};
use crate::protocol::ModelRole;

/// Draft calls of one measured round of a draft model without catch-up; with catch-up it is one.
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
    /// Prefill tokens of one more sequence in the same pass; draft model: catch-up tokens of the
    /// first sequence; draft head: tokens of it whose hidden states are read, beside the last one.
    pub prefill_tokens: u32,
    /// Tokens of that sequence that stood before them.
    pub prefill_done_tokens: u32,
    /// Draft head: calls of the round; `None` of a model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_calls: Option<u32>,
    /// Median time of one call, in microseconds.
    pub micros: f64,
}

impl ProfilePoint {
    /// Drafter: rounds that its calls began, per call; of the target there are none.
    pub fn rounds_per_call(&self) -> f64 {
        match (self.model, self.head_calls) {
            (ModelRole::Target, _) => 0.0,
            (ModelRole::Draft, Some(calls)) => 1.0 / f64::from(calls),
            (ModelRole::Draft, None) if self.prefill_tokens > 0 => 1.0,
            (ModelRole::Draft, None) => 1.0 / f64::from(ROUND_CALLS),
        }
    }

    /// Draft head: tokens whose hidden states were read beside the last one of each sequence, per
    /// call.
    pub fn state_tokens_per_call(&self) -> f64 {
        self.head_calls.map_or(0.0, |calls| f64::from(self.prefill_tokens) / f64::from(calls))
    }

    /// What `model` says it takes.
    pub fn predicted_us(&self, model: &LatencyModel) -> f64 {
        let state_us = model.states_us(1);
        model.micros(&self.work())
            + self.rounds_per_call() * model.terms().round_us
            + self.state_tokens_per_call() * state_us
    }

    /// The pass's work, as the model sees it.
    pub fn work(&self) -> Work {
        let context = u64::from(self.context_tokens);
        // a head reads states beside its pass
        let prefill_tokens = if self.head_calls.is_some() { 0 } else { self.prefill_tokens };
        Work {
            rows: self.rows,
            context_tokens: context * u64::from(self.sequences),
            attended_tokens: context * u64::from(self.rows),
            prefill_tokens,
            prefill_attended_tokens: prefill_attended(self.prefill_done_tokens, prefill_tokens),
        }
    }
}
