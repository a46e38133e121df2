//! Parses config.json of the Llama family, as written by
//! transformers. Settings that would change the computation and are not implemented are
//! rejected, never ignored.
#![forbid(unsafe_code)]

use serde_json::Value;

use super::generation_config::end_tokens;
use super::json_file::JsonObject;
use super::{LayerTensor, ModelError, ModelSpec, Projection, rope_config};
use crate::protocol::TokenId;

/// Upper bound of vocabulary, hidden size, head count and so on: far above any real model,
/// and small enough that products of three fit in 64 bits.
pub(super) const DIMENSION_MAX: usize = 1 << 21;

/// Upper bound of the layer count.
pub(super) const LAYERS_MAX: usize = 1 << 12;

/// Longest context, in tokens; positions are 32-bit.
const CONTEXT_TOKENS_MAX: usize = 1 << 28;

/// Default RMSNorm epsilon, as in transformers.
const RMS_NORM_EPS_DEFAULT: f64 = 1e-6;

/// Default head width of qwen3, as in transformers.
const QWEN3_HEAD_DIM_DEFAULT: usize = 128;

/// Default `sliding_window` of every type that has one, in tokens, as in transformers.
const SLIDING_WINDOW_DEFAULT: usize = 4096;

/// Default `max_window_layers` of qwen2 and qwen3, as in transformers.
const MAX_WINDOW_LAYERS_DEFAULT: u64 = 28;

/// Parsed config.json.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ModelConfig {
    /// Shape of the model.
    pub(super) spec: ModelSpec,
    /// `max_position_embeddings`, however short the context of `spec` is cut.
    pub(super) own_context_tokens_max: usize,
    /// Optional tensors that the model has.
    pub(super) parts: OptionalParts,
    /// `eos_token_id`; empty if absent.
    pub(super) eos: Vec<TokenId>,
}

/// Tensors that only some models of the family have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct OptionalParts {
    /// Query, key and value projections have biases.
    pub(super) qkv_bias: bool,
    /// The attention's output projection has a bias.
    pub(super) output_bias: bool,
    /// The three MLP projections have biases.
    pub(super) mlp_bias: bool,
    /// Query and key heads are normalised before the rotation.
    pub(super) query_key_norm: bool,
    /// The output head is the embedding.
    pub(super) tied_head: bool,
}

impl OptionalParts {
    /// Whether the layers have a tensor of this role.
    pub(super) fn has(&self, role: LayerTensor) -> bool {
        match role {
            LayerTensor::QueryNorm | LayerTensor::KeyNorm => self.query_key_norm,
            LayerTensor::Bias(Projection::Output) => self.output_bias,
            LayerTensor::Bias(projection) if projection.is_qkv() => self.qkv_bias,
            LayerTensor::Bias(_) => self.mlp_bias,
            LayerTensor::AttentionNorm | LayerTensor::MlpNorm | LayerTensor::Weight(_) => true,
        }
    }
}

/// Reads config.json; `file` is its path, for errors. `context_cap` is the longest context that
/// will be served, in tokens, if shorter than the model's own.
pub(super) fn parse_config(
    file: &str,
    json: &Value,
    context_cap: Option<usize>,
) -> Result<ModelConfig, ModelError> {
    let config = JsonObject::root(file, json)?;
    let model_type = config.string("model_type")?.ok_or_else(|| config.missing("model_type"))?;
    if !matches!(model_type, "llama" | "mistral" | "qwen2" | "qwen3") {
        return Err(config.bad("model_type", "not supported; `llama`, `mistral`, `qwen2` and `qwen3` are"));
    }
    reject_unimplemented(&config)?;
    let mut spec = spec(&config, model_type)?;
    let own_context_tokens_max = spec.context_tokens_max;
    spec.context_tokens_max = own_context_tokens_max.min(context_cap.unwrap_or(usize::MAX));
    refuse_sliding_window(&config, &spec)?;
    let (parts, eos) = (parts(&config, model_type)?, end_tokens(&config, spec.vocab_size)?);
    Ok(ModelConfig { spec, own_context_tokens_max, parts, eos })
}

