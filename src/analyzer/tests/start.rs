//! Measuring at the start of a daemon, on machines that do other work as well.

use super::*;
use crate::analyzer::{StartProfile, analyze_at_start};
use crate::random::SplitMix64;

const LIMIT_S: f64 = 5.0;

/// Of a call's number and the time in microseconds: a factor on it, and microseconds more.
type Disturbance = fn(u64, u64) -> (f64, f64);

fn started(disturbance: Disturbance, scale: f64) -> (StartProfile, LawfulExecutor) {
    let clock = FakeClock::default();
    let mut executor = LawfulExecutor { disturbance, scale, ..LawfulExecutor::new(info(), &clock) };
    let fingerprint = Fingerprint { backend: "cpu".to_owned(), ..Fingerprint::default() };
    let options = AnalyzerOptions { limit: Micros::from_secs_f64(LIMIT_S), ..options(1.5) };
    let start =
        analyze_at_start(&mut executor, &clock, fingerprint, &options, &mut |_| {}).expect("a profile");
    (start, executor)
}

/// Between 0 and 1, another value for each number.
fn random(number: u64) -> f64 {
    f64::from(SplitMix64::new(number).uniform())
}

/// Predicted over true time, of what a policy looks at first.
fn ratios(start: &StartProfile) -> Vec<f64> {
    let cost = start.profile.cost_model().expect("valid");
    let ratio = |model: &LatencyModel, law: LatencyTerms, rows| {
        let work = Work { rows, context_tokens: 64, attended_tokens: 64, ..Work::default() };
        model.micros(&work) / LatencyModel::new(law).expect("a law").micros(&work)
    };
    let draft = cost.draft.expect("there is a draft");
    let target = [1, 2, 4, 8].map(|rows| ratio(&cost.target, target_law(), rows));
    target.into_iter().chain([1, 4].map(|rows| ratio(&draft, draft_law(), rows))).collect()
}

#[test]
fn a_quiet_machine_is_measured_once() {
    let (start, executor) = started(|_, _| (1.0, 0.0), 1.0);
    assert_eq!((start.attempts, start.doubts.as_slice()), (1, &[][..]));
    assert!(executor.clock.now() < Micros::from_secs_f64(2.0), "{:?}", executor.clock.now());
    assert!(ratios(&start).iter().all(|ratio| (ratio - 1.0).abs() < 0.06), "{:?}", ratios(&start));
}

#[test]
fn where_half_of_all_passes_lose_time_slices_the_times_are_right_within_a_factor_of_two() {
    for scale in [1.0, 0.1] {
        let (start, _) = started(|call, _| (1.0, if random(call) < 0.5 { 12_000.0 } else { 0.0 }), scale);
        let ratios: Vec<f64> = ratios(&start).iter().map(|ratio| ratio / scale).collect();
        assert!(ratios.iter().all(|ratio| (0.5..2.0).contains(ratio)), "{ratios:?} {:?}", start.doubts);
    }
}

#[test]
fn a_measurement_that_a_second_reading_contradicts_is_repeated() {
    // until the first measurement is over, everything takes ten times as long
    let (start, _) = started(|_, now| (if now < 1_500_000 { 10.0 } else { 1.0 }, 0.0), 1.0);
    assert_eq!((start.attempts, start.doubts.as_slice()), (2, &[][..]));
    assert!(ratios(&start).iter().all(|ratio| (ratio - 1.0).abs() < 0.25), "{:?}", ratios(&start));
}

#[test]
fn in_lasting_doubt_the_model_is_a_cautious_one() {
    // passes take anything from their time to a hundred times that
    let (start, executor) = started(|call, _| (100f64.powf(random(call)), 0.0), 1.0);
    assert!(!start.doubts.is_empty() && start.profile.origin.starts_with("modelled"), "{start:?}");
    let cost = start.profile.cost_model().expect("valid");
    assert!(cost.target.rows_us(8) >= 1.875 * cost.target.rows_us(1) && cost.draft.is_some());
    assert!(ratios(&start).iter().all(|&ratio| (0.9..20.0).contains(&ratio)), "{:?}", ratios(&start));
    assert!(executor.clock.now() < Micros::from_secs_f64(LIMIT_S + 2.0), "{:?}", executor.clock.now());
}

#[test]
fn the_limit_binds_however_long_a_pass_takes() {
    // 0.6 s for a row of the target, 0.1 s for a call of the draft
    let (start, executor) = started(|_, _| (1.0, 0.0), 300.0);
    assert!(executor.clock.now() <= Micros::from_secs_f64(LIMIT_S + 0.5), "{:?}", executor.clock.now());
    assert!(start.doubts[0].contains("took too long to measure"), "{:?}", start.doubts);
    let ratios: Vec<f64> = ratios(&start).iter().map(|ratio| ratio / 300.0).collect();
    assert!(ratios.iter().all(|ratio| (0.8..4.0).contains(ratio)), "{ratios:?}");
    // and even where there is no time at all
    let (start, _) = started(|_, _| (1.0, 0.0), 1e5);
    assert!(start.profile.draft.is_some() && start.profile.points.len() >= 2, "{:?}", start.profile.points);
}
