//! Fits [`LatencyTerms`] to the analyzer's measured points.
//!
//! Unknowns are one time per size and four linear terms. The sizes are the measured row counts;
//! where batches are padded, a pass with prefill has the next of them up to 256 rows and whole
//! tiles above. Residuals are relative (a 10 µs error matters at 100 µs, not at 10 ms), outliers
//! lose weight (Huber, by iterated reweighting), linear terms are kept non-negative by dropping
//! those that would be negative, and the staircase is made monotone at the end. How many rows a
//! prefill token counts as is searched for: the one with the least error.

use serde::{Deserialize, Serialize};

use super::cost_model::{Between, HeadTerms, LatencyModel, LatencyTerms};
use super::error::ProfileError;
use super::point::{ProfilePoint, ROUND_CALLS};
use super::sizes::Sizes;
use crate::protocol::ModelRole;
use crate::stats::isotonic::make_monotone;
use crate::stats::quantile::nearest_rank;

/// Linear terms of the model.
const LINEAR_TERMS: usize = 4;
/// Index of the prefill terms among them. A drafter has the cost of a round where the target has the
/// fixed cost of a prefill, and a draft head the price of reading a token's states where models have
/// that of attended context.
const PREFILL_STEP: usize = 2;
/// See [`PREFILL_STEP`].
const PREFILL_ATTENDED: usize = 3;
/// Rows that a prefill token may count as, where batches are not padded.
const PREFILL_ROW_CANDIDATES: [f64; 11] = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0];
/// Rounds of reweighting; the weights settle in three or four.
const ROUNDS: usize = 8;
/// Residuals up to this many standard deviations keep their full weight (Huber's constant
/// for 95 % efficiency under normal noise).
const HUBER_SIGMAS: f64 = 1.345;
/// Standard deviation over median absolute deviation, for normal noise.
const SIGMA_PER_MAD: f64 = 1.4826;
/// Most that a drafting round adds, in calls of one row; about one on a CPU.
const ROUND_CALLS_MAX: f64 = 1.5;
/// No pass takes less than this share of the fastest one measured, whose context explains no more
/// of its time. Without it a few disturbed measurements make a row nearly free.
const FASTEST_SHARE_MIN: f64 = 0.5;
/// Keeps the normal equations solvable when two columns say the same.
const RIDGE: f64 = 1e-10;

/// How far predictions are from measurements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FitError {
    /// How many points were compared.
    pub points: u32,
    /// Mean of |predicted − measured| / measured.
    pub mape: f64,
    /// Its 99th percentile (nearest rank).
    pub p99: f64,
}

/// A fit and its error on held-out points.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    /// Fitted to all points.
    pub terms: LatencyTerms,
    /// Error on the held-out points of a fit that did not see them.
    pub held_out: FitError,
}

/// Fits all points of `role`, and reports the error of a second fit on every
/// `hold_out_every`-th point that it did not see. The first point of a row count is never
/// held out. With nothing held out the error is that on the fitted points themselves. A draft head's
/// terms are those of one that makes a draft per call.
///
/// # Errors
/// [`ProfileError::TooFew`] without usable points, [`ProfileError::Terms`] if the measurements
/// yield no valid model.
pub fn fit(
    points: &[ProfilePoint],
    role: ModelRole,
    between: Between,
    hold_out_every: usize,
) -> Result<Fit, ProfileError> {
    let usable: Vec<ProfilePoint> = points
        .iter()
        .filter(|point| point.model == role && point.micros.is_finite() && point.micros > 0.0)
        .cloned()
        .collect();
    if usable.iter().all(|point| point.rows == 0) {
        return Err(ProfileError::TooFew("no point has decode rows".to_owned()));
    }
    let terms = fit_terms(&usable, between)?;
    let (seen, unseen) = split(&usable, between, hold_out_every);
    let held_out = if unseen.is_empty() {
        error_on(&LatencyModel::new(terms.clone())?, &usable)
    } else {
        error_on(&LatencyModel::new(fit_terms(&seen, between)?)?, &unseen)
    };
    Ok(Fit { terms, held_out })
}

