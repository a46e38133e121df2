//! What ties a head to its target: the hidden states that it reads, and the tokens.
#![forbid(unsafe_code)]

use super::features::{FUSION, Features};
use super::layout::layer_config;
use super::tensors::HeadTensors;
use crate::model::json_file::JsonObject;
use crate::model::{ModelError, ModelSpec, Tensor};
use crate::protocol::TokenId;

/// Where hidden states and tokens enter a head and where tokens leave it. H is the head's hidden
/// size.
#[derive(Clone, Debug)]
pub struct Interface {
    /// The hidden states that it fuses.
    pub features: Features,
    /// `[H, features × target hidden]`.
    pub fusion: Tensor,
    /// RMSNorm of the fused hidden states, `[H]`.
    pub hidden_norm: Tensor,
    /// `[target tokens, H]`; `None` if it is the target's.
    pub embedding: Option<Tensor>,
    /// RMSNorm before the output head, `[H]`.
    pub final_norm: Tensor,
    /// `[draft tokens, H]`; `None` if it is the target's.
    pub output_head: Option<Tensor>,
    /// Size of the draft vocabulary.
    pub draft_tokens: usize,
    /// The target's token of each draft token; `None` if they are the same.
    pub draft_to_target: Option<Vec<TokenId>>,
}

/// Reads the interface of a head whose layers have the shape `spec` and which reads `features`.
/// `hidden_norm` is the name of that tensor.
pub(super) fn read(
    config: &JsonObject,
    spec: &ModelSpec,
    features: Features,
    tensors: &HeadTensors<'_>,
    hidden_norm: &str,
) -> Result<Interface, ModelError> {
    let draft_tokens = config.size("draft_vocab_size", spec.vocab_size)?;
    let draft_tokens = draft_tokens.unwrap_or(spec.vocab_size);
    let width = features.target_hidden_size;
    Ok(Interface {
        fusion: tensors.take(FUSION, &[spec.hidden_size, features.count * width])?,
        hidden_norm: tensors.take(hidden_norm, &[spec.hidden_size])?,
        embedding: tensors.embedding(spec, width, &layer_config(config)?)?,
        final_norm: tensors.take("norm.weight", &[spec.hidden_size])?,
        output_head: tensors.output_head(spec, draft_tokens, width)?,
        draft_to_target: tensors.draft_to_target(draft_tokens, spec.vocab_size)?,
        draft_tokens,
        features,
    })
}
