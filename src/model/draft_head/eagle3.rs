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

use super::features::{self, Features};
use super::interface::{self, Interface};
use super::layout::{EAGLE_OBJECTS, agreeing, is_speculators, layer_config, with_objects};
use super::tensors::HeadTensors;
use crate::model::json_file::JsonObject;
use crate::model::safetensors_file::TensorFiles;
use crate::model::{
    HeadKind, HeadSettings, LayerWeights, ModelError, ModelSpec, NORM_BEFORE_RESIDUAL, Tensor, config_json,
};

/// Prefixes of the layer's tensors: of the release, and of DeepSpec and speculators.
const LAYER_PREFIXES: [&str; 2] = ["midlayer", "layers.0"];

/// An EAGLE-3 head with its mapped weights. H is its hidden size.
#[derive(Clone, Debug)]
pub struct Eagle3Head {
    /// Shape of the layer; query, key and value read twice the hidden size.
    pub spec: ModelSpec,
    /// Hidden states and tokens.
    pub interface: Interface,
    /// The residual of the layer is the normalised fusion (`norm_before_residual`).
    pub norm_before_residual: bool,
    /// The next pass of a chain gets the normalised output (`norm_output`, EAGLE 3.1).
    pub norm_output: bool,
    /// Normalisation before the fusion.
    pub feature_norm: FeatureNorm,
    /// The layer; its `attention_norm` is that of the embedding.
    pub layer: LayerWeights,
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
    settings: &HeadSettings,
) -> Result<Eagle3Head, ModelError> {
    let layers = layer_config(config)?;
    let spec = config_json::head_spec(&layers, target)?;
    if spec.layers != 1 {
        return Err(layers.bad("num_hidden_layers", "EAGLE-3 heads have one layer"));
    }
    let tensors = HeadTensors::new(files);
    let prefix = layer_prefix(files);
    let features = features::read(HeadKind::Eagle3, config, files, spec.hidden_size, target, settings)?;
    let interface = interface::read(config, &spec, features, &tensors, &hidden_norm(prefix))?;
    let head = Eagle3Head {
        norm_before_residual: norm_before_residual(config, settings)?,
        norm_output: flag(config, "norm_output")?,
        feature_norm: feature_norm(config, &tensors, &interface.features)?,
        layer: tensors.layer(prefix, &spec, 2 * spec.hidden_size)?,
        spec,
        interface,
    };
    tensors.finish()?;
    Ok(head)
}

/// How the names of the layer's tensors begin in these files.
pub(in crate::model) fn layer_prefix(files: &TensorFiles) -> &'static str {
    let found = LAYER_PREFIXES.into_iter().find(|prefix| files.has(&hidden_norm(prefix)));
    found.unwrap_or(LAYER_PREFIXES[0])
}

fn hidden_norm(prefix: &str) -> String {
    format!("{prefix}.hidden_norm.weight")
}

/// As the deployment says, else as config.json does.
fn norm_before_residual(config: &JsonObject, settings: &HeadSettings) -> Result<bool, ModelError> {
    match settings.norm_before_residual {
        Some(norm) => Ok(norm),
        None => configured_norm_before_residual(config)
            .map_err(|error| error.open_to_setting(NORM_BEFORE_RESIDUAL)),
    }
}

/// The release has no such key and does not normalise. The speculators library writes it, but
/// readers disagree on what its absence means there.
fn configured_norm_before_residual(config: &JsonObject) -> Result<bool, ModelError> {
    let key = "norm_before_residual";
    if is_speculators(config) && config.get(key).is_none() {
        return Err(config.bad(
            key,
            "missing: speculators takes that for false, and vLLM for true, but the head was trained with one",
        ));
    }
    flag(config, key)
}

/// A flag of config.json or of its `eagle_config`; false if absent.
fn flag(config: &JsonObject, key: &str) -> Result<bool, ModelError> {
    match agreeing(&with_objects(config, &EAGLE_OBJECTS)?, key)? {
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