/// The model's error on `points`.
pub fn error_on(model: &LatencyModel, points: &[ProfilePoint]) -> FitError {
    let mut errors: Vec<f64> =
        points.iter().map(|point| (point.predicted_us(model) / point.micros - 1.0).abs()).collect();
    let mape = errors.iter().sum::<f64>() / errors.len() as f64;
    nearest_rank(&mut errors, 0.99, f64::total_cmp).map_or(FitError::default(), |p99| FitError {
        points: errors.len() as u32,
        mape,
        p99,
    })
}

fn split(points: &[ProfilePoint], between: Between, every: usize) -> (Vec<ProfilePoint>, Vec<ProfilePoint>) {
    let sizes = Sizes::of(points, between, 1.0);
    let mut met: Vec<usize> = Vec::new();
    let mut candidates = 0usize;
    let (mut seen, mut unseen) = (Vec::new(), Vec::new());
    for point in points {
        let size = sizes.place(point).0;
        let first = !met.contains(&size);
        if first {
            met.push(size);
        } else {
            candidates += 1;
        }
        let hold_out = !first && every > 0 && candidates.is_multiple_of(every);
        if hold_out { unseen.push(point.clone()) } else { seen.push(point.clone()) }
    }
    (seen, unseen)
}

/// A weighted least-squares problem with one column per size and per linear term.
struct System {
    role: ModelRole,
    is_head: bool,
    sizes: Sizes,
    rows: Vec<Vec<f64>>,
    measured: Vec<f64>,
    scale: Vec<f64>,
}

fn fit_terms(points: &[ProfilePoint], between: Between) -> Result<LatencyTerms, ProfileError> {
    let prefills = points.iter().any(|point| point.work().prefill_tokens > 0);
    let candidates = match between {
        Between::Interpolate if prefills => &PREFILL_ROW_CANDIDATES[..],
        _ => &PREFILL_ROW_CANDIDATES[PREFILL_ROW_CANDIDATES.len() - 1..],
    };
    let fit_one = |&prefill_row: &f64| {
        let terms = fit_sizes(points, Sizes::of(points, between, prefill_row))?;
        let error = error_on(&LatencyModel::new(terms.clone())?, points).mape;
        Ok((error, terms))
    };
    let fits = candidates.iter().map(fit_one).collect::<Result<Vec<(f64, LatencyTerms)>, ProfileError>>()?;
    let best = fits.into_iter().min_by(|(one, _), (other, _)| one.total_cmp(other));
    Ok(best.expect("there are candidates").1)
}

fn fit_sizes(points: &[ProfilePoint], sizes: Sizes) -> Result<LatencyTerms, ProfileError> {
    let system = System::new(points, sizes);
    let columns = system.scale.len();
    let mut weights = vec![1.0; points.len()];
    let mut solution = vec![0.0; columns];
    for _ in 0..ROUNDS {
        solution = system.solve_non_negative(&weights)?;
        weights = system.huber_weights(&solution);
    }
    system.terms(&solution)
}

impl System {
    fn new(points: &[ProfilePoint], sizes: Sizes) -> System {
        let mut features: Vec<Vec<f64>> = points.iter().map(|point| features(&sizes, point)).collect();
        let (role, is_head) = (points[0].model, points[0].head_calls.is_some());
        if role == ModelRole::Draft && rounds_are_alike(points) {
            // what a round adds can't be told from its calls: it is theirs
            features.iter_mut().for_each(|row| row[sizes.all.len() + PREFILL_STEP] = 0.0);
        }
        let measured: Vec<f64> = points.iter().map(|point| point.micros).collect();
        let relative = features
            .iter()
            .zip(&measured)
            .map(|(row, micros)| row.iter().map(|value| value / micros).collect::<Vec<f64>>());
        let mut rows: Vec<Vec<f64>> = relative.collect();
        let scale: Vec<f64> = (0..sizes.all.len() + LINEAR_TERMS)
            .map(|column| rows.iter().map(|row| row[column] * row[column]).sum::<f64>().sqrt())
            .map(|norm| if norm > 0.0 { norm } else { 1.0 })
            .collect();
        for row in &mut rows {
            row.iter_mut().zip(&scale).for_each(|(value, norm)| *value /= norm);
        }
        System { role, is_head, sizes, rows, measured, scale }
    }

