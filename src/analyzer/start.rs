//! Measuring at the start of a daemon: in little time, on a machine that may be busy.
//!
//! A disturbed measurement can be off by orders of magnitude, more than the online correction can
//! make up for. So the fit is checked against a second reading of a few shapes, and by its error on
//! held-out points. If a check fails, the measurement is repeated, and a shape that was measured
//! twice keeps its shorter time. If the checks still fail, the profile is a conservative model.

use super::grid::{Shape, Tier, shapes};
use super::measure;
use super::{
    AnalyzerError, AnalyzerOptions, HOLD_OUT_EVERY, HOST_US, OnProgress, between, measured_profile,
    of_drafter,
};
use crate::executor::Executor;
use crate::protocol::{Clock, ExecutorInfo, Micros, ModelRole};
use crate::timing::conservative::conservative;
use crate::timing::cost_model::LatencyModel;
use crate::timing::fit::{Fit, fit};
use crate::timing::profile::{Fingerprint, Profile};
use crate::timing::{PROFILE_FORMAT, ProfileError, ProfilePoint};

/// Measurements at most.
const ATTEMPTS_MAX: u32 = 3;
/// Times that each shape is read again to check a measurement.
const READINGS: usize = 8;
/// Share of the budget that the second reading may take.
const READING_SHARE: f64 = 0.2;
/// Most that a prediction and a reading may differ by, as a factor.
const RATIO_MAX: f64 = 2.5;
/// Shapes with more tokens only refine the price of a prefill.
const NEEDED_TOKENS_MAX: u32 = 32;
/// Largest mean error on points that the fit has not seen.
const FIT_ERROR_MAX: f64 = 0.5;

/// What was measured at the start.
#[derive(Clone, Debug)]
pub struct StartProfile {
    /// The step times, measured or conservative.
    pub profile: Profile,
    /// Which checks the measurements failed; empty if none.
    pub doubts: Vec<String>,
    /// Number of measurements.
    pub attempts: u32,
}

/// Measures `executor` for `options.budget`, repeats that if the result fails a check, and takes
/// at most `options.limit` for all of it. One pass of each model is measured in any case.
///
/// # Errors
/// As [`analyze`](super::analyze).
pub fn analyze_at_start(
    executor: &mut dyn Executor,
    clock: &dyn Clock,
    fingerprint: Fingerprint,
    options: &AnalyzerOptions,
    on_progress: OnProgress<'_>,
) -> Result<StartProfile, AnalyzerError> {
    let info = executor.info().clone();
    let deadline = clock.now() + options.limit;
    let mut points: Vec<ProfilePoint> = Vec::new();
    let mut attempts = 0;
    loop {
        attempts += 1;
        let left = deadline.saturating_sub(clock.now());
        let budget = options.budget.min(left);
        let once = AnalyzerOptions { budget, limit: left, ..options.clone() };
        merge(&mut points, super::measured(executor, clock, &once, on_progress)?);
        let until =
            deadline.min(clock.now() + Micros::from_secs_f64(READING_SHARE * options.budget.as_secs_f64()));
        let readings = measure::readings(executor, clock, &checked(&info), &once, READINGS, until)?;
        let found = fitted(&points, &readings, &info, &fingerprint);
        match found {
            Ok((target, draft)) => {
                let profile = measured_profile(&info, fingerprint, target, draft, points);
                return Ok(StartProfile { profile, doubts: vec![], attempts });
            }
            Err(doubts) if attempts == ATTEMPTS_MAX || clock.now() >= deadline => {
                merge(&mut points, readings);
                let profile = careful(fingerprint, &info, points)?;
                return Ok(StartProfile { profile, doubts, attempts });
            }
            Err(_) => {}
        }
    }
}

/// The fits of both models, or the checks that they fail.
fn fitted(
    points: &[ProfilePoint],
    readings: &[ProfilePoint],
    info: &ExecutorInfo,
    fingerprint: &Fingerprint,
) -> Result<(Fit, Option<Fit>), Vec<String>> {
    let mut doubts = Vec::new();
    let missing = missing_shapes(points, info);
    if missing > 0 {
        return Err(vec![format!(
            "{missing} of the batch shapes that a model needs took too long to measure"
        )]);
    }
    let mut one = |role| match fit(points, role, between(fingerprint), HOLD_OUT_EVERY) {
        Ok(found) => {
            doubts.extend(doubts_about(&found, role, readings));
            Some(found)
        }
        Err(error) => {
            doubts.push(error.to_string());
            None
        }
    };
    let target = one(ModelRole::Target);
    let draft = if info.drafts_on_device() { one(ModelRole::Draft) } else { None };
    match target {
        Some(target) if doubts.is_empty() => Ok((target, draft)),
        _ => Err(doubts),
    }
}

