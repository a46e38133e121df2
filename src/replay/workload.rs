//! Turns trace rows into requests.

use super::spec_bench::Task;
use super::trace::TraceRow;
use super::{Lengths, TraceError, TraceSource};
use crate::protocol::Micros;
use crate::random::Draw;

/// Random stream of the thinning.
const THIN_STREAM: u32 = 0x51;

/// How a trace is scaled and filtered.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkloadOptions {
    /// Rate factor: arrival times are divided by it, so bursts get shorter.
    pub rate_scale: f64,
    /// Share of the requests kept at random, 0 to 1; bursts keep their duration.
    pub thin: f64,
    /// Most requests; later ones are dropped.
    pub requests_max: Option<usize>,
    /// Requests with a longer prompt are dropped.
    pub prompt_tokens_max: Option<u32>,
    /// Source of prompt and output lengths.
    pub lengths: Lengths,
    /// Seed of everything that is drawn.
    pub seed: u64,
}

/// One request of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Arrival time since the start.
    pub at: Micros,
    /// Prompt length in tokens.
    pub prompt_tokens: u32,
    /// Output length in tokens.
    pub output_tokens: u32,
    /// Task; determines draft acceptance in the simulator.
    pub task: Task,
}

/// Loads the requests of `source` under `options`, in order of arrival.
///
/// # Errors
/// Any [`TraceError`].
pub fn load(source: &TraceSource, options: &WorkloadOptions) -> Result<Vec<Arrival>, TraceError> {
    let mut arrivals = Vec::new();
    for (index, row) in source.rows(options.seed)?.iter().enumerate() {
        if options.requests_max.is_some_and(|most| arrivals.len() >= most) {
            break;
        }
        let kept = Draw::new(options.seed, THIN_STREAM, index as u64, 0).uniform(0) < options.thin;
        if kept {
            let arrival = options.arrival(row, arrivals.len() as u64)?;
            if options.prompt_tokens_max.is_none_or(|most| arrival.prompt_tokens <= most) {
                arrivals.push(arrival);
            }
        }
    }
    if arrivals.is_empty() { Err(TraceError::Empty) } else { Ok(arrivals) }
}

impl WorkloadOptions {
    /// The whole trace at its original times.
    pub const fn whole(lengths: Lengths, seed: u64) -> WorkloadOptions {
        WorkloadOptions {
            rate_scale: 1.0,
            thin: 1.0,
            requests_max: None,
            prompt_tokens_max: None,
            lengths,
            seed,
        }
    }

    fn arrival(&self, row: &TraceRow, request: u64) -> Result<Arrival, TraceError> {
        let task = Task::of(self.seed, request);
        let missing = |column| TraceError::NoLength { line: row.line, column };
        let (prompt_tokens, output_tokens) = match self.lengths {
            Lengths::SpecBench => task.lengths(self.seed, request),
            Lengths::Trace => (
                row.prompt_tokens.ok_or_else(|| missing("prompt_tokens"))?,
                row.output_tokens.ok_or_else(|| missing("output_tokens"))?,
            ),
        };
        let at = Micros::from_secs_f64(row.arrival_s / self.rate_scale);
        Ok(Arrival { at, prompt_tokens, output_tokens, task })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: WorkloadOptions = WorkloadOptions::whole(Lengths::Trace, 1);

    fn fixture(name: &str) -> TraceSource {
        TraceSource::File(format!("{}/tests/fixtures/traces/{name}", env!("CARGO_MANIFEST_DIR")).into())
    }

    #[test]
    fn both_file_formats_give_the_same_requests() {
        let csv = load(&fixture("small.csv"), &PLAIN).unwrap();
        assert_eq!(csv, load(&fixture("small.jsonl"), &PLAIN).unwrap());
        assert_eq!(csv.len(), 8);
        assert_eq!((csv[1].at, csv[1].prompt_tokens, csv[1].output_tokens), (Micros(250_000), 120, 40));
    }

    #[test]
    fn scaling_limits_and_bounds_apply() {
        let source = fixture("small.csv");
        let all = load(&source, &PLAIN).unwrap();
        let fast = load(&source, &WorkloadOptions { rate_scale: 2.0, ..PLAIN }).unwrap();
        assert_eq!(fast[7].at, Micros(all[7].at.0 / 2));
        let few = load(&source, &WorkloadOptions { requests_max: Some(3), ..PLAIN }).unwrap();
        assert_eq!(few, all[..3]);
        let short = load(&source, &WorkloadOptions { prompt_tokens_max: Some(200), ..PLAIN }).unwrap();
        assert!(short.len() < 8 && short.iter().all(|one| one.prompt_tokens <= 200));
        let none = load(&source, &WorkloadOptions { prompt_tokens_max: Some(1), ..PLAIN });
        assert!(matches!(none, Err(TraceError::Empty)));
    }

    #[test]
    fn thinning_keeps_its_share_and_the_times() {
        let source = TraceSource::Gamma { rps: 10.0, cv: 1.0, seconds: 200.0 };
        let options = WorkloadOptions { lengths: Lengths::SpecBench, ..PLAIN };
        let all = load(&source, &options).unwrap();
        let thin = load(&source, &WorkloadOptions { thin: 0.25, ..options }).unwrap();
        let share = thin.len() as f64 / all.len() as f64;
        assert!((0.2..0.3).contains(&share), "{share}");
        assert!(thin.iter().all(|one| all.iter().any(|other| other.at == one.at)));
    }

    #[test]
    fn missing_lengths_name_their_row_unless_they_are_drawn() {
        let source = fixture("no_lengths.csv");
        let error = load(&source, &PLAIN).unwrap_err().to_string();
        assert_eq!(error, "line 3: no output_tokens; add it, or draw lengths with --lengths spec-bench");
        let drawn = load(&source, &WorkloadOptions { lengths: Lengths::SpecBench, ..PLAIN }).unwrap();
        assert!(drawn.iter().all(|one| one.prompt_tokens > 10 && one.output_tokens > 0));
        assert_eq!(drawn, load(&source, &WorkloadOptions { lengths: Lengths::SpecBench, ..PLAIN }).unwrap());
    }
}
