//! Collects the weights of a model from its files by their Hugging Face names, and checks each
//! tensor against the shape that config.json implies.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::config_json::OptionalParts;
use super::safetensors_file::TensorFiles;
use super::{LayerWeights, ModelError, ModelSpec, ModelWeights, Tensor};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

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
    files.refuse_others(&reader.taken.borrow())?;
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
        LayerWeights::try_build(
            |role| self.parts.has(role),
            |role| self.take(&format!("model.layers.{layer}.{}", role.name()), &role.shape(self.spec)),
        )
    }

    /// config.json decides whether the head is tied. A tied checkpoint may store the head as well,
    /// but then it must equal the embedding.
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
}
