//! Rotary embeddings in config.json: `rope_theta` with `rope_scaling`, or the newer
//! `rope_parameters`, which holds both. Files have either, or both with equal values.
#![forbid(unsafe_code)]

use serde_json::Value;

use super::json_file::JsonObject;
use super::{ModelError, Rope, RopeScaling};

/// Default base of the frequencies, as in transformers.
const THETA_DEFAULT: f64 = 10_000.0;

/// Parses the rotary embedding from the root of config.json.
pub(super) fn read(config: &JsonObject) -> Result<Rope, ModelError> {
    refuse_partial_rotation(config)?;
    let parameters = config.object("rope_parameters")?;
    let scaling_object = config.object("rope_scaling")?;
    let theta = theta(config, parameters.as_ref(), scaling_object.as_ref())?;
    let newer = parameters.as_ref().map(scaling).transpose()?;
    let older = scaling_object.as_ref().map(scaling).transpose()?;
    if let (Some(newer), Some(older)) = (&newer, &older)
        && newer != older
    {
        return Err(config.bad("rope_scaling", "differs from `rope_parameters`; keep one of the two"));
    }
    Ok(Rope { theta, scaling: newer.or(older).unwrap_or(RopeScaling::Default) })
}

fn theta(
    config: &JsonObject,
    parameters: Option<&JsonObject>,
    scaling: Option<&JsonObject>,
) -> Result<f64, ModelError> {
    let mut theta = config.at_least("rope_theta", 1.0)?;
    for object in [parameters, scaling].into_iter().flatten() {
        let Some(here) = object.at_least("rope_theta", 1.0)? else { continue };
        if theta.is_some_and(|before| before != here) {
            return Err(object.bad("rope_theta", "differs from another `rope_theta` of this file"));
        }
        theta = Some(here);
    }
    Ok(theta.unwrap_or(THETA_DEFAULT))
}

fn scaling(object: &JsonObject) -> Result<RopeScaling, ModelError> {
    refuse_partial_rotation(object)?;
    if let Some((key, _)) = object.entries().find(|(_, value)| value.is_object()) {
        return Err(object.bad(key, "rotary parameters per kind of layer are not supported"));
    }
    // `type` is the old name of `rope_type`.
    let key = if object.get("rope_type").is_some() { "rope_type" } else { "type" };
    match object.string(key)?.unwrap_or("default") {
        "default" => Ok(RopeScaling::Default),
        "linear" => Ok(RopeScaling::Linear { factor: factor(object)? }),
        "llama3" => llama3(object),
        _ => Err(object.bad(key, "not supported; `default`, `linear` and `llama3` are")),
    }
}

fn llama3(object: &JsonObject) -> Result<RopeScaling, ModelError> {
    let low_freq_factor = object.required_positive("low_freq_factor")?;
    let high_freq_factor = object.required_positive("high_freq_factor")?;
    if high_freq_factor <= low_freq_factor {
        return Err(
            object.bad("high_freq_factor", format!("must be above `low_freq_factor` {low_freq_factor}"))
        );
    }
    Ok(RopeScaling::Llama3 {
        factor: factor(object)?,
        low_freq_factor,
        high_freq_factor,
        original_context: object.required_positive("original_max_position_embeddings")?,
    })
}

/// Scaling factors are at least 1: scaling only extends contexts.
fn factor(object: &JsonObject) -> Result<f64, ModelError> {
    object.at_least("factor", 1.0)?.ok_or_else(|| object.missing("factor"))
}

fn refuse_partial_rotation(object: &JsonObject) -> Result<(), ModelError> {
    match object.get("partial_rotary_factor") {
        None => Ok(()),
        Some(Value::Number(number)) if number.as_f64() == Some(1.0) => Ok(()),
        Some(_) => Err(object.bad("partial_rotary_factor", "partial rotation of heads is not supported")),
    }
}