/// Shape of a draft head's layers, which must be made for `target`'s vocabulary. The context is
/// the one that the head was trained with; it may draft beyond it.
pub(super) fn head_spec(config: &JsonObject, target: Option<&ModelSpec>) -> Result<ModelSpec, ModelError> {
    let key = "model_type";
    let model_type = config.string(key)?.unwrap_or("llama");
    if !matches!(model_type, "llama" | "qwen3") {
        return Err(config.bad(key, "not supported for the layers of a draft head; `llama` and `qwen3` are"));
    }
    reject_unimplemented(config)?;
    let spec = spec(config, model_type)?;
    refuse_sliding_window(config, &spec)?;
    let OptionalParts { qkv_bias, mlp_bias, .. } = parts(config, model_type)?;
    for (key, bias) in [("attention_bias", qkv_bias), ("mlp_bias", mlp_bias)] {
        if bias {
            return Err(config.bad(key, "draft heads with biases are not supported"));
        }
    }
    match target {
        Some(target) if target.vocab_size != spec.vocab_size => {
            let problem =
                format!("the target has {} tokens: the head was made for another", target.vocab_size);
            Err(config.bad("vocab_size", problem))
        }
        _ => Ok(spec),
    }
}

fn spec(config: &JsonObject, model_type: &str) -> Result<ModelSpec, ModelError> {
    let hidden_size = config.required_size("hidden_size", DIMENSION_MAX)?;
    let heads = config.required_size("num_attention_heads", DIMENSION_MAX)?;
    Ok(ModelSpec {
        model_type: model_type.to_owned(),
        vocab_size: config.required_size("vocab_size", DIMENSION_MAX)?,
        hidden_size,
        intermediate_size: config.required_size("intermediate_size", DIMENSION_MAX)?,
        layers: config.required_size("num_hidden_layers", LAYERS_MAX)?,
        heads,
        kv_heads: kv_heads(config, model_type, heads)?,
        head_dim: head_dim(config, model_type, hidden_size, heads)?,
        context_tokens_max: config.required_size("max_position_embeddings", CONTEXT_TOKENS_MAX)?,
        rms_norm_eps: rms_norm_eps(config)?,
        rope: rope_config::read(config)?,
    })
}

fn rms_norm_eps(config: &JsonObject) -> Result<f32, ModelError> {
    let key = "rms_norm_eps";
    let eps = config.positive(key)?.unwrap_or(RMS_NORM_EPS_DEFAULT) as f32;
    if (f32::MIN_POSITIVE..=1.0).contains(&eps) {
        Ok(eps)
    } else {
        Err(config.bad(key, "expected a number above 0 and at most 1, in single precision"))
    }
}

/// `null` means one key head per query head. Only llama may omit the key: the defaults of
/// the other types in transformers are fixed numbers that rarely fit.
fn kv_heads(config: &JsonObject, model_type: &str, heads: usize) -> Result<usize, ModelError> {
    let key = "num_key_value_heads";
    let kv_heads = match config.size(key, DIMENSION_MAX)? {
        Some(kv_heads) => kv_heads,
        None if config.is_written(key) || model_type == "llama" => heads,
        None => return Err(config.missing(key)),
    };
    if !heads.is_multiple_of(kv_heads) {
        return Err(config.bad(key, format!("must divide `num_attention_heads` {heads}")));
    }
    Ok(kv_heads)
}

fn head_dim(
    config: &JsonObject,
    model_type: &str,
    hidden_size: usize,
    heads: usize,
) -> Result<usize, ModelError> {
    let (key, head_dim) = match config.size("head_dim", DIMENSION_MAX)? {
        Some(head_dim) => ("head_dim", head_dim),
        None if model_type == "qwen3" => ("head_dim", QWEN3_HEAD_DIM_DEFAULT),
        None if hidden_size.is_multiple_of(heads) => ("hidden_size", hidden_size / heads),
        None => {
            let problem = format!("must be a multiple of `num_attention_heads` {heads}, or give `head_dim`");
            return Err(config.bad("hidden_size", problem));
        }
    };
    if !head_dim.is_multiple_of(2) {
        return Err(config.bad(key, "results in heads of odd width, which cannot be rotated"));
    }
    Ok(head_dim)
}

