//! The hidden states that a head reads, and in which layers of the target they are.
#![forbid(unsafe_code)]

use super::layout::{BLOCK_OBJECTS, EAGLE_OBJECTS, agreeing, is_speculators, layer_config, with_objects};
use crate::model::config_json::{DIMENSION_MAX, LAYERS_MAX};
use crate::model::json_file::JsonObject;
use crate::model::safetensors_file::TensorFiles;
use crate::model::{HIDDEN_STATE_LAYERS, HeadKind, HeadSettings, ModelError, ModelSpec, names_a_layer_twice};

/// The weight that fuses the hidden states, `[hidden, features × target hidden]`.
pub(super) const FUSION: &str = "fc.weight";
/// Hidden states that the released EAGLE-3 heads read if config.json lists none.
const EAGLE3_FEATURES: usize = 3;

/// The hidden states that a head reads for each token, concatenated in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    /// Width of the target's residual stream.
    pub target_hidden_size: usize,
    /// How many hidden states are concatenated.
    pub count: usize,
    /// The layers of the target that the residual stream is taken before, from 0: the stream that
    /// enters layer `k`. `None` if they are left to the target and none was given.
    pub layers: Option<Vec<usize>>,
}

/// The layers that a key of config.json lists.
struct Listed<'a> {
    object: JsonObject<'a>,
    key: &'static str,
    /// The streams that enter these layers.
    layers: Vec<usize>,
}

/// How a file counts layers.
#[derive(Clone, Copy)]
enum Convention {
    /// `k` is the stream that enters layer `k` (EAGLE, speculators, vLLM).
    Entering,
    /// `k` is the output of layer `k`, and −1 the embedding (DFlash, DSpark, DeepSpec).
    Leaving,
}

/// Reads which hidden states the head takes: from the layers that the deployment says, else
/// config.json. `hidden_size` is the head's.
pub(super) fn read(
    kind: HeadKind,
    config: &JsonObject,
    tensors: &TensorFiles,
    hidden_size: usize,
    target: Option<&ModelSpec>,
    settings: &HeadSettings,
) -> Result<Features, ModelError> {
    let target_hidden_size = target_hidden_size(config, hidden_size, target)?;
    let count = count(tensors, target_hidden_size)?;
    let layers = match &settings.hidden_state_layers {
        Some(layers) => Some(given_layers(layers, count, target)?),
        None => configured_layers(kind, config, count, target)
            .map_err(|error| error.open_to_setting(HIDDEN_STATE_LAYERS))?,
    };
    Ok(Features { target_hidden_size, count, layers })
}

/// The layers that the deployment says.
fn given_layers(
    layers: &[usize],
    count: usize,
    target: Option<&ModelSpec>,
) -> Result<Vec<usize>, ModelError> {
    match misfit(layers, count, target) {
        None => Ok(layers.to_vec()),
        Some(problem) => {
            Err(ModelError::Setting { key: HIDDEN_STATE_LAYERS, value: format!("{layers:?}"), problem })
        }
    }
}

/// The layers that config.json lists or leaves to the release.
fn configured_layers(
    kind: HeadKind,
    config: &JsonObject,
    count: usize,
    target: Option<&ModelSpec>,
) -> Result<Option<Vec<usize>>, ModelError> {
    match listed(config)? {
        Some(Listed { object, key, layers }) => match misfit(&layers, count, target) {
            None => Ok(Some(layers)),
            Some(problem) => Err(object.bad(key, problem)),
        },
        None if kind != HeadKind::Eagle3 => Err(config.missing("target_layer_ids")),
        None => target.map(|target| eagle3_default(config, count, target.layers)).transpose(),
    }
}

/// Why these layers are not those of `count` hidden states of the target; `None` if they can be.
fn misfit(layers: &[usize], count: usize, target: Option<&ModelSpec>) -> Option<String> {
    if names_a_layer_twice(layers) {
        return Some("names a layer twice".to_owned());
    }
    if layers.len() != count {
        return Some(format!("lists {} layers, but `{FUSION}` takes {count}", layers.len()));
    }
    let target_layers = target?.layers;
    let layer = layers.iter().find(|&&layer| layer >= target_layers)?;
    Some(format!(
        "asks for the stream that enters layer {layer}, counted from 0, but the target has {target_layers} layers"
    ))
}

