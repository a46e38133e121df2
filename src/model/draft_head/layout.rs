//! Where heads keep their keys: at the root of config.json or in objects of it.
#![forbid(unsafe_code)]

use serde_json::Value;

use crate::model::ModelError;
use crate::model::json_file::JsonObject;

/// The object that holds the shape of the layers: `transformer_layer_config` where there is one
/// (speculators), else all of config.json.
pub(super) fn layer_config<'a>(config: &JsonObject<'a>) -> Result<JsonObject<'a>, ModelError> {
    Ok(config.object("transformer_layer_config")?.unwrap_or_else(|| config.clone()))
}

/// Whether config.json has the layout of the speculators library.
pub(super) fn is_speculators(config: &JsonObject) -> bool {
    config.get("speculators_model_type").is_some()
}

/// Values of `key` in any of `objects`; an error if two of them differ.
pub(super) fn agreeing<'a>(
    objects: &[JsonObject<'a>],
    key: &str,
) -> Result<Option<(JsonObject<'a>, &'a Value)>, ModelError> {
    let mut found: Option<(JsonObject<'a>, &'a Value)> = None;
    for object in objects {
        let Some(value) = object.get(key) else { continue };
        if found.as_ref().is_some_and(|(_, before)| *before != value) {
            return Err(
                object.bad(key, "differs from another value of this key in the file; keep one of the two")
            );
        }
        found.get_or_insert((object.clone(), value));
    }
    Ok(found)
}

/// config.json, and those of these objects that it has: keys may stand in any of them.
pub(super) fn with_objects<'a>(
    config: &JsonObject<'a>,
    keys: &[&str],
) -> Result<Vec<JsonObject<'a>>, ModelError> {
    let mut objects = vec![config.clone()];
    for key in keys {
        objects.extend(config.object(key)?);
    }
    Ok(objects)
}

/// The object that EAGLE-3 heads may keep keys in.
pub(super) const EAGLE_OBJECTS: [&str; 1] = ["eagle_config"];
/// Those of DFlash and DSpark heads.
pub(super) const BLOCK_OBJECTS: [&str; 2] = ["dflash_config", "dspark_config"];
