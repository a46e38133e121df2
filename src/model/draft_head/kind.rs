//! Which kind of head a directory holds, by config.json and the names of its tensors.
#![forbid(unsafe_code)]

use crate::model::json_file::JsonObject;
use crate::model::safetensors_file::TensorFiles;
use crate::model::{HeadKind, ModelError};

/// Parts of names that architectures use, in lower case, the longer ones first: what they stand for.
const ARCHITECTURES: [(&str, Result<HeadKind, &str>); 8] = [
    ("peagle", Err("P-EAGLE")),
    ("eagle3", Ok(HeadKind::Eagle3)),
    ("eagle", Err("EAGLE-1 or EAGLE-2")),
    ("dspark", Ok(HeadKind::DSpark)),
    ("dflash", Ok(HeadKind::DFlash)),
    ("medusa", Err("Medusa")),
    ("mtp", Err("MTP")),
    ("nextn", Err("MTP")),
];

/// The kind of head that config.json describes and the tensors confirm, or show alone: releases of
/// EAGLE-3 call themselves `LlamaForCausalLM`. `None` for a model.
///
/// # Errors
/// It is a kind of head that is not supported.
pub(in crate::model) fn recognise(
    config: &JsonObject,
    tensors: &TensorFiles,
) -> Result<Option<HeadKind>, ModelError> {
    if let Some(kind) = described(config)? {
        return Ok(Some(kind));
    }
    if !tensors.has("fc.weight") {
        let is_mtp = tensors.names().any(|(name, _)| name.starts_with("mtp."));
        return if is_mtp { Err(unsupported(config, "architectures", "MTP")) } else { Ok(None) };
    }
    if tensors.has("midlayer.hidden_norm.weight") || tensors.has("layers.0.hidden_norm.weight") {
        Ok(Some(HeadKind::Eagle3))
    } else if tensors.has("markov_head.markov_w1.weight") {
        Ok(Some(HeadKind::DSpark))
    } else if tensors.has("hidden_norm.weight") {
        Ok(Some(HeadKind::DFlash))
    } else {
        Err(unsupported(config, "architectures", "EAGLE-1 or EAGLE-2"))
    }
}

/// The kind that config.json describes by `speculators_model_type` or by its architecture.
fn described(config: &JsonObject) -> Result<Option<HeadKind>, ModelError> {
    let key = "speculators_model_type";
    if let Some(name) = config.string(key)? {
        return match name {
            "eagle3" => Ok(Some(HeadKind::Eagle3)),
            "dflash" => Ok(Some(HeadKind::DFlash)),
            "dspark" => Ok(Some(HeadKind::DSpark)),
            other => Err(unsupported(config, key, other)),
        };
    }
    let key = "architectures";
    let names = config.get(key).and_then(|names| names.as_array()).into_iter().flatten();
    for name in names.filter_map(|name| name.as_str()).map(str::to_lowercase) {
        let known = ARCHITECTURES.iter().find(|(part, _)| name.contains(part));
        match known {
            None => {}
            Some((_, Ok(kind))) => return Ok(Some(*kind)),
            Some((_, Err(kind))) => return Err(unsupported(config, key, kind)),
        }
    }
    Ok(None)
}

fn unsupported(config: &JsonObject, key: &str, kind: &str) -> ModelError {
    config.bad(key, format!("{kind} heads are not supported; EAGLE-3, DFlash and DSpark are"))
}