fn parts(config: &JsonObject, model_type: &str) -> Result<OptionalParts, ModelError> {
    let attention_bias = config.flag("attention_bias", false)?;
    let mlp_bias = config.flag("mlp_bias", false)?;
    // llama and qwen3 put the bias on all four projections; qwen2 always has it on three,
    // regardless of the flag; mistral has none.
    let has_flag = matches!(model_type, "llama" | "qwen3");
    if !has_flag && attention_bias && model_type != "qwen2" {
        return Err(config.bad("attention_bias", format!("{model_type} has no attention bias")));
    }
    if mlp_bias && model_type != "llama" {
        return Err(config.bad("mlp_bias", format!("{model_type} has no MLP bias")));
    }
    Ok(OptionalParts {
        qkv_bias: model_type == "qwen2" || (has_flag && attention_bias),
        output_bias: has_flag && attention_bias,
        mlp_bias,
        query_key_norm: model_type == "qwen3",
        tied_head: config.flag("tie_word_embeddings", false)?,
    })
}

fn reject_unimplemented(config: &JsonObject) -> Result<(), ModelError> {
    if let Some(act) = config.string("hidden_act")?
        && act != "silu"
    {
        return Err(config.bad("hidden_act", "not supported; `silu` is"));
    }
    let weights_as_they_are = "quantised checkpoints are not supported; weights must be BF16, F16 or F32";
    for (key, problem) in [
        ("quantization_config", weights_as_they_are),
        ("compression_config", weights_as_they_are),
        ("num_experts", "mixtures of experts are not supported"),
        ("num_local_experts", "mixtures of experts are not supported"),
    ] {
        if config.get(key).is_some() {
            return Err(config.bad(key, problem));
        }
    }
    Ok(())
}

/// Accepts sliding windows that are at least as long as the served context, since they hide no
/// token.
fn refuse_sliding_window(config: &JsonObject, spec: &ModelSpec) -> Result<(), ModelError> {
    let key = "sliding_window";
    let written = config.size(key, CONTEXT_TOKENS_MAX)?;
    let slides = match spec.model_type.as_str() {
        // `layer_types` has no effect on this type
        "mistral" => true,
        "llama" => false,
        _ => config.flag("use_sliding_window", false)? && some_layer_slides(config, spec)?,
    };
    let window = match written {
        None if config.is_written(key) => return Ok(()),
        window => window.unwrap_or(SLIDING_WINDOW_DEFAULT),
    };
    if !slides || window >= spec.context_tokens_max {
        return Ok(());
    }
    let cap = format!("set target.context_tokens_max to at most {window} to serve contexts without it");
    let problem = match written {
        Some(_) => format!("sliding-window attention is not supported; {cap}"),
        None => format!(
            "sliding-window attention is not supported, and a {} without this key has a window of \
             {window} tokens; {cap}, or set the key to null if the model was trained without a window",
            spec.model_type
        ),
    };
    Err(config.bad(key, problem))
}

/// `layer_types` lists the attention of each layer; older files have `max_window_layers`,
/// the index of the first sliding layer.
fn some_layer_slides(config: &JsonObject, spec: &ModelSpec) -> Result<bool, ModelError> {
    match config.get("layer_types") {
        Some(Value::Array(types)) => Ok(types.iter().any(|kind| kind != "full_attention")),
        Some(_) => Err(config.bad("layer_types", "expected a list")),
        None => match config.get("max_window_layers").map(Value::as_u64) {
            None => Ok(MAX_WINDOW_LAYERS_DEFAULT < spec.layers as u64),
            Some(Some(first)) => Ok(first < spec.layers as u64),
            Some(None) => Err(config.bad("max_window_layers", "expected a whole number")),
        },
    }
}