/// The checks that a fit fails.
fn doubts_about(found: &Fit, role: ModelRole, readings: &[ProfilePoint]) -> Vec<String> {
    let who = match role {
        ModelRole::Target => "the target",
        ModelRole::Draft => "the draft",
    };
    let mut doubts = Vec::new();
    let error = found.held_out.mape;
    if error > FIT_ERROR_MAX {
        doubts.push(format!("the times of {who} differ from their fit by {:.0} % on average", 100.0 * error));
    }
    let Ok(model) = LatencyModel::new(found.terms.clone()) else { return doubts };
    for reading in readings.iter().filter(|reading| reading.model == role) {
        let (predicted_us, read_us) = (reading.predicted_us(&model), reading.micros);
        if predicted_us > RATIO_MAX * read_us || read_us > RATIO_MAX * predicted_us {
            let rows = reading.rows;
            doubts.push(format!(
                "{who} at {rows} rows should take {predicted_us:.0} us and took {read_us:.0} us when read again"
            ));
        }
    }
    doubts
}

/// The shapes that are read a second time: single rows and a short draft, with little context.
fn checked(info: &ExecutorInfo) -> Vec<Shape> {
    let all = shapes(info);
    let mut chosen: Vec<Shape> = Vec::new();
    for model in [ModelRole::Target, ModelRole::Draft] {
        for rows in [1, 8] {
            let plain = |shape: &&Shape| {
                shape.model == model
                    && shape.rows == rows
                    && shape.prefill_tokens == 0
                    && shape.tier == Tier::Least
            };
            chosen.extend(all.iter().filter(plain).min_by_key(|shape| shape.context_tokens));
        }
    }
    chosen
}

/// Shapes that a fit needs and that were not measured.
fn missing_shapes(points: &[ProfilePoint], info: &ExecutorInfo) -> usize {
    let needed = |shape: &Shape| shape.tier == Tier::Least && shape.tokens() <= NEEDED_TOKENS_MAX;
    let needed = shapes(info).into_iter().filter(needed);
    needed.filter(|shape| !points.iter().any(|point| same_shape(point, &shape.point(0.0)))).count()
}

fn same_shape(one: &ProfilePoint, other: &ProfilePoint) -> bool {
    ProfilePoint { micros: 0.0, ..one.clone() } == ProfilePoint { micros: 0.0, ..other.clone() }
}

/// Adds points; a shape that was measured before keeps its shorter time, as all that disturbs a
/// measurement makes it longer.
fn merge(points: &mut Vec<ProfilePoint>, more: Vec<ProfilePoint>) {
    for point in more {
        match points.iter_mut().find(|known| same_shape(known, &point)) {
            Some(known) => known.micros = known.micros.min(point.micros),
            None => points.push(point),
        }
    }
}

/// The profile to start from when the measurements fail the checks.
fn careful(
    fingerprint: Fingerprint,
    info: &ExecutorInfo,
    points: Vec<ProfilePoint>,
) -> Result<Profile, AnalyzerError> {
    let terms = |role| {
        conservative(&points, role)
            .ok_or_else(|| ProfileError::TooFew("not even one pass was measured".to_owned()))
    };
    let target = terms(ModelRole::Target)?;
    let draft = info.drafts_on_device().then(|| terms(ModelRole::Draft)).transpose()?;
    let origin = "modelled: conservative, because the measurements at startup failed their checks";
    Ok(Profile {
        format: PROFILE_FORMAT,
        origin: origin.to_owned(),
        host_us: HOST_US,
        fingerprint,
        target,
        target_error: None,
        draft: draft.map(|terms| of_drafter(info, terms)),
        draft_error: None,
        reliability: None,
        points,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::ShadowOptions;

    #[test]
    fn rows_and_short_prefills_are_needed_and_long_prefills_are_not() {
        let info = ShadowOptions::small(512, 512).info;
        let least: Vec<Shape> = shapes(&info).into_iter().filter(|shape| shape.tier == Tier::Least).collect();
        let missing_without = |left_out: &dyn Fn(&Shape) -> bool| {
            let measured = least.iter().filter(|shape| !left_out(shape)).map(|shape| shape.point(1.0));
            missing_shapes(&measured.collect::<Vec<_>>(), &info)
        };
        assert_eq!(missing_without(&|_| false), 0);
        assert_eq!(missing_without(&|shape| shape.prefill_tokens == 64), 0);
        assert_eq!(missing_without(&|shape| shape.prefill_tokens == 16), 2);
        assert!(missing_without(&|shape| shape.rows == 8) > 1);
    }
}
