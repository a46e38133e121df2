//! All policies in one cell.

use serde::Serialize;

use super::Machine;
use super::cell::Cell;
use super::workload::workload;
use crate::policy::{Fixed, Static};
use crate::protocol::{Micros, Slo};
use crate::replay::Arrival;
use crate::replay::spec_bench::Task;
use crate::simulate::virtual_executor::TimeError;
use crate::simulate::{
    Contender, Report, Settings, SimulatedClass, SimulationError, at_load, saturation_load, simulate,
};

/// Keeps a ratio of two goodputs of 0 at 1; in requests/s.
const GOODPUT_EPSILON: f64 = 1e-9;
/// First tokens are late if their median is beyond this multiple of the best rival's ...
const LATE_FACTOR: f64 = 2.0;
/// ... and this much more, in ms.
const LATE_MS: f64 = 20.0;
/// Attainment that could be worth late first tokens.
const ATTAINMENT_GAIN: f64 = 0.005;
/// Output tokens of the request that times a lone step.
const LONE_OUTPUT_TOKENS: u32 = 64;

/// What a policy achieved in a cell.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Standing {
    /// Name of the policy.
    pub policy: String,
    /// Requests that met their objectives, per second.
    pub goodput_rps: f64,
    /// Requests that met their objectives, over all.
    pub attainment: f64,
    /// Median time to first token.
    pub ttft_p50_ms: Option<f64>,
    /// Mean over requests of the time per output token.
    pub tpot_mean_ms: Option<f64>,
    /// Output tokens per second.
    pub tokens_per_second: f64,
}

impl Standing {
    fn of(report: Report) -> Standing {
        Standing {
            policy: report.policy,
            goodput_rps: report.goodput_rps,
            attainment: report.attainment,
            ttft_p50_ms: report.ttft_ms.p50,
            tpot_mean_ms: report.tpot_ms.mean,
            tokens_per_second: report.tokens_per_second,
        }
    }

    /// This one's goodput over the `other`'s.
    fn ratio_to(&self, other: &Standing) -> f64 {
        (self.goodput_rps + GOODPUT_EPSILON) / (other.goodput_rps + GOODPUT_EPSILON)
    }
}

/// A cell and what happened in it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Played {
    /// The cell.
    pub cell: Cell,
    /// Its TPOT objective, in ms.
    pub tpot_ms: Option<f64>,
    /// Arrivals per second.
    pub offered_rps: f64,
    /// The policy under test.
    pub policy: Standing,
    /// Its rivals.
    pub rivals: Vec<Standing>,
}

impl Played {
    /// The rival with the highest goodput; the policy itself if it has no rivals.
    pub fn best_rival(&self) -> &Standing {
        let by_goodput = |a: &&Standing, b: &&Standing| a.goodput_rps.total_cmp(&b.goodput_rps);
        self.rivals.iter().max_by(by_goodput).unwrap_or(&self.policy)
    }

    /// Goodput over the best rival's.
    pub fn ratio(&self) -> f64 {
        self.policy.ratio_to(self.best_rival())
    }

    /// Goodput over that of the rival `index`.
    pub fn ratio_to(&self, index: usize) -> f64 {
        self.policy.ratio_to(&self.rivals[index])
    }

    /// Whether the median first token is more than twice as late as the best rival's, and no
    /// attainment was gained by it.
    pub fn is_late_for_nothing(&self) -> bool {
        let best = self.best_rival();
        let (Some(ours), Some(theirs)) = (self.policy.ttft_p50_ms, best.ttft_p50_ms) else { return false };
        ours > LATE_FACTOR * theirs + LATE_MS && self.policy.attainment <= best.attainment + ATTAINMENT_GAIN
    }
}

/// Runs every policy on the requests of `cell`; `None` if plain decoding saturates at no load.
pub(super) fn play(
    cell: &Cell,
    machine: &Machine,
    requests: usize,
) -> Result<Option<Played>, SimulationError> {
    let slo = cell.slo(lone_step(&machine.settings)?);
    let settings = cell.settings(&machine.settings, slo);
    let workload = workload(cell, requests);
    let Some(saturation) = saturation_load(&workload, &settings)? else { return Ok(None) };
    let workload = at_load(&workload, saturation * cell.load);
    let standing = |contender: &Contender| contender.simulate(&workload, &settings).map(Standing::of);
    let span_s = workload.last().map_or(0.0, |last| last.at.as_secs_f64());
    Ok(Some(Played {
        cell: cell.clone(),
        tpot_ms: slo.tpot.map(Micros::as_millis_f64),
        offered_rps: if span_s > 0.0 { workload.len() as f64 / span_s } else { 0.0 },
        policy: standing(&machine.policy)?,
        rivals: machine.rivals.iter().map(standing).collect::<Result<_, _>>()?,
    }))
}

/// Time of a plain step of a request that is alone on the machine as profiled.
fn lone_step(machine: &Settings) -> Result<Micros, SimulationError> {
    let request =
        Arrival { at: Micros::ZERO, prompt_tokens: 1, output_tokens: LONE_OUTPUT_TOKENS, task: Task::Chat };
    let settings = Settings {
        error: TimeError::NONE,
        classes: SimulatedClass::of_all(Slo::default()),
        ..machine.clone()
    };
    let report = simulate(&[request], &settings, Box::new(Static::new(Fixed::NONE)))?;
    Ok(Micros::from_secs_f64(report.tpot_ms.mean.unwrap_or(0.0) / 1e3))
}
