//! Classes of requests, and which request belongs to which.

use super::report::ClassReport;
use crate::protocol::{RequestSummary, Slo};
use crate::random::Draw;
use crate::telemetry::{LatencyHistogram, LatencyStats};

/// Random stream of the classes.
const CLASS_STREAM: u32 = 0x71;

/// A class of requests; its index among the classes is its priority, 0 the most urgent.
#[derive(Clone, Debug, PartialEq)]
pub struct SimulatedClass {
    /// Name for the report.
    pub name: String,
    /// Share of the requests, 0 to 1; those of all classes add up to 1.
    pub share: f64,
    /// Objectives of its requests.
    pub slo: Slo,
    /// What attaining them is worth beside other classes.
    pub weight: f32,
}

impl SimulatedClass {
    /// A class that is worth as much as any other.
    pub fn new(name: impl Into<String>, share: f64, slo: Slo) -> SimulatedClass {
        SimulatedClass { name: name.into(), share, slo, weight: 1.0 }
    }

    /// A single class that holds every request.
    pub fn of_all(slo: Slo) -> Vec<SimulatedClass> {
        vec![SimulatedClass::new("default", 1.0, slo)]
    }
}

/// The index of the class of each request, drawn by `seed`.
pub(super) fn assign(classes: &[SimulatedClass], requests: usize, seed: u64) -> Vec<u8> {
    let class_of = |request: u64| {
        let mut rest = Draw::new(seed, CLASS_STREAM, request, 0).uniform(0);
        let found = classes.iter().position(|class| {
            rest -= class.share;
            rest < 0.0
        });
        // rounding may leave the shares a little short of 1
        found.unwrap_or(classes.len().saturating_sub(1)) as u8
    };
    (0..requests as u64).map(class_of).collect()
}

/// What happened to the requests of one class.
#[derive(Debug)]
pub(super) struct ClassTally {
    class: SimulatedClass,
    requests: u64,
    refused: u64,
    refused_late: u64,
    finished: u64,
    attained: u64,
    ttft: LatencyHistogram,
    tpot: LatencyHistogram,
}

impl ClassTally {
    pub fn new(class: SimulatedClass) -> ClassTally {
        ClassTally {
            class,
            requests: 0,
            refused: 0,
            refused_late: 0,
            finished: 0,
            attained: 0,
            ttft: LatencyHistogram::new([]),
            tpot: LatencyHistogram::new([]),
        }
    }

    pub fn arrival(&mut self, admitted: bool) {
        self.requests += 1;
        self.refused += u64::from(!admitted);
    }

    /// Counts a request that was refused while it waited, because it could not be in time.
    pub fn refuse_late(&mut self) {
        self.refused += 1;
        self.refused_late += 1;
    }

    pub fn finish(&mut self, summary: &RequestSummary) {
        self.finished += 1;
        self.attained += u64::from(self.class.slo.is_attained_by(summary));
        self.ttft.record(summary.ttft());
        if let Some(tpot) = summary.tpot() {
            self.tpot.record(tpot);
        }
    }

    /// Requests that met their objectives.
    pub fn attained(&self) -> u64 {
        self.attained
    }

    /// The figures of a run of `seconds`.
    pub fn report(&self, seconds: f64) -> ClassReport {
        let attained = self.attained as f64;
        ClassReport {
            name: self.class.name.clone(),
            requests: self.requests,
            finished: self.finished,
            refused: self.refused,
            refused_late: self.refused_late,
            attainment: if self.requests > 0 { attained / self.requests as f64 } else { 0.0 },
            goodput_rps: if seconds > 0.0 { attained / seconds } else { 0.0 },
            ttft_ms: LatencyStats::of_histogram(&self.ttft),
            tpot_ms: LatencyStats::of_histogram(&self.tpot),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(shares: &[f64]) -> Vec<SimulatedClass> {
        let class = |&share: &f64| SimulatedClass::new("", share, Slo::default());
        shares.iter().map(class).collect()
    }

    #[test]
    fn classes_get_their_shares_by_seed() {
        let classes = shares(&[0.2, 0.5, 0.3]);
        let drawn = assign(&classes, 10_000, 1);
        assert_eq!(drawn, assign(&classes, 10_000, 1));
        assert_ne!(drawn, assign(&classes, 10_000, 2));
        for (index, class) in classes.iter().enumerate() {
            let found = drawn.iter().filter(|&&one| usize::from(one) == index).count() as f64 / 1e4;
            assert!((found - class.share).abs() < 0.02, "{found} instead of {}", class.share);
        }
    }

    #[test]
    fn requests_that_rounding_leaves_over_belong_to_the_last_class() {
        assert_eq!(assign(&shares(&[0.0, 0.0]), 3, 1), [1, 1, 1]);
        assert_eq!(assign(&SimulatedClass::of_all(Slo::default()), 3, 1), [0, 0, 0]);
    }
}
