//! Data of the executor interface: inputs and results of a forward pass.
//!
//! Everything is in tokens and block ids. No tensors appear here: sampling and verification
//! are part of the executor, because on a GPU they must stay on the device.

use std::sync::Arc;

use super::{BlockId, RequestId, SamplingParams, TokenId};

/// Static properties of an executor.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct ExecutorInfo {
    /// `cpu`, `cuda` or `virtual`; part of the profile's fingerprint.
    pub backend: String,
    /// Human-readable device name.
    pub device: String,
    /// Vocabulary size, in tokens.
    pub vocab_size: u32,
    /// Context length: prompt plus output, in tokens.
    pub context_tokens_max: u32,
    /// Tokens per KV block, for both models.
    pub block_tokens: u32,
    /// Blocks in the target's KV pool.
    pub target_blocks: u32,
    /// Blocks in the draft's KV pool; 0 without a draft model.
    pub draft_blocks: u32,
    /// Most input tokens per call, over all sequences.
    pub batch_tokens_max: u32,
    /// Most sequences per call.
    pub batch_sequences_max: u32,
    /// Most draft tokens per sequence that one call verifies.
    pub draft_tokens_max: u32,
}

impl ExecutorInfo {
    /// Whether there is a draft model.
    pub fn has_draft(&self) -> bool {
        self.draft_blocks > 0
    }
}

/// One sequence's part of a forward pass: its input tokens and the blocks for their keys and
/// values.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceInput {
    /// Id of the request.
    pub request: RequestId,
    /// Input tokens; at least one. `tokens[i]` is at absolute position `start + i`
    /// (for a tree see [`VerifyRow::tree`]).
    pub tokens: Vec<TokenId>,
    /// Absolute position of `tokens[0]`; all earlier positions are in the cache.
    pub start: u32,
    /// The sequence's blocks, in order; cover at least `start + tokens.len()` positions.
    pub blocks: Vec<BlockId>,
    /// Sampling parameters.
    pub sampling: Arc<SamplingParams>,
    /// Committed tokens of prompt and output, up to and including position
    /// `start + committed inputs - 1`; only where [`SamplingParams::needs_history`].
    pub history: Option<History>,
}

/// Tokens that penalties count.
#[derive(Clone, Debug, PartialEq)]
pub struct History {
    /// Prompt and committed output.
    pub tokens: Vec<TokenId>,
    /// Number of leading tokens that belong to the prompt.
    pub prompt_tokens: u32,
}

/// One sequence of a drafting batch.
#[derive(Clone, Debug, PartialEq)]
pub struct DraftRow {
    /// Committed tokens that the draft model has not seen yet (catch-up), the last
    /// committed token being the last of them when `propose` is set.
    pub input: SequenceInput,
    /// Whether to propose a token after the last input, or only fill the cache.
    pub propose: bool,
}

/// The draft model's proposal for one position of one sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Proposal {
    /// The draft's sample under the request's noise (see [`sampling`](crate::sampling)).
    pub token: TokenId,
    /// Draft probability of `token` after the request's sampling parameters; at
    /// temperature 0 the plain softmax at temperature 1.
    pub probability: f32,
    /// Difference between the draft's two largest probabilities, in the same distribution.
    pub margin: f32,
    /// The draft's runner-up under the same noise, for trees.
    pub runner_up: TokenId,
    /// Whether the logits were all finite; if not, the proposal must not be used.
    pub finite: bool,
}

/// One sequence of a verification batch: a prefill chunk, a plain decode step
/// (one token) or a verification (one token and drafts).
#[derive(Clone, Debug, PartialEq)]
pub struct VerifyRow {
    /// Input: committed tokens, then `drafts` draft tokens.
    pub input: SequenceInput,
    /// Number of drafts at the end of the input.
    pub drafts: u32,
    /// `None`: the drafts are a chain. Else one parent per draft: `0` is the last
    /// committed token, `j > 0` is draft `j - 1`; parents stand before their children.
    /// A node's position is its parent's plus one; its KV slot is that of its
    /// place in the input, until [`Executor::compact`].
    pub tree: Option<Vec<u32>>,
    /// Whether to sample; `false` for a prefill chunk that does not reach the
    /// end of the committed tokens.
    pub sample: bool,
}

/// The target's result for one row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// The next tokens of the sequence: the accepted drafts, then the bonus token. Empty iff
    /// the row did not sample or is not finite.
    pub tokens: Vec<TokenId>,
    /// Accepted drafts: `tokens.len() - 1`.
    pub accepted: u32,
    /// For a tree, the accepted drafts' places (0-based, ascending); empty for chains.
    pub path: Vec<u32>,
    /// False if a relevant logit was NaN or infinite.
    pub finite: bool,
}

/// Moves the accepted path of a tree to the slots right behind the committed tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Compaction {
    /// The sequence's blocks.
    pub blocks: Vec<BlockId>,
    /// Position of the first draft's slot.
    pub first: u32,
    /// Accepted places, ascending: slot `first + path[i]` moves to `first + i`.
    pub path: Vec<u32>,
}

/// Errors of an executor. All are programmer or device errors; no request may cause one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExecutorError {
    /// The device failed. The executor must not be used again: CUDA errors are sticky.
    #[error("the device failed: {0}")]
    Device(String),
    /// The batch violates an invariant of this module.
    #[error("malformed batch: {0}")]
    Malformed(String),
}

/// Role of a model in the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelRole {
    /// The target model.
    Target,
    /// The draft model.
    Draft,
}
