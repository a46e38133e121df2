//! Sources of arrivals: trace files and generators.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::trace::{TRACE_ROWS_MAX, TraceRow, parse_csv, parse_jsonl};
use super::{SourceParseError, TraceError};
use crate::random::gamma;

/// Source of prompt and output lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lengths {
    /// The trace's own lengths.
    Trace,
    /// Drawn from the statistics of [`spec_bench`](super::spec_bench); the trace's lengths are ignored.
    SpecBench,
}

/// Random stream of the inter-arrival times.
const GAP_STREAM: u32 = 0x31;
/// Syntax of the generators, for error messages.
const POISSON_FORM: &str = "poisson:RPS,SECONDS";
const GAMMA_FORM: &str = "gamma:RPS,CV,SECONDS";

/// A trace file or a generator.
#[derive(Clone, Debug, PartialEq)]
pub enum TraceSource {
    /// A trace file, `.csv` or `.jsonl`.
    File(PathBuf),
    /// Independent gamma-distributed gaps; a coefficient of variation of 1 is a Poisson process.
    Gamma {
        /// Mean requests per second.
        rps: f64,
        /// Coefficient of variation of the gaps.
        cv: f64,
        /// Duration of the trace, in seconds.
        seconds: f64,
    },
}

impl FromStr for TraceSource {
    type Err = SourceParseError;

    fn from_str(text: &str) -> Result<TraceSource, SourceParseError> {
        let numbers = |list: &str| -> Option<Vec<f64>> {
            let numbers: Vec<f64> =
                list.split(',').map(|one| one.trim().parse().ok()).collect::<Option<_>>()?;
            numbers.iter().all(|number| number.is_finite() && *number > 0.0).then_some(numbers)
        };
        let (form, source) = match text.split_once(':') {
            Some(("poisson", list)) => (POISSON_FORM, numbers(list).and_then(|all| poisson(&all))),
            Some(("gamma", list)) => (GAMMA_FORM, numbers(list).and_then(|all| gamma_gaps(&all))),
            _ => return Ok(TraceSource::File(text.into())),
        };
        source.ok_or_else(|| SourceParseError::Formula(text.to_owned(), form))
    }
}

fn poisson(numbers: &[f64]) -> Option<TraceSource> {
    let &[rps, seconds] = numbers else { return None };
    bounded(TraceSource::Gamma { rps, cv: 1.0, seconds }, rps * seconds)
}

fn gamma_gaps(numbers: &[f64]) -> Option<TraceSource> {
    let &[rps, cv, seconds] = numbers else { return None };
    bounded(TraceSource::Gamma { rps, cv, seconds }, rps * seconds)
}

fn bounded(source: TraceSource, requests: f64) -> Option<TraceSource> {
    (requests < TRACE_ROWS_MAX as f64 / 2.0).then_some(source)
}

impl TraceSource {
    /// Loads or generates the arrivals. Generated ones are a function of `seed`.
    ///
    /// # Errors
    /// Any [`TraceError`].
    pub fn rows(&self, seed: u64) -> Result<Vec<TraceRow>, TraceError> {
        match self {
            TraceSource::File(path) => read(path),
            &TraceSource::Gamma { rps, cv, seconds } => Ok(generate(seed, rps, cv, seconds)),
        }
    }

    /// Default source of lengths; generated traces have none of their own.
    pub fn lengths(&self) -> Lengths {
        match self {
            TraceSource::File(_) => Lengths::Trace,
            TraceSource::Gamma { .. } => Lengths::SpecBench,
        }
    }
}

fn read(path: &Path) -> Result<Vec<TraceRow>, TraceError> {
    let parse = match path.extension().and_then(|extension| extension.to_str()) {
        Some("csv") => parse_csv,
        Some("jsonl") => parse_jsonl,
        _ => return Err(TraceError::Extension(path.to_owned())),
    };
    let text = std::fs::read_to_string(path)
        .map_err(|source| TraceError::Unreadable { path: path.to_owned(), source })?;
    parse(&text)
}

fn generate(seed: u64, rps: f64, cv: f64, seconds: f64) -> Vec<TraceRow> {
    // gamma distribution: shape = 1/CV², mean = shape · scale
    let shape = 1.0 / (cv * cv);
    let scale = 1.0 / (rps * shape);
    let mut rows = Vec::new();
    let mut arrival_s = 0.0;
    while rows.len() < TRACE_ROWS_MAX {
        arrival_s += scale * gamma(seed, GAP_STREAM, rows.len() as u64, shape);
        if arrival_s >= seconds {
            break;
        }
        rows.push(TraceRow { line: rows.len() + 1, arrival_s, prompt_tokens: None, output_tokens: None });
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generators_and_files_are_distinguished() {
        let poisson = TraceSource::Gamma { rps: 2.5, cv: 1.0, seconds: 60.0 };
        assert_eq!("poisson:2.5,60".parse(), Ok(poisson));
        let gamma = TraceSource::Gamma { rps: 5.0, cv: 2.0, seconds: 60.0 };
        assert_eq!("gamma:5,2,60".parse(), Ok(gamma));
        assert_eq!("traces/a.csv".parse(), Ok(TraceSource::File("traces/a.csv".into())));
        for bad in
            ["poisson:1", "poisson:0,60", "poisson:1,inf", "gamma:1,2", "poisson:1e9,1e9", "gamma:a,1,1"]
        {
            assert!(bad.parse::<TraceSource>().is_err(), "{bad}");
        }
    }

    #[test]
    fn gaps_have_the_rate_and_the_spread_asked_for() {
        for cv in [0.5, 1.0, 2.0] {
            let source = TraceSource::Gamma { rps: 20.0, cv, seconds: 1000.0 };
            let rows = source.rows(5).unwrap();
            assert_eq!(rows, source.rows(5).unwrap());
            let gaps: Vec<f64> = rows.windows(2).map(|w| w[1].arrival_s - w[0].arrival_s).collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let sd = (gaps.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
            assert!((mean * 20.0 - 1.0).abs() < 0.06, "cv {cv}: mean {mean}");
            assert!((sd / mean / cv - 1.0).abs() < 0.1, "cv {cv}: {}", sd / mean);
        }
    }

    #[test]
    fn files_that_are_not_there_or_not_traces_are_named() {
        let error = |path: &str| TraceSource::File(path.into()).rows(0).unwrap_err().to_string();
        assert!(error("no/such/trace.csv").starts_with("no/such/trace.csv: "));
        assert_eq!(error("trace.txt"), "trace.txt: unknown trace format, expected .csv or .jsonl");
    }
}
