//! Sampling parameters and stop conditions.

use std::hash::{BuildHasher, Hasher};
use std::ops::RangeInclusive;

use serde_json::Value;

use super::backend::BackendInfo;
use super::error::ApiError;
use super::fields::{Fields, brief, whole, wrong_type};
use crate::protocol::{
    MIN_P_BOUNDS, REPETITION_PENALTY_BOUNDS, SamplingParams, TEMPERATURE_BOUNDS, TOP_K_BOUNDS, TOP_P_BOUNDS,
    TokenId,
};

/// Accepted range of presence and frequency penalties.
pub const PENALTY_BOUNDS: RangeInclusive<f64> = -2.0..=2.0;
/// Accepted range of a logit bias.
pub const LOGIT_BIAS_BOUNDS: RangeInclusive<f64> = -100.0..=100.0;
/// Most entries of `logit_bias`.
pub const LOGIT_BIAS_TOKENS_MAX: usize = 1024;
/// Most stop strings of a request. The OpenAI API takes 4; harnesses for code send a dozen.
pub const STOP_STRINGS_MAX: usize = 64;
/// Longest stop string, in bytes.
pub const STOP_STRING_BYTES_MAX: usize = 256;
/// Most stop tokens of a request.
pub const STOP_TOKENS_MAX: usize = 64;

/// Bound of server-drawn seeds; below it every JSON reader keeps them exact.
const DRAWN_SEED_BITS: u32 = 53;

/// Parses the sampling parameters.
///
/// # Errors
/// 400, naming the field, its bounds and its value.
pub fn sampling(fields: &mut Fields, info: &BackendInfo) -> Result<SamplingParams, ApiError> {
    let defaults = &info.sampling;
    let number = |value: Option<f64>, default: f32| value.map_or(default, |value| value as f32);
    Ok(SamplingParams {
        temperature: number(fields.number("temperature", TEMPERATURE_BOUNDS)?, defaults.temperature),
        top_k: match fields.integer("top_k", TOP_K_BOUNDS)? {
            Some(top_k) => top_k.max(0) as u32,
            None => defaults.top_k,
        },
        top_p: number(fields.number("top_p", TOP_P_BOUNDS)?, defaults.top_p),
        min_p: number(fields.number("min_p", MIN_P_BOUNDS)?, defaults.min_p),
        seed: seed(fields)?,
        repetition_penalty: number(
            fields.number("repetition_penalty", REPETITION_PENALTY_BOUNDS)?,
            defaults.repetition_penalty,
        ),
        presence_penalty: number(fields.number("presence_penalty", PENALTY_BOUNDS)?, 0.0),
        frequency_penalty: number(fields.number("frequency_penalty", PENALTY_BOUNDS)?, 0.0),
        logit_bias: logit_bias(fields, info.vocab_size)?,
        constraint: None,
    })
}

/// The given seed or a random one. Negative seeds are taken as two's complement.
fn seed(fields: &mut Fields) -> Result<u64, ApiError> {
    let Some(value) = fields.take("seed") else { return Ok(fresh_seed()) };
    value.as_u64().or_else(|| whole(&value).map(|seed| seed as u64)).ok_or_else(|| {
        ApiError::invalid("seed", format!("seed must be a 64-bit whole number and is {}", brief(&value)))
    })
}

/// An unpredictable seed, from the random keys of the standard library's hasher.
pub fn fresh_seed() -> u64 {
    std::hash::RandomState::new().build_hasher().finish() >> (u64::BITS - DRAWN_SEED_BITS)
}

fn logit_bias(fields: &mut Fields, vocab_size: u32) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let Some(value) = fields.take("logit_bias") else { return Ok(Vec::new()) };
    let Value::Object(entries) = value else {
        return Err(wrong_type("logit_bias", "an object from token ids to numbers", &value));
    };
    bounded("logit_bias", "entries", entries.len(), LOGIT_BIAS_TOKENS_MAX)?;
    let mut biases = Vec::with_capacity(entries.len());
    for (key, value) in &entries {
        let token = key.parse().ok().filter(|token| *token < vocab_size).ok_or_else(|| {
            let message = format!("logit_bias: {key:?} is not a token id below {vocab_size}");
            ApiError::invalid("logit_bias", message)
        })?;
        let bias = value.as_f64().filter(|bias| LOGIT_BIAS_BOUNDS.contains(bias)).ok_or_else(|| {
            let (low, high) = (LOGIT_BIAS_BOUNDS.start(), LOGIT_BIAS_BOUNDS.end());
            let message =
                format!("logit_bias[{key}] must be a number from {low} to {high} and is {}", brief(value));
            ApiError::invalid("logit_bias", message)
        })?;
        biases.push((token, bias as f32));
    }
    biases.sort_unstable_by_key(|(token, _)| *token);
    if let Some(pair) = biases.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(ApiError::invalid("logit_bias", format!("logit_bias names token {} twice", pair[0].0)));
    }
    Ok(biases)
}