/// The head's own word on the target's hidden size, which is its own if it says nothing.
fn target_hidden_size(
    config: &JsonObject,
    hidden_size: usize,
    target: Option<&ModelSpec>,
) -> Result<usize, ModelError> {
    let key = "target_hidden_size";
    let written = config.size(key, DIMENSION_MAX)?;
    let size = written.unwrap_or(hidden_size);
    let Some(target) = target.filter(|target| target.hidden_size != size) else { return Ok(size) };
    let problem = format!("the target's is {}: the head was made for another target", target.hidden_size);
    Err(match written {
        Some(_) => config.bad(key, problem),
        None => layer_config(config)?.bad("hidden_size", problem),
    })
}

/// Hidden states that the fusion takes: its columns over the target's hidden size.
fn count(tensors: &TensorFiles, target_hidden_size: usize) -> Result<usize, ModelError> {
    let shape = tensors.shape(FUSION)?;
    match shape {
        [_, columns] if *columns > 0 && columns.is_multiple_of(target_hidden_size) => {
            Ok(columns / target_hidden_size)
        }
        found => Err(ModelError::FusionWidth {
            file: tensors.path_of(FUSION).to_owned(),
            tensor: FUSION,
            found: found.to_vec(),
            target_hidden_size,
        }),
    }
}

/// The layers that config.json lists, as those that the stream enters.
fn listed<'a>(config: &JsonObject<'a>) -> Result<Option<Listed<'a>>, ModelError> {
    let entering = with_objects(config, &EAGLE_OBJECTS)?;
    let leaving = with_objects(config, &BLOCK_OBJECTS)?;
    let sources = [
        ("eagle_aux_hidden_state_layer_ids", Convention::Entering, entering),
        ("aux_hidden_state_layer_ids", Convention::Entering, vec![config.clone()]),
        ("target_layer_ids", Convention::Leaving, leaving),
    ];
    let mut found: Option<Listed<'a>> = None;
    for (key, convention, objects) in sources {
        let Some((object, value)) = agreeing(&objects, key)? else { continue };
        // only the speculators library writes the plain key, with the convention of vLLM
        if key == "aux_hidden_state_layer_ids" && !is_speculators(config) {
            return Err(object.bad(
                key,
                "how it counts layers is not known outside of a speculators config; write \
                 `eagle_aux_hidden_state_layer_ids` (the stream that enters a layer) or `target_layer_ids` \
                 (the output of a layer) instead",
            ));
        }
        let layers = parse(&object, key, value, convention)?;
        if found.as_ref().is_some_and(|before| before.layers != layers) {
            return Err(
                object.bad(key, "names other layers than another key of this file; keep one of the two")
            );
        }
        found.get_or_insert(Listed { object, key, layers });
    }
    Ok(found)
}

fn parse(
    object: &JsonObject,
    key: &str,
    value: &serde_json::Value,
    convention: Convention,
) -> Result<Vec<usize>, ModelError> {
    let first = match convention {
        Convention::Entering => 0,
        Convention::Leaving => -1,
    };
    let entering = |id: &serde_json::Value| {
        let id = id.as_i64().filter(|id| (first..LAYERS_MAX as i64).contains(id))?;
        Some((id - first) as usize)
    };
    let layers: Option<Vec<usize>> =
        value.as_array().filter(|ids| !ids.is_empty()).and_then(|ids| ids.iter().map(entering).collect());
    layers.ok_or_else(|| object.bad(key, format!("expected a list of layers, whole numbers from {first} on")))
}

/// The layers of the EAGLE-3 release: near the start, in the middle and near the end.
fn eagle3_default(config: &JsonObject, count: usize, layers: usize) -> Result<Vec<usize>, ModelError> {
    let key = "eagle_aux_hidden_state_layer_ids";
    if count != EAGLE3_FEATURES {
        let problem = format!("missing, and `{FUSION}` takes {count} hidden states");
        return Err(config.bad(key, problem));
    }
    let ids = [2, layers / 2, layers.saturating_sub(3)];
    if !ids.is_sorted_by(|before, after| before < after) {
        let problem = format!("missing, and a target of {layers} layers is too short for the usual ones");
        return Err(config.bad(key, problem));
    }
    Ok(ids.to_vec())
}