    /// Solves, dropping the most negative linear term until none is negative.
    fn solve_non_negative(&self, weights: &[f64]) -> Result<Vec<f64>, ProfileError> {
        let mut active = vec![true; self.scale.len()];
        loop {
            let solution = self.solve(weights, &active)?;
            let most_negative = (self.sizes.all.len()..self.scale.len())
                .filter(|&column| solution[column] < 0.0)
                .min_by(|&a, &b| solution[a].total_cmp(&solution[b]));
            let Some(column) = most_negative else { return Ok(solution) };
            active[column] = false;
        }
    }

    fn solve(&self, weights: &[f64], active: &[bool]) -> Result<Vec<f64>, ProfileError> {
        let columns: Vec<usize> = (0..active.len()).filter(|&column| active[column]).collect();
        let size = columns.len();
        let mut matrix = vec![vec![0.0; size + 1]; size];
        for (row, weight) in self.rows.iter().zip(weights) {
            for (i, &a) in columns.iter().enumerate() {
                let weighted = weight * row[a];
                for (j, &b) in columns.iter().enumerate() {
                    matrix[i][j] += weighted * row[b];
                }
                matrix[i][size] += weighted;
            }
        }
        matrix.iter_mut().enumerate().for_each(|(i, row)| row[i] += RIDGE);
        let reduced = eliminate(matrix)
            .ok_or_else(|| ProfileError::TooFew("the measurements determine no model".to_owned()))?;
        let mut solution = vec![0.0; active.len()];
        columns.iter().zip(reduced).for_each(|(&column, value)| solution[column] = value);
        Ok(solution)
    }

    fn huber_weights(&self, solution: &[f64]) -> Vec<f64> {
        let residual = |row: &Vec<f64>| {
            (1.0 - row.iter().zip(solution).map(|(value, factor)| value * factor).sum::<f64>()).abs()
        };
        let residuals: Vec<f64> = self.rows.iter().map(residual).collect();
        let mut sorted = residuals.clone();
        sorted.sort_by(f64::total_cmp);
        let bound = (HUBER_SIGMAS * SIGMA_PER_MAD * sorted[sorted.len() / 2]).max(1e-9);
        residuals.iter().map(|&error| if error <= bound { 1.0 } else { bound / error }).collect()
    }

    fn terms(&self, solution: &[f64]) -> Result<LatencyTerms, ProfileError> {
        let plain: Vec<f64> = solution.iter().zip(&self.scale).map(|(value, norm)| value / norm).collect();
        let fastest = self.measured.iter().copied().fold(f64::INFINITY, f64::min);
        let (micros, linear) = plain.split_at(self.sizes.all.len());
        let drafts = self.role == ModelRole::Draft;
        let mut micros: Vec<f64> =
            micros.iter().map(|&value| value.max(fastest * FASTEST_SHARE_MIN)).collect();
        make_monotone(&mut micros, &vec![1.0; self.sizes.all.len()]);
        let round_us = if drafts { bounded_round_us(&mut micros, linear[PREFILL_STEP]) } else { 0.0 };
        let (rows, micros) = self.sizes.staircase(&micros);
        let terms = LatencyTerms {
            between: self.sizes.between,
            rows,
            micros,
            context_token_us: linear[0],
            attended_token_us: linear[1],
            prefill_row: self.sizes.prefill_row,
            prefill_step_us: if drafts { 0.0 } else { linear[PREFILL_STEP] },
            prefill_attended_us: if self.is_head { 0.0 } else { linear[PREFILL_ATTENDED] },
            round_us,
            head: self
                .is_head
                .then_some(HeadTerms { drafts_per_call: 1, state_token_us: linear[PREFILL_ATTENDED] }),
        };
        LatencyModel::new(terms).map(|model| model.terms().clone())
    }
}

/// Whether all rounds have the same number of calls.
fn rounds_are_alike(points: &[ProfilePoint]) -> bool {
    points.windows(2).all(|pair| pair[0].rounds_per_call() == pair[1].rounds_per_call())
}

/// Holds what a drafting round adds to [`ROUND_CALLS_MAX`] calls of one row, and gives the rest
/// back to the calls: few measurements on a busy machine hardly tell the two apart.
fn bounded_round_us(micros: &mut [f64], round_us: f64) -> f64 {
    let share = 1.0 / f64::from(ROUND_CALLS);
    let measured_us = micros[0] + share * round_us;
    let bound_us = measured_us / (1.0 / ROUND_CALLS_MAX + share);
    let excess_us = (round_us - bound_us).max(0.0);
    micros.iter_mut().for_each(|call_us| *call_us += share * excess_us);
    round_us - excess_us
}

