//! The highest load at which a policy still attains a share of the requests' objectives.

use std::collections::BTreeMap;

use serde::Serialize;

use super::parallel::in_parallel;
use super::{Contender, Settings, SimulationError, at_load};
use crate::protocol::Micros;
use crate::replay::Arrival;
use crate::stats::interval::MeanInterval;

/// Attainments whose loads are looked for, highest first.
pub const CAPACITY_ATTAINMENTS: [f64; 3] = [0.99, 0.95, 0.90];
/// Loads that are tried are powers of this: capacities are exact to 2 %.
const RESOLUTION: f64 = 1.02;
/// Highest and lowest power that is tried: about 2^10 and 2^-10 times the workload's rate.
const POWER_MAX: i32 = 350;
/// First step of the search for an interval, in powers; it doubles.
const STRIDE: i32 = 4;

/// What one seed draws.
pub struct Trial {
    /// Requests, in order of arrival.
    pub workload: Vec<Arrival>,
    /// With the seed of the trial.
    pub settings: Settings,
}

impl Trial {
    /// Arrivals per second of the workload at its own rate.
    fn offered_rps(&self) -> f64 {
        let span = self.workload.last().map_or(Micros::ZERO, |last| last.at);
        if span > Micros::ZERO { self.workload.len() as f64 / span.as_secs_f64() } else { 0.0 }
    }
}

/// The capacity of a policy at one attainment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Capacity {
    /// Name of the policy.
    pub policy: String,
    /// Share of the requests that attain their objectives.
    pub attainment: f64,
    /// Mean over the seeds, in requests/s; `None` if a seed has no capacity.
    pub rps: Option<MeanInterval>,
    /// One per seed.
    pub seeds: Vec<SeedCapacity>,
}

/// The capacity of a policy under one seed. `None`: the policy attains the share at any load
/// that was tried, or at none.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SeedCapacity {
    /// The seed.
    pub seed: u64,
    /// Multiple of the workload's own rate.
    pub rate_multiple: Option<f64>,
    /// Requests per second.
    pub rps: Option<f64>,
}

/// The capacity of each policy at each of [`CAPACITY_ATTAINMENTS`], over all `trials`, on up to
/// `threads` threads.
///
/// # Errors
/// That of the first run, by policy and trial, that failed.
pub fn capacities(
    policies: &[Contender],
    trials: &[Trial],
    threads: usize,
) -> Result<Vec<Capacity>, SimulationError> {
    let found = in_parallel(policies.len() * trials.len(), threads, |place| {
        of_trial(&policies[place / trials.len()], &trials[place % trials.len()])
    });
    let found: Vec<_> = found.into_iter().collect::<Result<_, _>>()?;
    let mut capacities = Vec::new();
    for (policy, found) in policies.iter().zip(found.chunks(trials.len().max(1))) {
        for (index, attainment) in CAPACITY_ATTAINMENTS.into_iter().enumerate() {
            let seeds: Vec<SeedCapacity> = found.iter().map(|of_seed| of_seed[index]).collect();
            let rps: Option<Vec<f64>> = seeds.iter().map(|seed| seed.rps).collect();
            let rps = rps.and_then(|rps| MeanInterval::of(&rps));
            capacities.push(Capacity { policy: (policy.learner)().name(), attainment, rps, seeds });
        }
    }
    Ok(capacities)
}

/// The capacity at each of [`CAPACITY_ATTAINMENTS`].
fn of_trial(policy: &Contender, trial: &Trial) -> Result<Vec<SeedCapacity>, SimulationError> {
    let attainment = |rate: f64| -> Result<f64, SimulationError> {
        Ok(policy.simulate(&at_load(&trial.workload, rate), &trial.settings)?.attainment)
    };
    let multiples = Search::new(attainment).highest(&CAPACITY_ATTAINMENTS)?;
    let capacity = |rate_multiple: Option<f64>| SeedCapacity {
        seed: trial.settings.seed,
        rate_multiple,
        rps: rate_multiple.map(|multiple| multiple * trial.offered_rps()),
    };
    Ok(multiples.into_iter().map(capacity).collect())
}

/// Looks for loads among the powers of [`RESOLUTION`], and runs none of them twice.
struct Search<F> {
    /// Attainment at a load.
    attainment: F,
    /// By power.
    known: BTreeMap<i32, f64>,
}

impl<E, F: FnMut(f64) -> Result<f64, E>> Search<F> {
    fn new(attainment: F) -> Search<F> {
        Search { attainment, known: BTreeMap::new() }
    }

    /// For each of `targets`, the highest load that attains it; `None` if all do or none does.
    fn highest(&mut self, targets: &[f64]) -> Result<Vec<Option<f64>>, E> {
        let mut start = 0;
        let mut loads = Vec::new();
        for &target in targets {
            let found = self.highest_power(target, start)?;
            // the next target's is not far
            start = found.unwrap_or(start);
            loads.push(found.map(load));
        }
        Ok(loads)
    }

    /// A power that attains `target` while the next one does not.
    fn highest_power(&mut self, target: f64, start: i32) -> Result<Option<i32>, E> {
        let Some((mut attains, mut misses)) = self.bracket(target, start)? else { return Ok(None) };
        while misses - attains > 1 {
            let middle = attains + (misses - attains) / 2;
            if self.attains(target, middle)? { attains = middle } else { misses = middle }
        }
        Ok(Some(attains))
    }

