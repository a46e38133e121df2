//! EAGLE-3 heads: configuration and tensors, as the SafeAILab release, DeepSpec and the speculators
//! library write them.
//!
//! A pass over row `i` of a sequence pairs the target's hidden states of token `i` with the
//! embedding of token `i + 1` and drafts token `i + 2`, at the rotary position `i`:
//!
//! ```text
//! g = fc(features)                             features normalised before that if FeatureNorm says so
//! x = [input_layernorm(embedding), hidden_norm(g)]
//! y = r + attention(x)                         r = g, or hidden_norm(g) with norm_before_residual
//! z = y + mlp(post_attention_layernorm(y))
//! logits = lm_head(norm(z))                    the next pass takes z, or norm(z) with norm_output, for g
//! ```
#![forbid(unsafe_code)]

use super::super::json_file::JsonObject;
use super::super::safetensors_file::TensorFiles;
use super::super::{LayerWeights, ModelError, ModelSpec, Tensor, config_json};
use super::features::{self, FUSION, Features, Usual};
use super::layout::{agreeing, is_speculators, layer_config};
use super::tensors::HeadTensors;
use crate::protocol::TokenId;

/// Prefixes of the layer's tensors: of the release, and of DeepSpec and speculators.
const LAYER_PREFIXES: [&str; 2] = ["midlayer", "layers.0"];

/// An EAGLE-3 head with its mapped weights. H is its hidden size.
#[derive(Clone, Debug)]
pub struct Eagle3Head {
    /// Shape of the layer; query, key and value read twice the hidden size.
    pub spec: ModelSpec,
    /// The hidden states that it fuses.
    pub features: Features,
    /// The residual of the layer is the normalised fusion (`norm_before_residual`).
    pub norm_before_residual: bool,
    /// The next pass of a chain gets the normalised output (`norm_output`, EAGLE 3.1).
    pub norm_output: bool,
    /// Normalisation before the fusion.
    pub feature_norm: FeatureNorm,
    /// `[H, features × target hidden]`.
    pub fusion: Tensor,
    /// RMSNorm of the fused hidden states, `[H]`.
    pub hidden_norm: Tensor,
    /// The layer; its `attention_norm` is that of the embedding.
    pub layer: LayerWeights,
    /// RMSNorm before the output head, `[H]`.
    pub final_norm: Tensor,
    /// `[draft tokens, H]`; `None` if it is the target's.
    pub head: Option<Tensor>,
    /// `[target tokens, H]`; `None` if it is the target's.
    pub embedding: Option<Tensor>,
    /// The target's token of each draft token; `None` if they are the same.
    pub draft_to_target: Option<Vec<TokenId>>,
}

/// RMSNorms of the hidden states before they are fused.
#[derive(Clone, Debug)]
pub enum FeatureNorm {
    /// None.
    Raw,
    /// One over all of them, `[features × target hidden]` (`norm_before_fc`).
    Joint(Tensor),
    /// One for each, `[target hidden]` (`fc_norm`, EAGLE 3.1).
    Each(Vec<Tensor>),
}

/// Reads the head.
pub(super) fn read(
    config: &JsonObject,
    files: &TensorFiles,
    target: Option<&ModelSpec>,
) -> Result<Eagle3Head, ModelError> {
    let layers = layer_config(config)?;
    let spec = config_json::head_spec(&layers, target)?;
    if spec.layers != 1 {
        return Err(layers.bad("num_hidden_layers", "EAGLE-3 heads have one layer"));
    }
    let features = features::read(config, files, spec.hidden_size, Usual::OfRelease, target)?;
    let draft_tokens = config_json::draft_vocab_size(config, spec.vocab_size)?;
    let tensors = HeadTensors::new(files);
    let width = features.target_hidden_size;
    let prefix = LAYER_PREFIXES.into_iter().find(|prefix| files.has(&format!("{prefix}.hidden_norm.weight")));
    let prefix = prefix.unwrap_or(LAYER_PREFIXES[0]);
    let head = Eagle3Head {
        norm_before_residual: norm_before_residual(config)?,
        norm_output: flag(config, "norm_output")?,
        feature_norm: feature_norm(config, &tensors, &features)?,
        fusion: tensors.take(FUSION, &[spec.hidden_size, features.count * width])?,
        hidden_norm: tensors.take(&format!("{prefix}.hidden_norm.weight"), &[spec.hidden_size])?,
        layer: tensors.layer(prefix, &spec, 2 * spec.hidden_size)?,
        final_norm: tensors.take("norm.weight", &[spec.hidden_size])?,
        head: tensors.output_head(&spec, draft_tokens, width)?,
        embedding: tensors.embedding(&spec, width, &layers)?,
        draft_to_target: tensors.draft_to_target(draft_tokens, spec.vocab_size)?,
        spec,
        features,
    };
    tensors.finish()?;
    Ok(head)
}

/// The release has no such key and does not normalise. The speculators library writes it, but
/// readers disagree on what its absence means there.
fn norm_before_residual(config: &JsonObject) -> Result<bool, ModelError> {
    let key = "norm_before_residual";
    if is_speculators(config) && config.get(key).is_none() {
        return Err(config.bad(
            key,
            "missing: speculators takes that for false, and vLLM for true; set it to what the head was trained with",
        ));
    }
    flag(config, key)
}

/// A flag of config.json or of its `eagle_config`; false if absent.
fn flag(config: &JsonObject, key: &str) -> Result<bool, ModelError> {
    let mut objects = vec![config.clone()];
    objects.extend(config.object("eagle_config")?);
    match agreeing(&objects, key)? {
        None => Ok(false),
        Some((object, _)) => object.flag(key, false),
    }
}

fn feature_norm(
    config: &JsonObject,
    tensors: &HeadTensors<'_>,
    features: &Features,
) -> Result<FeatureNorm, ModelError> {
    let width = features.target_hidden_size;
    match (flag(config, "norm_before_fc")?, flag(config, "fc_norm")?) {
        (false, false) => Ok(FeatureNorm::Raw),
        (true, false) => tensors.take("input_norm.weight", &[features.count * width]).map(FeatureNorm::Joint),
        (false, true) => {
            let norm = |feature| tensors.take(&format!("fc_norm.{feature}.weight"), &[width]);
            (0..features.count).map(norm).collect::<Result<_, _>>().map(FeatureNorm::Each)
        }
        (true, true) => Err(config.bad("fc_norm", "excludes `norm_before_fc`")),
    }
}