/// The shares of the sizes, then the linear terms.
fn features(sizes: &Sizes, point: &ProfilePoint) -> Vec<f64> {
    let work = &point.work();
    let prefills = work.prefill_tokens > 0;
    let mut row = vec![0.0; sizes.all.len() + LINEAR_TERMS];
    let (above, share) = sizes.place(point);
    row[above] = share;
    if let Some(below) = above.checked_sub(1) {
        row[below] = 1.0 - share;
    }
    let linear = [
        work.context_tokens as f64,
        work.attended_tokens as f64,
        if point.model == ModelRole::Draft { point.rounds_per_call() } else { f64::from(u8::from(prefills)) },
        if point.head_calls.is_some() {
            point.state_tokens_per_call()
        } else {
            work.prefill_attended_tokens as f64
        },
    ];
    row[sizes.all.len()..].copy_from_slice(&linear);
    row
}

/// Gaussian elimination with pivoting on an augmented matrix; `None` when singular.
fn eliminate(mut matrix: Vec<Vec<f64>>) -> Option<Vec<f64>> {
    let size = matrix.len();
    for column in 0..size {
        let pivot =
            (column..size).max_by(|&a, &b| matrix[a][column].abs().total_cmp(&matrix[b][column].abs()))?;
        if matrix[pivot][column].abs() < 1e-14 {
            return None;
        }
        matrix.swap(column, pivot);
        let (head, tail) = matrix.split_at_mut(column + 1);
        let pivot_row = &head[column];
        for row in tail {
            let factor = row[column] / pivot_row[column];
            row.iter_mut().zip(pivot_row).skip(column).for_each(|(value, above)| *value -= factor * above);
        }
    }
    let mut solution = vec![0.0; size];
    for row in (0..size).rev() {
        let known: f64 = (row + 1..size).map(|column| matrix[row][column] * solution[column]).sum();
        solution[row] = (matrix[row][size] - known) / matrix[row][row];
    }
    Some(solution)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;

    /// Padded passes with prefill have two sizes more.
    fn truth(between: Between) -> LatencyModel {
        let sizes = if between == Between::Pad { 7 } else { 5 };
        LatencyModel::new(LatencyTerms {
            between,
            rows: [1, 2, 4, 8, 16, 128, 384][..sizes].to_vec(),
            micros: [100.0, 110.0, 112.0, 150.0, 260.0, 300.0, 700.0][..sizes].to_vec(),
            context_token_us: 0.02,
            attended_token_us: 0.005,
            prefill_row: if between == Between::Pad { 1.0 } else { 0.8 },
            prefill_step_us: 12.0,
            prefill_attended_us: 0.001,
            round_us: 0.0,
            head: None,
        })
        .unwrap()
    }

    /// A grid like the analyzer's, with multiplicative noise from a small generator.
    fn measured(model: &LatencyModel, noise: f64) -> Vec<ProfilePoint> {
        let mut random = SplitMix64::new(7);
        let mut points = Vec::new();
        for rows in [1u32, 2, 4, 8, 16] {
            for (share, context) in [(1, 64), (2, 64), (1, 700), (2, 700), (1, 1500)] {
                for (prefill_tokens, prefill_done_tokens) in [(0, 0), (8, 0), (64, 512), (256, 128)] {
                    let mut point = ProfilePoint {
                        model: ModelRole::Target,
                        rows,
                        sequences: (rows / share).max(1),
                        context_tokens: context,
                        prefill_tokens,
                        prefill_done_tokens,
                        head_calls: None,
                        micros: 0.0,
                    };
                    point.micros =
                        model.micros(&point.work()) * (1.0 + noise * (f64::from(random.uniform()) - 0.5));
                    points.push(point);
                }
            }
        }
        points
    }

    #[test]
    fn exact_measurements_give_the_model_back() {
        let model = truth(Between::Pad);
        let found = fit(&measured(&model, 0.0), ModelRole::Target, Between::Pad, 5).unwrap();
        assert!(found.held_out.points >= 15 && found.held_out.p99 < 1e-4, "{:?}", found.held_out);
        assert!((found.terms.prefill_step_us - 12.0).abs() < 1e-3, "{:?}", found.terms);
        assert!((found.terms.context_token_us - 0.02).abs() < 1e-4);
    }

    #[test]
    fn what_a_drafting_round_adds_is_told_from_its_calls() {
        let drafter =
            LatencyTerms { prefill_step_us: 0.0, round_us: 40.0, ..truth(Between::Pad).terms().clone() };
        let model = LatencyModel::new(drafter).unwrap();
        let mut points = measured(&model, 0.0);
        for point in &mut points {
            point.model = ModelRole::Draft;
            point.micros = point.predicted_us(&model);
        }
        let found = fit(&points, ModelRole::Draft, Between::Pad, 5).unwrap();
        assert!((found.terms.round_us - 40.0).abs() < 0.1, "{:?}", found.terms);
        assert!(found.terms.prefill_step_us == 0.0 && found.held_out.p99 < 1e-3, "{found:?}");
    }

    /// Rounds of a draft head with so many calls.
    fn rounds_of_head(model: &LatencyModel, calls: &[u32]) -> Vec<ProfilePoint> {
        let mut points = measured(model, 0.0);
        for (point, &calls) in points.iter_mut().zip(calls.iter().cycle()) {
            (point.model, point.head_calls) = (ModelRole::Draft, Some(calls));
            point.micros = point.predicted_us(model);
        }
        points
    }

    #[test]
    fn rounds_of_different_lengths_tell_a_heads_round_its_calls_and_its_reading_apart() {
        let head = Some(HeadTerms { drafts_per_call: 1, state_token_us: 0.7 });
        let law = LatencyTerms { round_us: 40.0, head, ..truth(Between::Pad).terms().clone() };
        let model = LatencyModel::new(law).unwrap();
        let found = fit(&rounds_of_head(&model, &[4, 1, 4]), ModelRole::Draft, Between::Pad, 5).unwrap();
        assert!(found.held_out.p99 < 1e-3, "{found:?}");
        let terms = found.terms;
        assert!((terms.round_us - 40.0).abs() < 0.1, "{terms:?}");
        assert!((terms.head.expect("a head").state_token_us - 0.7).abs() < 1e-3, "{terms:?}");
        assert_eq!((terms.prefill_step_us, terms.prefill_attended_us, terms.prefill_row), (0.0, 0.0, 1.0));
    }

    #[test]
    fn what_rounds_of_one_call_add_is_their_calls() {
        let head = Some(HeadTerms { drafts_per_call: 7, state_token_us: 0.7 });
        let law = LatencyTerms { round_us: 40.0, head, ..truth(Between::Pad).terms().clone() };
        let model = LatencyModel::new(law).unwrap();
        let found = fit(&rounds_of_head(&model, &[1]), ModelRole::Draft, Between::Pad, 5).unwrap();
        assert_eq!(found.terms.round_us, 0.0);
        assert!((found.terms.micros[0] - 140.0).abs() < 0.1, "{found:?}");
        assert!((found.terms.head.expect("a head").state_token_us - 0.7).abs() < 1e-3, "{found:?}");
    }

    #[test]
    fn a_round_never_takes_the_calls_time() {
        let mut micros = [20.0, 30.0];
        let round_us = bounded_round_us(&mut micros, 300.0);
        assert!((round_us - 1.5 * micros[0]).abs() < 1e-9, "{round_us} {micros:?}");
        assert!(
            (micros[0] + round_us / 4.0 - 95.0).abs() < 1e-9 && (micros[1] - micros[0] - 10.0).abs() < 1e-9
        );
        assert_eq!((bounded_round_us(&mut [60.0], 60.0), bounded_round_us(&mut [60.0], 0.0)), (60.0, 0.0));
    }

    #[test]
    fn noise_and_outliers_leave_a_small_held_out_error() {
        let model = truth(Between::Interpolate);
        let mut points = measured(&model, 0.04);
        points.iter_mut().step_by(17).for_each(|point| point.micros *= 4.0);
        let found = fit(&points, ModelRole::Target, Between::Interpolate, 0).unwrap();
        let error = error_on(&LatencyModel::new(found.terms).unwrap(), &measured(&model, 0.0));
        assert!(error.mape < 0.02 && error.p99 < 0.06, "{error:?}");
    }

    #[test]
    fn a_term_that_would_be_negative_becomes_zero() {
        let mut points = measured(&truth(Between::Pad), 0.0);
        points.iter_mut().for_each(|point| {
            point.micros -= 0.00101 * point.work().prefill_attended_tokens as f64;
        });
        let found = fit(&points, ModelRole::Target, Between::Pad, 0).unwrap();
        assert_eq!(found.terms.prefill_attended_us, 0.0);
    }

    #[test]
    fn how_many_rows_a_prefill_token_counts_as_is_found() {
        let model = truth(Between::Interpolate);
        let found = fit(&measured(&model, 0.0), ModelRole::Target, Between::Interpolate, 5).unwrap();
        assert!((found.terms.prefill_row - 0.8).abs() < 1e-9, "{:?}", found.terms);
        assert!(found.held_out.p99 < 1e-3, "{:?}", found.held_out);
    }

    #[test]
    fn padded_passes_with_prefill_take_whole_tiles_and_tiles_between_are_read_off() {
        let rows: Vec<u32> =
            [1, 2, 4, 8, 16, 128, 256].into_iter().chain((3..10).map(|tile| 128 * tile)).collect();
        let micros: Vec<f64> = rows.iter().map(|&rows| 500.0 + f64::from(rows)).collect();
        let model = LatencyModel::new(LatencyTerms::staircase(Between::Pad, &rows, &micros)).unwrap();
        let mut points = measured(&model, 0.0);
        // 4 + 1020 rows make one tile of 1,024; what lies between is not measured
        for point in &mut points {
            point.prefill_tokens =
                if point.prefill_tokens == 256 { 1024 - point.rows } else { point.prefill_tokens };
            point.micros = model.micros(&point.work());
        }
        let found =
            LatencyModel::new(fit(&points, ModelRole::Target, Between::Pad, 5).unwrap().terms).unwrap();
        for (rows, micros) in [(1000, 1524.0), (600, 1140.0), (400, 1012.0), (257, 884.0)] {
            assert!((found.rows_us(rows) - micros).abs() < 1.0, "{rows}: {}", found.rows_us(rows));
        }
    }

    #[test]
    fn a_row_is_never_nearly_free_however_disturbed_the_measurements_are() {
        let mut points = measured(&truth(Between::Interpolate), 0.0);
        // of single rows only those with much context are undisturbed
        let disturbed = |point: &&mut ProfilePoint| point.rows == 1 && point.context_tokens < 1000;
        points.iter_mut().filter(disturbed).for_each(|point| point.micros += 14_000.0);
        let long = |point: &&mut ProfilePoint| point.context_tokens > 1000;
        points.iter_mut().filter(long).for_each(|point| point.micros *= 9.0);
        let fastest = points.iter().map(|point| point.micros).fold(f64::INFINITY, f64::min);
        let found = fit(&points, ModelRole::Target, Between::Interpolate, 0).unwrap();
        assert!(found.terms.micros[0] >= 0.5 * fastest, "{} of {fastest}", found.terms.micros[0]);
    }

    #[test]
    fn a_dip_in_the_measured_staircase_is_flattened() {
        let mut points = measured(&truth(Between::Pad), 0.0);
        points.iter_mut().filter(|point| point.rows == 8).for_each(|point| point.micros *= 0.6);
        let found = fit(&points, ModelRole::Target, Between::Pad, 0).unwrap();
        assert!(found.terms.micros.windows(2).all(|pair| pair[0] <= pair[1]));
    }

    #[test]
    fn points_of_the_other_model_and_broken_ones_do_not_count() {
        let mut points = measured(&truth(Between::Pad), 0.0);
        points.iter_mut().for_each(|point| point.model = ModelRole::Draft);
        assert!(matches!(fit(&points, ModelRole::Target, Between::Pad, 5), Err(ProfileError::TooFew(_))));
        points.iter_mut().for_each(|point| point.micros = f64::NAN);
        assert!(fit(&points, ModelRole::Draft, Between::Pad, 5).is_err());
    }
}
