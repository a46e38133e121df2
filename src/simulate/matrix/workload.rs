//! The requests of a cell.

use super::cell::{ArrivalProcess, Cell};
use crate::protocol::Micros;
use crate::random::{Draw, gamma};
use crate::replay::Arrival;
use crate::replay::spec_bench::Task;

/// Random streams of gaps, of prompts, of outputs and of the phases of on/off arrivals.
const GAP_STREAM: u32 = 0x62;
const PROMPT_STREAM: u32 = 0x63;
const OUTPUT_STREAM: u32 = 0x64;
const PHASE_STREAM: u32 = 0x65;

/// Mean requests per second before the load scales them.
const RATE: f64 = 20.0;
/// Shape of the gamma gaps: a coefficient of variation of 1/√0.2.
const GAMMA_SHAPE: f64 = 0.2;
/// Rates of on/off arrivals, and bounds of a phase in seconds.
const RATE_ON: f64 = 32.0;
const RATE_OFF: f64 = 8.0;
const PHASE_S: (f64, f64) = (4.0, 14.0);
/// Bounds of the lengths, in tokens.
const PROMPT_TOKENS: (f64, f64) = (1.0, 12_000.0);
const OUTPUT_TOKENS: (f64, f64) = (2.0, 1500.0);

/// The first `requests` requests of `cell`, at about 20 per second.
pub fn workload(cell: &Cell, requests: usize) -> Vec<Arrival> {
    let length = |stream, request: u64, median: u32, (low, high): (f64, f64)| {
        let spread = cell.length_log_sd * Draw::new(cell.seed, stream, request, 0).normal();
        (f64::from(median) * spread.exp()).round().clamp(low, high) as u32
    };
    let times = arrival_times(cell, requests);
    let arrivals = (0..).zip(times).map(|(request, at_s)| Arrival {
        at: Micros::from_secs_f64(at_s),
        prompt_tokens: length(PROMPT_STREAM, request, cell.prompt_tokens, PROMPT_TOKENS),
        output_tokens: length(OUTPUT_STREAM, request, cell.output_tokens, OUTPUT_TOKENS),
        // of no consequence: the cell says how good the draft is
        task: Task::Chat,
    });
    arrivals.collect()
}

/// Seconds at which requests arrive.
fn arrival_times(cell: &Cell, requests: usize) -> Vec<f64> {
    let gap = |request: usize, shape: f64, rate: f64| {
        gamma(cell.seed, GAP_STREAM, request as u64, shape) / (shape * rate)
    };
    let mut phases = Phases::new(cell.seed);
    let mut at_s = 0.0;
    let next = |request: usize| {
        at_s += match cell.arrivals {
            ArrivalProcess::Poisson => gap(request, 1.0, RATE),
            ArrivalProcess::Gamma => gap(request, GAMMA_SHAPE, RATE),
            ArrivalProcess::OnOff => gap(request, 1.0, phases.rate_at(at_s)),
        };
        at_s
    };
    (0..requests).map(next).collect()
}

/// Alternating phases of a high and a low rate.
struct Phases {
    seed: u64,
    /// Of the phase; even ones have the high rate.
    number: u64,
    end_s: f64,
}

impl Phases {
    fn new(seed: u64) -> Phases {
        Phases { seed, number: 0, end_s: Phases::length_s(seed, 0) }
    }

    fn length_s(seed: u64, number: u64) -> f64 {
        PHASE_S.0 + (PHASE_S.1 - PHASE_S.0) * Draw::new(seed, PHASE_STREAM, number, 0).uniform(0)
    }

    /// The rate `at_s` seconds after the start; to be asked in the order of time.
    fn rate_at(&mut self, at_s: f64) -> f64 {
        while at_s >= self.end_s {
            self.number += 1;
            self.end_s += Phases::length_s(self.seed, self.number);
        }
        if self.number.is_multiple_of(2) { RATE_ON } else { RATE_OFF }
    }
}