    /// A power that attains `target` and a higher one that does not, around `start` if possible.
    fn bracket(&mut self, target: f64, start: i32) -> Result<Option<(i32, i32)>, E> {
        let upwards = self.attains(target, start)?;
        let (mut near, mut stride) = (start, STRIDE);
        while near.abs() < POWER_MAX {
            let far = if upwards { near + stride } else { near - stride }.clamp(-POWER_MAX, POWER_MAX);
            if self.attains(target, far)? != upwards {
                return Ok(Some(if upwards { (near, far) } else { (far, near) }));
            }
            (near, stride) = (far, stride * 2);
        }
        Ok(None)
    }

    fn attains(&mut self, target: f64, power: i32) -> Result<bool, E> {
        if let Some(&known) = self.known.get(&power) {
            return Ok(known >= target);
        }
        let attainment = (self.attainment)(load(power))?;
        self.known.insert(power, attainment);
        Ok(attainment >= target)
    }
}

/// The load of a power.
fn load(power: i32) -> f64 {
    RESOLUTION.powi(power)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pacing::ServiceOrder;
    use crate::policy::{Fixed, Learner, Static};
    use crate::protocol::Slo;
    use crate::simulate::SimulatedClass;
    use crate::simulate::tests::{poisson, settings};

    /// Loads found where `attainment` is a function of the load, and how often it was asked.
    fn search(attainment: impl Fn(f64) -> f64) -> (Vec<Option<f64>>, u32) {
        let mut asked = 0;
        let found = Search::new(|load| -> Result<f64, std::convert::Infallible> {
            asked += 1;
            Ok(attainment(load))
        })
        .highest(&CAPACITY_ATTAINMENTS);
        (found.unwrap(), asked)
    }

    #[test]
    fn the_highest_loads_are_found_within_two_percent_wherever_they_are() {
        for scale in [0.01, 0.4, 1.0, 1.7, 300.0] {
            let (found, asked) = search(|load| 1.0 - 0.05 * load / scale);
            for (found, exact) in found.into_iter().zip([0.2, 1.0, 2.0]) {
                let ratio = found.unwrap() / (exact * scale);
                assert!(ratio <= 1.0 + 1e-9 && ratio > 1.0 / 1.0201, "{scale}: {ratio} of the exact load");
            }
            assert!(asked < 45, "{asked} runs");
        }
    }

    #[test]
    fn a_policy_that_attains_at_any_load_or_at_none_has_no_capacity() {
        assert_eq!(search(|_| 1.0).0, [None; 3]);
        assert_eq!(search(|_| 0.0).0, [None; 3]);
        let found = search(|load| if load < 2.0 { 0.92 } else { 0.5 }).0;
        assert!(found[0].is_none() && found[1].is_none() && found[2].is_some_and(|load| load > 1.96));
    }

    #[test]
    fn capacities_come_by_policy_and_attainment_with_an_entry_per_seed() {
        let slo = Slo { ttft: Some(Micros::from_millis(200)), tpot: None };
        let trial = |seed| {
            let mut settings = Settings { seed, classes: SimulatedClass::of_all(slo), ..settings() };
            // so few that requests wait
            settings.limits.running_requests_max = 4;
            Trial { workload: poisson(5.0, 6.0), settings }
        };
        let fixed = |draft_tokens| -> Contender {
            Contender {
                order: ServiceOrder::Fifo,
                learner: Box::new(move || -> Box<dyn Learner> {
                    Box::new(Static::new(Fixed { draft_tokens }))
                }),
            }
        };
        let (policies, trials) = ([fixed(0), fixed(2)], [trial(1), trial(2)]);
        let found = capacities(&policies, &trials, 3).unwrap();
        assert_eq!(found, capacities(&policies, &trials, 1).unwrap());

        let rows: Vec<(&str, f64)> = found.iter().map(|one| (one.policy.as_str(), one.attainment)).collect();
        let of = |policy| CAPACITY_ATTAINMENTS.map(|attainment| (policy, attainment));
        assert_eq!(rows, [of("none"), of("fixed:2")].concat());
        for one in &found {
            assert_eq!(one.seeds.iter().map(|seed| seed.seed).collect::<Vec<_>>(), [1, 2]);
            let multiple = one.seeds[0].rate_multiple.unwrap();
            let own_rate = trials[0].offered_rps();
            assert!((one.seeds[0].rps.unwrap() / (multiple * own_rate) - 1.0).abs() < 1e-9);
            let mean = (one.seeds[0].rps.unwrap() + one.seeds[1].rps.unwrap()) / 2.0;
            assert!((one.rps.unwrap().mean / mean - 1.0).abs() < 1e-9);
        }
        let plain = &found[1];
        let attainment = |rate| {
            let workload = at_load(&trials[0].workload, rate);
            policies[0].simulate(&workload, &trials[0].settings).unwrap().attainment
        };
        let highest = plain.seeds[0].rate_multiple.unwrap();
        assert!(attainment(highest) >= 0.95 && attainment(highest * RESOLUTION) < 0.95);
    }
}
