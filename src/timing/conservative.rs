//! A time model from few or doubtful measurements: one that a policy can start from safely.
//!
//! Whatever disturbs a measurement makes it longer, and a pass over more tokens takes no less than
//! one over fewer. So the shortest time of any pass over at least `n` tokens bounds that over `n`.
//! Where this makes more tokens nearly free, as it does if only few sizes were measured, they cost
//! a share of the smallest pass. Rows look dear rather than cheap: the policy drafts little until
//! it has seen steps.

use super::cost_model::{Between, LatencyTerms, ROWS_MAX};
use super::point::ProfilePoint;
use crate::protocol::ModelRole;

/// What one more row costs at least, in smallest passes.
const ROW_SHARE_MIN: f64 = 0.125;

/// The model of `role` from `points`; `None` if there is none of it. A round of a draft head that
/// reads many states is a pass over its rows alone.
pub fn conservative(points: &[ProfilePoint], role: ModelRole) -> Option<LatencyTerms> {
    let tokens = |point: &ProfilePoint| (point.rows + point.work().prefill_tokens).max(1);
    let mut passes: Vec<(u32, f64)> = points
        .iter()
        .filter(|point| point.model == role && point.micros.is_finite() && point.micros > 0.0)
        .map(|point| (tokens(point), point.micros))
        .collect();
    passes.sort_by(|one, other| one.0.cmp(&other.0).then(one.1.total_cmp(&other.1)));
    passes.dedup_by_key(|pass| pass.0);
    let mut shortest = f64::INFINITY;
    for (_, micros) in passes.iter_mut().rev() {
        shortest = shortest.min(*micros);
        *micros = shortest;
    }
    let &(least, least_us) = passes.first()?;
    let floor_us = |tokens: u32| least_us * (1.0 + ROW_SHARE_MIN * f64::from(tokens - least));
    passes.iter_mut().for_each(|(tokens, micros)| *micros = micros.max(floor_us(*tokens)));
    // beyond what was measured no token is cheaper than those before it are on average
    let &(most, most_us) = passes.last()?;
    let beyond = ROWS_MAX as u32;
    if most < beyond {
        passes.push((beyond, (most_us * f64::from(beyond) / f64::from(most)).max(floor_us(beyond))));
    }
    let (rows, micros): (Vec<u32>, Vec<f64>) = passes.into_iter().unzip();
    Some(LatencyTerms::staircase(Between::Interpolate, &rows, &micros))
}

#[cfg(test)]
mod tests {
    use super::super::cost_model::LatencyModel;
    use super::*;

    fn point(rows: u32, prefill_tokens: u32, micros: f64) -> ProfilePoint {
        ProfilePoint {
            model: ModelRole::Target,
            rows,
            sequences: rows.max(1),
            context_tokens: 32,
            prefill_tokens,
            prefill_done_tokens: 0,
            head_calls: None,
            micros,
        }
    }

    fn model(points: &[ProfilePoint]) -> LatencyModel {
        LatencyModel::new(conservative(points, ModelRole::Target).expect("a model")).expect("valid")
    }

    #[test]
    fn a_disturbed_measurement_is_bounded_by_those_of_longer_passes() {
        let model = model(&[
            point(1, 0, 14_000.0),
            point(2, 0, 1250.0),
            point(4, 0, 35_000.0),
            point(8, 0, 2300.0),
            point(0, 64, 9000.0),
        ]);
        assert_eq!([1, 2, 8, 64].map(|rows| model.rows_us(rows)), [1250.0, 1406.25, 2343.75, 11_093.75]);
    }

    #[test]
    fn rows_are_never_nearly_free() {
        let flat = model(&[point(1, 0, 800.0), point(8, 0, 801.0)]);
        assert_eq!(flat.rows_us(8), 800.0 * (1.0 + 7.0 * ROW_SHARE_MIN));
        assert!(flat.rows_us(256) >= 30.0 * flat.rows_us(1));
    }

    #[test]
    fn beyond_the_measured_sizes_a_token_costs_what_those_before_it_cost() {
        let model = model(&[point(1, 0, 100.0), point(16, 0, 1600.0)]);
        assert!((model.rows_us(512) - 51_200.0).abs() < 1e-6, "{}", model.rows_us(512));
    }

    #[test]
    fn a_round_that_reads_the_states_of_many_tokens_is_no_pass_over_many_rows() {
        let round = |rows, state_tokens, micros| ProfilePoint {
            model: ModelRole::Draft,
            head_calls: Some(1),
            ..point(rows, state_tokens, micros)
        };
        let points = [round(1, 0, 100.0), round(8, 0, 400.0), round(1, 64, 150.0)];
        let terms = conservative(&points, ModelRole::Draft).expect("a model");
        assert_eq!((&terms.rows[..2], &terms.micros[..2]), (&[1, 8][..], &[100.0, 400.0][..]));
    }

    #[test]
    fn one_pass_is_enough_and_none_is_not() {
        assert_eq!(model(&[point(1, 0, 250_000.0)]).rows_us(1), 250_000.0);
        assert_eq!(conservative(&[point(1, 0, 1.0)], ModelRole::Draft), None);
        assert_eq!(conservative(&[point(1, 0, f64::NAN)], ModelRole::Target), None);
    }
}
