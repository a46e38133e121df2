//! Loads a model: reads what describes it, maps its weights, checks one against the other.

use super::files::ModelFiles;
use super::safetensors_file::TensorFiles;
use super::{LoadedModel, ModelError, ModelSource, config_json, weights};
use crate::executor::ModelRole;
use crate::request::TokenId;

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";

/// A model and all that is needed to talk to it.
#[derive(Clone, Debug)]
pub struct Model {
    /// The name under which the API offers it.
    pub name: String,
    /// Shape and weights.
    pub loaded: LoadedModel,
    /// Tokens that end an output, in the order of the file; empty when the model names none.
    pub eos: Vec<TokenId>,
}

/// Loads the model that `source` means for `role`. Weights are mapped, not copied.
///
/// # Errors
/// Anything that [`ModelError`] names.
pub fn load(source: &ModelSource, role: ModelRole) -> Result<Model, ModelError> {
    let files = ModelFiles::open(source, role)?;
    let config = config_json::parse_config(&files.path_of(CONFIG), &files.read_json(CONFIG)?)?;
    let tensors = TensorFiles::open(&files)?;
    let weights = weights::read(&tensors, &config.spec, config.parts)?;
    let mut eos = match files.read_json_if_there(GENERATION_CONFIG)? {
        None => Vec::new(),
        Some(json) => {
            let path = files.path_of(GENERATION_CONFIG);
            config_json::parse_generation_config(&path, &json, config.spec.vocab_size)?
        }
    };
    if eos.is_empty() {
        eos = config.eos;
    }
    Ok(Model { name: source.name(), loaded: LoadedModel { spec: config.spec, weights }, eos })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_pair_loads_from_anywhere() {
        let target = load(&ModelSource::EmbeddedTiny, ModelRole::Target).expect("the target loads");
        let draft = load(&ModelSource::EmbeddedTiny, ModelRole::Draft).expect("the draft loads");
        assert_eq!((target.loaded.spec.layers, target.loaded.spec.hidden_size), (6, 384));
        assert_eq!((draft.loaded.spec.layers, draft.loaded.spec.hidden_size), (3, 128));
        assert_eq!(target.eos, [0, 2]);
        assert_eq!(target.name, "embedded:tiny");
        let embedding = &target.loaded.weights.embedding;
        assert_eq!(embedding.bytes().len(), 4096 * 384 * 2);
        assert!(target.loaded.weights.tied_head);
    }
}
