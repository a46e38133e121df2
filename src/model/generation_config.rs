//! generation_config.json: end tokens, and the sampling parameters that a model recommends.
#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use serde_json::Value;

use super::ModelError;
use super::json_file::JsonObject;
use crate::protocol::{
    MIN_P_BOUNDS, REPETITION_PENALTY_BOUNDS, TEMPERATURE_BOUNDS, TOP_K_BOUNDS, TOP_P_BOUNDS, TokenId,
};

/// Sampling parameters that a model recommends; `None` where it says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RecommendedSampling {
    /// 0 is greedy.
    pub temperature: Option<f32>,
    /// 0 disables the filter.
    pub top_k: Option<u32>,
    /// 1 disables the filter.
    pub top_p: Option<f32>,
    /// 0 disables the filter.
    pub min_p: Option<f32>,
    /// 1 disables the penalty.
    pub repetition_penalty: Option<f32>,
}

/// Parsed generation_config.json.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct GenerationConfig {
    /// `eos_token_id`; empty if absent.
    pub(super) eos: Vec<TokenId>,
    /// The sampling parameters.
    pub(super) sampling: RecommendedSampling,
}

impl GenerationConfig {
    /// Reads the file's contents; `file` is its path, for errors.
    pub(super) fn parse(file: &str, json: &Value, vocab_size: usize) -> Result<Self, ModelError> {
        let config = JsonObject::root(file, json)?;
        let number = |key: &str, bounds: RangeInclusive<f64>| {
            config.number_within(key, bounds).map(|number| number.map(|number| number as f32))
        };
        let (low, high) = (*TOP_K_BOUNDS.start() as f64, *TOP_K_BOUNDS.end() as f64);
        let top_k = config.number_within("top_k", low..=high)?;
        if top_k.is_some_and(|top_k| top_k.fract() != 0.0) {
            return Err(config.bad("top_k", "expected a whole number"));
        }
        let sampling = RecommendedSampling {
            temperature: number("temperature", TEMPERATURE_BOUNDS)?,
            top_k: top_k.map(|top_k| top_k.max(0.0) as u32),
            top_p: number("top_p", TOP_P_BOUNDS)?,
            min_p: number("min_p", MIN_P_BOUNDS)?,
            repetition_penalty: number("repetition_penalty", REPETITION_PENALTY_BOUNDS)?,
        };
        Ok(Self { eos: end_tokens(&config, vocab_size)?, sampling })
    }
}

/// `eos_token_id` of config.json or generation_config.json: one id or several; empty if absent.
pub(super) fn end_tokens(config: &JsonObject, vocab_size: usize) -> Result<Vec<TokenId>, ModelError> {
    let key = "eos_token_id";
    let ids = match config.get(key) {
        None => return Ok(Vec::new()),
        Some(Value::Array(ids)) => ids.as_slice(),
        Some(one) => std::slice::from_ref(one),
    };
    ids.iter()
        .map(|id| match id.as_u64() {
            Some(id) if id < vocab_size as u64 => Ok(id as TokenId),
            _ => Err(config.bad(key, format!("expected token ids below `vocab_size` {vocab_size}"))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(json: Value) -> Result<GenerationConfig, String> {
        GenerationConfig::parse("generation_config.json", &json, 10).map_err(|error| error.to_string())
    }

    #[test]
    fn a_models_sampling_parameters_are_read_and_the_rest_is_left_open() {
        let full = json!({
            "do_sample": true, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.05,
            "repetition_penalty": 1.1, "eos_token_id": [1, 2], "max_length": 99
        });
        let sampling = RecommendedSampling {
            temperature: Some(0.7),
            top_k: Some(20),
            top_p: Some(0.8),
            min_p: Some(0.05),
            repetition_penalty: Some(1.1),
        };
        assert_eq!(parse(full), Ok(GenerationConfig { eos: vec![1, 2], sampling }));
        assert_eq!(parse(json!({ "temperature": null })), Ok(GenerationConfig::default()));
        assert_eq!(parse(json!({ "top_k": -1 })).expect("no limit").sampling.top_k, Some(0));
    }

    #[test]
    fn a_value_that_makes_no_sense_is_an_error_that_names_it() {
        for (key, value, bound) in [
            ("temperature", json!(-1), "from 0 to 2"),
            ("temperature", json!("warm"), "from 0 to 2"),
            ("top_p", json!(0), "from 0.000001 to 1"),
            ("top_p", json!(90), "from 0.000001 to 1"),
            ("min_p", json!(1.5), "from 0 to 1"),
            ("top_k", json!(-5), "from -1 to 2147483647"),
            ("top_k", json!(2.5), "whole number"),
            ("repetition_penalty", json!(0), "from 0.01 to 10"),
            ("eos_token_id", json!(10), "below `vocab_size` 10"),
        ] {
            let message = parse(json!({ key: value.clone() })).expect_err("it makes no sense");
            assert!(message.contains(&format!("generation_config.json: `{key}` is {value}")), "{message}");
            assert!(message.contains(bound), "{message}");
        }
    }
}
