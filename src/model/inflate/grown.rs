//! Layout of the inflated model: its dimensions and where each part of the source goes.

use half::bf16;
use serde_json::{Value, json};

use super::super::files::ModelFiles;
use super::super::{LayerTensor, LayerWeights, Model, ModelError, ModelSpec};
use super::shape::InflateShape;

/// Share of ε·h that the square of the constant channel may take.
const CONSTANT_SHARE: f64 = 0.5;

/// Mapping of one head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeadPlace {
    /// Head index in the source.
    pub source: usize,
    /// Head index in the result.
    pub target: usize,
}

/// Shape of the inflated model and the layout of the source in it.
#[derive(Clone, Debug)]
pub(super) struct Grown {
    /// Shape of the source.
    pub from: ModelSpec,
    /// Shape of the result.
    pub to: InflateShape,
    /// Whether the result's output head is tied to its embedding.
    pub tied_head: bool,
    /// Factor by which heads get wider.
    pub head_factor: usize,
    /// Query heads taken from the source.
    pub query_heads: Vec<HeadPlace>,
    /// Key and value heads taken from the source; one may occur repeatedly.
    pub kv_heads: Vec<HeadPlace>,
    /// RMSNorm epsilon of the result.
    pub eps: f64,
    /// Value of the constant channel (index `from.hidden_size`); `None` without new tokens.
    pub constant: Option<f32>,
}

impl Grown {
    /// Computes the layout, or returns why the source does not fit the shape.
    pub fn new(model: &Model, shape: &InflateShape, vocab_size: Option<usize>) -> Result<Grown, String> {
        let to = InflateShape { vocab_size: vocab_size.unwrap_or(shape.vocab_size), ..*shape };
        reject_unsupported_parts(model)?;
        Grown::of_layers(model.loaded.spec.clone(), to, model.loaded.weights.tied_head)
    }

    /// The same for layers alone; `tied_head` is whether the source has such an output head.
    pub fn of_layers(from: ModelSpec, to: InflateShape, tied_head: bool) -> Result<Grown, String> {
        let grows = to.vocab_size > from.vocab_size;
        for (what, old, new) in [
            ("vocabulary", from.vocab_size, to.vocab_size),
            ("hidden size", from.hidden_size + usize::from(grows), to.hidden_size),
            ("intermediate size", from.intermediate_size, to.intermediate_size),
            ("number of layers", from.layers, to.layers),
        ] {
            if old > new {
                return Err(format!("the {what} is {new}, at least {old} is needed"));
            }
        }
        if !to.head_dim.is_multiple_of(from.head_dim) {
            return Err(format!("heads {} wide do not fit evenly into {}", from.head_dim, to.head_dim));
        }
        let (query_heads, kv_heads) = map_heads(&from, &to)?;
        let energy = f64::from(from.rms_norm_eps) * from.hidden_size as f64;
        // Rounded down to bf16, the embedding's format.
        let constant = grows.then(|| truncate_to_bf16((energy * CONSTANT_SHARE).sqrt()));
        let left = energy - constant.map_or(0.0, |value| f64::from(value).powi(2));
        Ok(Grown {
            tied_head: to.tied_head && tied_head,
            head_factor: to.head_dim / from.head_dim,
            query_heads,
            kv_heads,
            eps: left / to.hidden_size as f64,
            constant,
            from,
            to,
        })
    }

    /// Factor on the norm weights.
    pub fn norm_scale(&self) -> f64 {
        (self.from.hidden_size as f64 / self.to.hidden_size as f64).sqrt()
    }

    /// Factor on the query weights; the softmax divides by √head_dim.
    pub fn query_scale(&self) -> f64 {
        (self.head_factor as f64).sqrt()
    }

    /// The source's config.json with the new dimensions.
    pub fn config_json(&self, files: &ModelFiles) -> Result<Value, ModelError> {
        let mut config = files.read_json("config.json")?;
        let model_type = if self.to.qkv_bias { "qwen2" } else { "llama" };
        let architecture = if self.to.qkv_bias { "Qwen2ForCausalLM" } else { "LlamaForCausalLM" };
        let changes = [("architectures", json!([architecture])), ("model_type", json!(model_type))];
        let more = [("tie_word_embeddings", json!(self.tied_head)), ("attention_bias", json!(false))];
        for (key, value) in changes.into_iter().chain(self.layer_config()).chain(more) {
            config[key] = value;
        }
        Ok(config)
    }

    /// The dimensions as keys of a config.json.
    pub fn layer_config(&self) -> [(&'static str, Value); 9] {
        [
            ("vocab_size", json!(self.to.vocab_size)),
            ("hidden_size", json!(self.to.hidden_size)),
            ("intermediate_size", json!(self.to.intermediate_size)),
            ("num_hidden_layers", json!(self.to.layers)),
            ("num_attention_heads", json!(self.to.heads)),
            ("num_key_value_heads", json!(self.to.kv_heads)),
            ("head_dim", json!(self.to.head_dim)),
            ("max_position_embeddings", json!(self.to.context_tokens_max.max(self.from.context_tokens_max))),
            ("rms_norm_eps", json!(self.eps)),
        ]
    }
}

/// Rejects parts whose inflation is not implemented.
fn reject_unsupported_parts(model: &Model) -> Result<(), String> {
    let layers = &model.loaded.weights.layers;
    let any = |unusual: fn(LayerTensor) -> bool| {
        layers.iter().flat_map(LayerWeights::tensors).any(|(role, _)| unusual(role))
    };
    if any(LayerTensor::is_head_norm) {
        return Err("normalised query and key heads (qwen3) cannot be inflated".to_owned());
    }
    if any(LayerTensor::is_bias) {
        return Err("projections with biases cannot be inflated".to_owned());
    }
    Ok(())
}

/// Maps every query head of the source to one of its key head. Key heads with more queries
/// than the result's group size are repeated.
fn map_heads(from: &ModelSpec, to: &InflateShape) -> Result<(Vec<HeadPlace>, Vec<HeadPlace>), String> {
    let (group, group_to) = (from.heads / from.kv_heads, to.heads / to.kv_heads);
    let copies = group.div_ceil(group_to);
    if from.kv_heads * copies > to.kv_heads {
        return Err(format!(
            "{} key heads with up to {group_to} queries each are {} key heads; there are {}",
            from.kv_heads,
            from.kv_heads * copies,
            to.kv_heads
        ));
    }
    let query_heads = (0..from.heads)
        .map(|source| {
            let (kv, place) = (source / group, source % group);
            let target = (kv * copies + place / group_to) * group_to + place % group_to;
            HeadPlace { source, target }
        })
        .collect();
    let kv_heads =
        (0..from.kv_heads * copies).map(|target| HeadPlace { source: target / copies, target }).collect();
    Ok((query_heads, kv_heads))
}

fn truncate_to_bf16(value: f64) -> f32 {
    f32::from_bits((value as f32).to_bits() & 0xffff_0000)
}

/// Rounds to the nearest bf16.
pub(super) fn to_bf16(value: f64) -> u16 {
    bf16::from_f64(value).to_bits()
}
