//! Many runs: policies against loads, on all cores.

use super::parallel::in_parallel;
use super::{Report, Settings, SimulationError, simulate};
use crate::pacing::ServiceOrder;
use crate::policy::{Fixed, Learner, Static};
use crate::protocol::{Clock, Micros};
use crate::replay::Arrival;

/// Below this attainment a policy is saturated.
pub const SATURATED_ATTAINMENT: f64 = 0.95;
/// Halvings of the interval that holds the saturation load: 2 % in load.
const BISECTIONS: u32 = 6;
/// Factor between the loads that are tried before the bisection.
const BRACKET_FACTOR: f64 = 2.0;
/// Most steps of the search for the interval, each way.
const BRACKETS_MAX: u32 = 10;

/// A policy and the order of service that it is run with.
pub struct Contender {
    /// In which order requests are served.
    pub order: ServiceOrder,
    /// Makes the policy's learner, a fresh one for each run.
    pub learner: Box<dyn Fn() -> Box<dyn Learner> + Sync>,
}

impl Contender {
    /// Simulates the contender in place of the settings' order of service.
    ///
    /// # Errors
    /// As [`simulate`].
    pub fn simulate(&self, workload: &[Arrival], settings: &Settings) -> Result<Report, SimulationError> {
        let settings = Settings { order: self.order, ..settings.clone() };
        simulate(workload, &settings, (self.learner)())
    }
}

/// One run to do.
pub struct Job<'a> {
    /// Multiple of the workload's rate.
    pub rate: f64,
    /// What the report calls the load.
    pub load: f64,
    /// What to run.
    pub contender: &'a Contender,
}

/// The workload at `rate` times its rate: arrival times divided by it.
pub fn at_load(workload: &[Arrival], rate: f64) -> Vec<Arrival> {
    let scaled = |arrival: &Arrival| Arrival { at: Micros((arrival.at.0 as f64 / rate) as u64), ..*arrival };
    workload.iter().map(scaled).collect()
}

/// Runs all jobs on up to `threads` threads; reports come in the order of the jobs, with
/// the time that each took by `clock`.
///
/// # Errors
/// That of the first job, in their order, that failed.
pub fn sweep(
    workload: &[Arrival],
    settings: &Settings,
    jobs: &[Job<'_>],
    threads: usize,
    clock: &dyn Clock,
) -> Result<Vec<Report>, SimulationError> {
    in_parallel(jobs.len(), threads, |index| run(workload, settings, &jobs[index], clock))
        .into_iter()
        .collect()
}

fn run(
    workload: &[Arrival],
    settings: &Settings,
    job: &Job<'_>,
    clock: &dyn Clock,
) -> Result<Report, SimulationError> {
    let started = clock.now();
    let workload = at_load(workload, job.rate);
    let mut report = job.contender.simulate(&workload, settings)?;
    let span_s = workload.last().map_or(0.0, |last| last.at.as_secs_f64());
    report.load = job.load;
    report.rate_multiple = job.rate;
    report.offered_rps = if span_s > 0.0 { workload.len() as f64 / span_s } else { 0.0 };
    report.wall_seconds = Some(clock.now().saturating_sub(started).as_secs_f64());
    Ok(report)
}

/// The multiple of the workload's rate at which plain decoding saturates: its attainment
/// falls below [`SATURATED_ATTAINMENT`]. `None` when it does at any load that was tried, or
/// at none.
///
/// # Errors
/// As [`simulate`].
pub fn saturation_load(workload: &[Arrival], settings: &Settings) -> Result<Option<f64>, SimulationError> {
    let settings = Settings { order: ServiceOrder::Fifo, ..settings.clone() };
    let saturated = |load: f64| -> Result<bool, SimulationError> {
        let report = simulate(&at_load(workload, load), &settings, Box::new(Static::new(Fixed::NONE)))?;
        Ok(report.attainment < SATURATED_ATTAINMENT)
    };
    let start = saturated(1.0)?;
    let factor = if start { 1.0 / BRACKET_FACTOR } else { BRACKET_FACTOR };
    let (mut near, mut far) = (1.0, factor);
    let mut brackets = 1;
    while saturated(far)? == start {
        if brackets == BRACKETS_MAX {
            return Ok(None);
        }
        (near, far, brackets) = (far, far * factor, brackets + 1);
    }
    let (mut fine, mut over) = if start { (far, near) } else { (near, far) };
    for _ in 0..BISECTIONS {
        let middle = (fine + over) / 2.0;
        if saturated(middle)? { over = middle } else { fine = middle }
    }
    Ok(Some(fine))
}
