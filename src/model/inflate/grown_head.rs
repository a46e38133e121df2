//! Layout of an inflated draft head: what it has beside layers.

use serde_json::{Map, Value, json};

use super::super::files::{CONFIG, ModelFiles};
use super::super::{BlockHead, DraftHead, Eagle3Head, FeatureNorm, Interface, ModelError};
use super::InflateOptions;
use super::grown::Grown;
use super::shape::InflateShape;
use crate::protocol::TokenId;

/// Layers of an EAGLE-3 head.
const EAGLE3_LAYERS: usize = 1;
/// Layers of a DSpark head of a large target.
const BLOCK_LAYERS: usize = 5;
/// Rank of its Markov head.
const MARKOV_RANK: usize = 256;
/// Draft vocabulary of an EAGLE-3 head of a large target, if it is not the target's.
const DRAFT_TOKENS: usize = 32_000;

/// Shape of the inflated head.
#[derive(Clone, Debug)]
pub(super) struct GrownHead {
    /// Layers, streams and the target's vocabulary.
    pub grown: Grown,
    /// Size of the draft vocabulary.
    pub draft_tokens: usize,
    /// Rank of the Markov head, if there is one.
    pub markov_rank: Option<usize>,
    /// Layers of the target.
    target_layers: usize,
    /// Whether draft tokens are others than the target's.
    maps_tokens: bool,
}

impl GrownHead {
    /// Computes the layout of the head for a target of this shape, or returns why it does not fit.
    pub fn new(
        head: &DraftHead,
        shape: &InflateShape,
        options: &InflateOptions,
    ) -> Result<GrownHead, String> {
        let (layers, source_rank) = match head {
            DraftHead::Eagle3(head) => {
                reject_unsupported_variants(head)?;
                (EAGLE3_LAYERS, None)
            }
            DraftHead::Block(head) => (BLOCK_LAYERS, rank(head)),
        };
        let interface = head.interface();
        reject_other_target(interface, head.spec().hidden_size)?;
        if let Some(rank) = source_rank.filter(|&rank| rank > MARKOV_RANK) {
            return Err(format!("the rank of the Markov head is {MARKOV_RANK}, at least {rank} is needed"));
        }
        let vocab_size = options.vocab_size.unwrap_or(shape.vocab_size);
        let to = InflateShape { vocab_size, layers, tied_head: false, qkv_bias: false, ..*shape };
        let grown = Grown::of_layers(head.spec().clone(), to, false)?;
        Ok(GrownHead {
            draft_tokens: draft_tokens(interface, &grown, options.draft_vocab_size)?,
            markov_rank: source_rank.map(|_| MARKOV_RANK),
            target_layers: shape.layers,
            maps_tokens: interface.draft_to_target.is_some(),
            grown,
        })
    }

    /// The target's token of each draft token; new ones draft new tokens of the target.
    pub fn draft_to_target(&self, source: &[TokenId]) -> Vec<usize> {
        let new = self.grown.from.vocab_size..;
        source.iter().map(|&token| token as usize).chain(new).take(self.draft_tokens).collect()
    }

    /// The source's config.json with the new dimensions.
    pub fn config_json(&self, files: &ModelFiles) -> Result<Value, ModelError> {
        let mut config = files.read_json(CONFIG)?;
        let to = &self.grown.to;
        if self.maps_tokens {
            config["draft_vocab_size"] = json!(self.draft_tokens);
        }
        replace(&mut config, "draft_vocab_size", &json!(self.draft_tokens));
        replace(&mut config, "target_hidden_size", &json!(to.hidden_size));
        replace(&mut config, "num_target_layers", &json!(self.target_layers));
        if let Some(rank) = self.markov_rank {
            replace(&mut config, "markov_rank", &json!(rank));
        }
        let layers = match config.get("transformer_layer_config") {
            Some(Value::Object(_)) => &mut config["transformer_layer_config"],
            _ => &mut config,
        };
        for (key, value) in self.grown.layer_config() {
            layers[key] = value;
        }
        // no window is in effect within the source's context, and none may be beyond it
        replace(layers, "use_sliding_window", &json!(false));
        replace(layers, "max_window_layers", &json!(to.layers));
        replace(layers, "layer_types", &json!(vec!["full_attention"; to.layers]));
        Ok(config)
    }
}

/// Sets a key of an object and of the objects in it, wherever it has a value.
fn replace(object: &mut Value, key: &str, value: &Value) {
    let set = |object: &mut Map<String, Value>| {
        if let Some(old) = object.get_mut(key).filter(|old| !old.is_null()) {
            *old = value.clone();
        }
    };
    if let Value::Object(object) = object {
        set(object);
        object.values_mut().filter_map(Value::as_object_mut).for_each(set);
    }
}

fn rank(head: &BlockHead) -> Option<usize> {
    head.markov.as_ref().map(|markov| markov.w1.shape[1])
}

/// Rejects variants whose streams would not keep the constant.
fn reject_unsupported_variants(head: &Eagle3Head) -> Result<(), String> {
    let key = match head.feature_norm {
        FeatureNorm::Joint(_) => "norm_before_fc",
        FeatureNorm::Each(_) => "fc_norm",
        FeatureNorm::Raw if head.norm_before_residual => "norm_before_residual",
        FeatureNorm::Raw if head.norm_output => "norm_output",
        FeatureNorm::Raw => return Ok(()),
    };
    Err(format!("heads with `{key}` cannot be inflated"))
}

/// Rejects heads whose target cannot be told, or has another width than they.
fn reject_other_target(interface: &Interface, hidden_size: usize) -> Result<(), String> {
    let features = &interface.features;
    if features.layers.is_none() {
        return Err("config.json does not list the layers whose hidden states it reads, which would be \
                    others in a deeper target"
            .to_owned());
    }
    if features.target_hidden_size != hidden_size {
        let width = features.target_hidden_size;
        return Err(format!("it is {hidden_size} wide and reads a target that is {width} wide"));
    }
    Ok(())
}

/// Size of the draft vocabulary: the target's, or as many tokens as wanted, of which the new ones
/// draft new tokens of the target.
fn draft_tokens(interface: &Interface, grown: &Grown, wanted: Option<usize>) -> Result<usize, String> {
    let Grown { from, to, .. } = grown;
    let old = interface.draft_tokens;
    if interface.draft_to_target.is_none() {
        return match wanted.filter(|&wanted| wanted != to.vocab_size) {
            None => Ok(to.vocab_size),
            Some(_) => Err(format!("it drafts all tokens of the target, which are {}", to.vocab_size)),
        };
    }
    let tokens = wanted.unwrap_or(DRAFT_TOKENS.max(old));
    let most = old + (to.vocab_size - from.vocab_size);
    if (old..=most).contains(&tokens) {
        return Ok(tokens);
    }
    Err(format!(
        "the draft vocabulary is {tokens}, and can be from {old} to {most}: the target's grows from {} to {}",
        from.vocab_size, to.vocab_size
    ))
}