/// Parses `stop`: a string or an array of strings. Empty ones stop nothing and are left out.
///
/// # Errors
/// 400 for another type, too many strings, or one that is too long.
pub fn stop_strings(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let expected = "a string or an array of strings";
    let values = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(values)) => values,
        Some(value) => vec![value],
    };
    bounded("stop", "strings", values.len(), STOP_STRINGS_MAX)?;
    let mut stops = Vec::with_capacity(values.len());
    for value in values {
        let Value::String(stop) = value else { return Err(wrong_type("stop", expected, &value)) };
        bounded("stop", "bytes in a string", stop.len(), STOP_STRING_BYTES_MAX)?;
        if !stop.is_empty() {
            stops.push(stop);
        }
    }
    Ok(stops)
}

/// Parses `stop_token_ids` and `ignore_eos` into the set of tokens that end the output.
///
/// # Errors
/// 400 for another type, too many tokens, or a token id out of range.
pub fn stop_tokens(fields: &mut Fields, info: &BackendInfo) -> Result<Vec<TokenId>, ApiError> {
    let mut tokens = match fields.boolean("ignore_eos")? {
        Some(true) => Vec::new(),
        _ => info.end_tokens.clone(),
    };
    if let Some(value) = fields.take("stop_token_ids") {
        let ids = token_ids("stop_token_ids", &value, info.vocab_size)?;
        bounded("stop_token_ids", "tokens", ids.len(), STOP_TOKENS_MAX)?;
        tokens.extend(ids);
        tokens.sort_unstable();
        tokens.dedup();
    }
    Ok(tokens)
}

/// Parses an array of token ids.
///
/// # Errors
/// 400 for another type or a token id out of range.
pub fn token_ids(path: &str, value: &Value, vocab_size: u32) -> Result<Vec<TokenId>, ApiError> {
    let Value::Array(values) = value else { return Err(wrong_type(path, "an array of token ids", value)) };
    let token = |(at, value): (usize, &Value)| {
        let id = whole(value).filter(|id| (0..i64::from(vocab_size)).contains(id));
        id.map(|id| id as TokenId).ok_or_else(|| {
            let message =
                format!("{path}[{at}] must be a token id below {vocab_size} and is {}", brief(value));
            ApiError::invalid(path, message)
        })
    };
    values.iter().enumerate().map(token).collect()
}

fn bounded(path: &str, what: &str, actual: usize, limit: usize) -> Result<(), ApiError> {
    if actual <= limit {
        return Ok(());
    }
    Err(ApiError::invalid(path, format!("{path} may have at most {limit} {what} and has {actual}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The row of a request field in docs/api.md.
    fn documented(field: &str) -> &'static str {
        let docs = include_str!("../../docs/api.md");
        let section = docs.split("\n## Request fields\n").nth(1).expect("a section on fields");
        let mut rows = section.lines().filter(|line| line.starts_with("| `"));
        rows.find(|row| row.split('|').nth(1).is_some_and(|cell| cell.contains(&format!("`{field}`"))))
            .unwrap_or_else(|| panic!("docs/api.md has no row for {field}"))
    }

    #[test]
    fn the_docs_give_the_bounds_of_every_number() {
        let range = |low: f64, high: f64| format!("{low} to {high}");
        let of = |bounds: RangeInclusive<f64>| range(*bounds.start(), *bounds.end());
        for (field, bounds) in [
            ("temperature", of(TEMPERATURE_BOUNDS)),
            ("top_p", of(TOP_P_BOUNDS)),
            ("min_p", of(MIN_P_BOUNDS)),
            ("repetition_penalty", of(REPETITION_PENALTY_BOUNDS)),
            ("presence_penalty", of(PENALTY_BOUNDS)),
            ("frequency_penalty", of(PENALTY_BOUNDS)),
            ("logit_bias", of(LOGIT_BIAS_BOUNDS)),
            ("logit_bias", format!("up to {LOGIT_BIAS_TOKENS_MAX} token ids")),
            ("stop", format!("up to {STOP_STRINGS_MAX}, each up to {STOP_STRING_BYTES_MAX} bytes")),
            ("stop_token_ids", format!("up to {STOP_TOKENS_MAX} token ids")),
        ] {
            assert!(documented(field).contains(&bounds), "docs/api.md does not say {bounds} of {field}");
        }
    }
}
