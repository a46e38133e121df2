//! Parsers of argument values shared by several commands.

use crate::protocol::{Micros, Slo};
use crate::replay::Lengths;

/// Parses a number.
pub fn number(text: &str) -> Result<f64, String> {
    text.trim().parse().map_err(|_| format!("{text:?} is not a number"))
}

/// Parses a finite number above 0.
pub fn positive(text: &str) -> Result<f64, String> {
    let number = number(text)?;
    if number.is_finite() && number > 0.0 { Ok(number) } else { Err("must be above 0".to_owned()) }
}

/// Parses a number from 0 to `max`.
pub fn within(text: &str, max: f64) -> Result<f64, String> {
    let number = number(text)?;
    if (0.0..=max).contains(&number) { Ok(number) } else { Err(format!("must be within 0 and {max}")) }
}

/// Parses the source of output lengths.
pub fn lengths(text: &str) -> Result<Lengths, String> {
    match text {
        "trace" => Ok(Lengths::Trace),
        "spec-bench" => Ok(Lengths::SpecBench),
        _ => Err("must be trace or spec-bench".to_owned()),
    }
}

/// Parses objectives as `ttft_ms=N,tpot_ms=N`, in any order; both are optional.
pub fn slo(text: &str) -> Result<Slo, String> {
    let mut slo = Slo::default();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let bound = Micros::from_secs_f64(positive(value)? / 1e3);
        match name.trim() {
            "ttft_ms" => slo.ttft = Some(bound),
            "tpot_ms" => slo.tpot = Some(bound),
            other => return Err(format!("{other:?} is neither ttft_ms nor tpot_ms")),
        }
    }
    Ok(slo)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objectives_are_read_from_one_text() {
        let both = Slo { ttft: Some(Micros(500_000)), tpot: Some(Micros(12_500)) };
        assert_eq!(slo("ttft_ms=500,tpot_ms=12.5"), Ok(both));
        assert_eq!(slo("tpot_ms=12.5"), Ok(Slo { ttft: None, ..both }));
        assert_eq!(slo(""), Ok(Slo::default()));
        for bad in ["ttft_ms", "ttft_ms=0", "ttft_ms=x", "itl_ms=3", "tpot_ms=-1"] {
            assert!(slo(bad).is_err(), "{bad}");
        }
    }
}
