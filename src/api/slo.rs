//! Latency objectives of a request, from its body, headers or class.

use std::ops::RangeInclusive;

use axum::http::HeaderMap;

use super::backend::BackendInfo;
use super::error::ApiError;
use super::fields::Fields;
use crate::protocol::{Micros, Slo};

/// Range of objectives that a request may set, in milliseconds.
pub const SLO_MS_BOUNDS: RangeInclusive<f64> = 0.001..=3_600_000.0;

/// Headers of the TTFT objective, in order of precedence.
const TTFT_HEADERS: [&str; 2] = ["x-slo-ttft-ms", "x-llm-d-slo-ttft-ms"];

/// Headers of the TPOT objective, in order of precedence.
const TPOT_HEADERS: [&str; 2] = ["x-slo-tpot-ms", "x-llm-d-slo-tpot-ms"];

/// Parses class and objectives of a request. Each objective comes from the body's `slo`,
/// else from a header, else from the class.
///
/// # Errors
/// 400 for an unknown class or a value out of bounds.
pub fn parse(fields: &mut Fields, headers: &HeaderMap, info: &BackendInfo) -> Result<(u8, Slo), ApiError> {
    let (mut class, mut body) = (info.default_class, Slo::default());
    if let Some(value) = fields.take("slo") {
        let mut slo = fields.nested("slo", value)?;
        body.ttft = slo.number("ttft_ms", SLO_MS_BOUNDS)?.map(micros);
        body.tpot = slo.number("tpot_ms", SLO_MS_BOUNDS)?.map(micros);
        if let Some(name) = slo.string("class")? {
            class = class_index(&name, info)?;
        }
        slo.finish()?;
    }
    let of_class = info.classes[usize::from(class)].slo;
    let (ttft, tpot) = (header(headers, TTFT_HEADERS)?, header(headers, TPOT_HEADERS)?);
    let slo = Slo { ttft: body.ttft.or(ttft).or(of_class.ttft), tpot: body.tpot.or(tpot).or(of_class.tpot) };
    Ok((class, slo))
}

fn class_index(name: &str, info: &BackendInfo) -> Result<u8, ApiError> {
    let index = info.classes.iter().position(|class| class.name == name);
    index.and_then(|index| u8::try_from(index).ok()).ok_or_else(|| {
        let known: Vec<&str> = info.classes.iter().map(|class| class.name.as_str()).collect();
        ApiError::invalid("slo.class", format!("slo.class must be one of {known:?} and is {name:?}"))
    })
}

fn header(headers: &HeaderMap, names: [&str; 2]) -> Result<Option<Micros>, ApiError> {
    let Some((name, value)) = names.iter().find_map(|name| Some((*name, headers.get(*name)?))) else {
        return Ok(None);
    };
    let millis = value.to_str().ok().and_then(|text| text.trim().parse::<f64>().ok());
    match millis.filter(|millis| SLO_MS_BOUNDS.contains(millis)) {
        Some(millis) => Ok(Some(micros(millis))),
        None => {
            let (low, high) = (SLO_MS_BOUNDS.start(), SLO_MS_BOUNDS.end());
            let message = format!("header {name} must be a number from {low} to {high} and is {value:?}");
            Err(ApiError::invalid(name, message))
        }
    }
}

fn micros(millis: f64) -> Micros {
    Micros::from_secs_f64(millis * 1e-3)
}
