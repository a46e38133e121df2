//! Takes a model's tensors out of its files by their Hugging Face names, each checked
//! against the shape that config.json gives it.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::config_json::OptionalParts;
use super::safetensors_file::TensorFiles;
use super::{LayerWeights, Linear, ModelError, ModelSpec, ModelWeights, Tensor};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Ends of the names that early checkpoints carry and that follow from config.json.
const DERIVED_SUFFIX: &str = ".rotary_emb.inv_freq";

/// Collects the weights of a model of this shape.
///
/// # Errors
/// A tensor is missing, has another shape, is stored in a format that is not read, or is
/// not part of the model.
pub(super) fn read(
    files: &TensorFiles,
    spec: &ModelSpec,
    parts: OptionalParts,
) -> Result<ModelWeights, ModelError> {
    let reader = Reader { files, spec, parts, taken: RefCell::default() };
    let layers = (0..spec.layers).map(|layer| reader.layer(layer)).collect::<Result<_, _>>()?;
    let embedding = reader.take(EMBEDDING, &[spec.vocab_size, spec.hidden_size])?;
    let final_norm = reader.take("model.norm.weight", &[spec.hidden_size])?;
    let head = reader.head(&embedding)?;
    reader.refuse_what_was_not_taken()?;
    Ok(ModelWeights { embedding, layers, final_norm, head, tied_head: parts.tied_head })
}

struct Reader<'a> {
    files: &'a TensorFiles,
    spec: &'a ModelSpec,
    parts: OptionalParts,
    taken: RefCell<BTreeSet<String>>,
}

impl Reader<'_> {
    fn layer(&self, layer: usize) -> Result<LayerWeights, ModelError> {
        let &ModelSpec { hidden_size, intermediate_size, heads, kv_heads, head_dim, .. } = self.spec;
        let &OptionalParts { qkv_bias, output_bias, mlp_bias, query_key_norm, .. } = &self.parts;
        let (query_size, key_size) = (heads * head_dim, kv_heads * head_dim);
        let norm = |name: &str| self.take(&format!("model.layers.{layer}.{name}.weight"), &[hidden_size]);
        let linear = |name: &str, outputs, inputs, bias| {
            self.linear(&format!("model.layers.{layer}.{name}"), outputs, inputs, bias)
        };
        let head_norm = |name: &str| {
            let name = format!("model.layers.{layer}.self_attn.{name}.weight");
            query_key_norm.then(|| self.take(&name, &[head_dim])).transpose()
        };
        Ok(LayerWeights {
            attention_norm: norm("input_layernorm")?,
            query: linear("self_attn.q_proj", query_size, hidden_size, qkv_bias)?,
            key: linear("self_attn.k_proj", key_size, hidden_size, qkv_bias)?,
            value: linear("self_attn.v_proj", key_size, hidden_size, qkv_bias)?,
            query_norm: head_norm("q_norm")?,
            key_norm: head_norm("k_norm")?,
            output: linear("self_attn.o_proj", hidden_size, query_size, output_bias)?,
            mlp_norm: norm("post_attention_layernorm")?,
            gate: linear("mlp.gate_proj", intermediate_size, hidden_size, mlp_bias)?,
            up: linear("mlp.up_proj", intermediate_size, hidden_size, mlp_bias)?,
            down: linear("mlp.down_proj", hidden_size, intermediate_size, mlp_bias)?,
        })
    }

    fn linear(&self, name: &str, outputs: usize, inputs: usize, bias: bool) -> Result<Linear, ModelError> {
        Ok(Linear {
            weight: self.take(&format!("{name}.weight"), &[outputs, inputs])?,
            bias: bias.then(|| self.take(&format!("{name}.bias"), &[outputs])).transpose()?,
        })
    }

    /// Tied or not is config.json's word, not the file's: a tied checkpoint may store the
    /// head again, but then it must be the same.
    fn head(&self, embedding: &Tensor) -> Result<Tensor, ModelError> {
        if self.parts.tied_head && !self.files.has(HEAD) {
            return Ok(embedding.clone());
        }
        let head = self.take(HEAD, &embedding.shape)?;
        if !self.parts.tied_head {
            return Ok(head);
        }
        if head.dtype != embedding.dtype || head.bytes() != embedding.bytes() {
            return Err(ModelError::TiedHeadDiffers { file: self.files.path_of(HEAD).to_owned() });
        }
        Ok(embedding.clone())
    }

    fn take(&self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        self.taken.borrow_mut().insert(name.to_owned());
        self.files.tensor(name, shape)
    }

    fn refuse_what_was_not_taken(&self) -> Result<(), ModelError> {
        let taken = self.taken.borrow();
        let stray =
            self.files.names().find(|(name, _)| !taken.contains(*name) && !name.ends_with(DERIVED_SUFFIX));
        match stray {
            None => Ok(()),
            Some((tensor, file)) => {
                Err(ModelError::UnexpectedTensor { file: file.to_owned(), tensor: tensor.to_owned() })
            }
        }
    }
}
