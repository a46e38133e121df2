//! DFlash and DSpark heads: configuration and tensors, as z-lab, DeepSpec and the speculators
//! library write them.
//!
//! For every committed token before the anchor, `c = hidden_norm(fc(features))` gives each layer's
//! keys and values, which the head keeps. A pass embeds the anchor (the last committed token) and
//! `block_tokens − 1` mask tokens at the positions from the anchor on, attends to the kept keys and
//! to the whole block, without a causal mask, and drops the block's own keys. From slot `k` of the
//! output come the logits of the token at `anchor + k + 1` (`sample_from_anchor`) or at
//! `anchor + k`.
//!
//! The Markov head adds `w2 · w1[previous token]` to a slot's logits; the confidence head gives
//! `sigmoid(w · [output, w1[previous token]] + b)`, the chance that the token is accepted if all
//! before it are.
#![forbid(unsafe_code)]

use super::features;
use super::interface::{self, Interface};
use super::layout::{BLOCK_OBJECTS, agreeing, layer_config, with_objects};
use super::tensors::HeadTensors;
use crate::model::json_file::JsonObject;
use crate::model::safetensors_file::TensorFiles;
use crate::model::{HeadKind, HeadSettings, LayerWeights, ModelError, ModelSpec, Tensor, config_json};
use crate::protocol::TokenId;

/// Longest block, the anchor included.
const BLOCK_TOKENS_MAX: usize = 64;
/// Highest rank of a Markov head.
const MARKOV_RANK_MAX: usize = 1 << 13;

/// A DFlash or DSpark head with its mapped weights. H is its hidden size.
#[derive(Clone, Debug)]
pub struct BlockHead {
    /// DFlash or DSpark.
    pub kind: HeadKind,
    /// Shape of the layers.
    pub spec: ModelSpec,
    /// Hidden states and tokens.
    pub interface: Interface,
    /// Tokens of a block: the anchor and the masks.
    pub block_tokens: usize,
    /// The token that stands for one to be drafted.
    pub mask_token: TokenId,
    /// The anchor's slot drafts as well, so a block drafts `block_tokens` tokens, else one fewer.
    pub sample_from_anchor: bool,
    /// The layers, the first of the forward pass first.
    pub layers: Vec<LayerWeights>,
    /// Of DSpark.
    pub markov: Option<MarkovHead>,
    /// Of DSpark, unless it was trained without.
    pub confidence: Option<ConfidenceHead>,
}

/// Corrects the logits of a slot by the token before it.
#[derive(Clone, Debug)]
pub struct MarkovHead {
    /// `[target tokens, rank]`: of the token before.
    pub w1: Tensor,
    /// `[draft tokens, rank]`.
    pub w2: Tensor,
}

/// Predicts the acceptance of a slot.
#[derive(Clone, Debug)]
pub struct ConfidenceHead {
    /// `[1, H]`, or `[1, H + rank]` if it reads the Markov feature.
    pub weight: Tensor,
    /// `[1]`.
    pub bias: Option<Tensor>,
    /// Whether it reads the Markov feature.
    pub with_markov: bool,
}

impl BlockHead {
    /// Drafts of one pass.
    pub fn drafts(&self) -> usize {
        self.block_tokens - usize::from(!self.sample_from_anchor)
    }
}

/// Reads the head.
pub(super) fn read(
    kind: HeadKind,
    config: &JsonObject,
    files: &TensorFiles,
    target: Option<&ModelSpec>,
    settings: &HeadSettings,
) -> Result<BlockHead, ModelError> {
    let layers = layer_config(config)?;
    let spec = config_json::head_spec(&layers, target)?;
    if config.flag("sliding_window_non_causal", false)? {
        return Err(config.bad("sliding_window_non_causal", "windows inside a block are not supported"));
    }
    let (block_tokens, mask_token) = block(config, &spec)?;
    let tensors = HeadTensors::new(files);
    let features = features::read(kind, config, files, spec.hidden_size, target, settings)?;
    let interface = interface::read(config, &spec, features, &tensors, "hidden_norm.weight")?;
    let layer = |index| tensors.layer(&format!("layers.{index}"), &spec, spec.hidden_size);
    let rank = if kind == HeadKind::DSpark { Some(markov_rank(config)?) } else { None };
    let markov = rank.map(|rank| markov(&tensors, &spec, interface.draft_tokens, rank)).transpose()?;
    let confidence = rank.map(|rank| confidence(config, &tensors, &spec, rank)).transpose()?.flatten();
    let head = BlockHead {
        kind,
        block_tokens,
        mask_token,
        sample_from_anchor: config.flag("sample_from_anchor", kind == HeadKind::DSpark)?,
        layers: (0..spec.layers).map(layer).collect::<Result<_, _>>()?,
        markov,
        confidence,
        spec,
        interface,
    };
    tensors.finish()?;
    Ok(head)
}

/// Length of the block, and the mask token.
fn block(config: &JsonObject, spec: &ModelSpec) -> Result<(usize, TokenId), ModelError> {
    let objects = with_objects(config, &BLOCK_OBJECTS)?;
    let key = "block_size";
    let (object, _) = agreeing(&objects, key)?.ok_or_else(|| config.missing(key))?;
    let block_tokens = object.required_size(key, BLOCK_TOKENS_MAX)?;
    if block_tokens < 2 {
        return Err(object.bad(key, "a block is the anchor and at least one mask"));
    }
    let key = "mask_token_id";
    let (object, value) = agreeing(&objects, key)?.ok_or_else(|| config.missing(key))?;
    let mask = value.as_u64().filter(|&mask| mask < spec.vocab_size as u64);
    let mask = mask.ok_or_else(|| object.bad(key, format!("expected a token below {}", spec.vocab_size)))?;
    Ok((block_tokens, mask as TokenId))
}

fn markov_rank(config: &JsonObject) -> Result<usize, ModelError> {
    let objects = with_objects(config, &BLOCK_OBJECTS)?;
    let key = "markov_head_type";
    if let Some((object, _)) = agreeing(&objects, key)?
        && object.string(key)? != Some("vanilla")
    {
        return Err(object.bad(key, "not supported; `vanilla` is"));
    }
    let key = "markov_rank";
    let (object, _) = agreeing(&objects, key)?.ok_or_else(|| config.missing(key))?;
    object.required_size(key, MARKOV_RANK_MAX)
}

fn markov(
    tensors: &HeadTensors<'_>,
    spec: &ModelSpec,
    draft_tokens: usize,
    rank: usize,
) -> Result<MarkovHead, ModelError> {
    Ok(MarkovHead {
        w1: tensors.take("markov_head.markov_w1.weight", &[spec.vocab_size, rank])?,
        w2: tensors.take("markov_head.markov_w2.weight", &[draft_tokens, rank])?,
    })
}

fn confidence(
    config: &JsonObject,
    tensors: &HeadTensors<'_>,
    spec: &ModelSpec,
    rank: usize,
) -> Result<Option<ConfidenceHead>, ModelError> {
    if !config.flag("enable_confidence_head", true)? {
        return Ok(None);
    }
    let with_markov = config.flag("confidence_head_with_markov", true)?;
    let inputs = spec.hidden_size + if with_markov { rank } else { 0 };
    Ok(Some(ConfidenceHead {
        weight: tensors.take("confidence_head.proj.weight", &[1, inputs])?,
        bias: tensors.take_if_there("confidence_head.proj.bias", &[1])?,
        with_markov,
    }))
}
