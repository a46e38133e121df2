//! Exact quantiles of in-memory samples.

use std::cmp::Ordering;

/// The `share`-quantile (0 to 1) by the nearest-rank method: the smallest value that at
/// least that share of the values do not exceed. `None` without values. Reorders them.
pub(crate) fn nearest_rank<T: Copy>(
    values: &mut [T],
    share: f64,
    order: impl FnMut(&T, &T) -> Ordering,
) -> Option<T> {
    let rank = (share * values.len() as f64).ceil().max(1.0) as usize;
    if rank > values.len() {
        return None;
    }
    let (_, value, _) = values.select_nth_unstable_by(rank - 1, order);
    Some(*value)
}

/// The median; the mean of the middle two for an even count. `None` without values.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len().is_multiple_of(2) { (values[middle - 1] + upper) / 2.0 } else { upper })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f64], share: f64) -> Option<f64> {
        nearest_rank(&mut values.to_vec(), share, f64::total_cmp)
    }

    #[test]
    fn the_nearest_rank_is_one_of_the_values() {
        let values = [4.0, 1.0, 3.0, 2.0];
        let ranks = [0.0, 0.25, 0.26, 0.5, 0.75, 0.99, 1.0].map(|share| of(&values, share));
        assert_eq!(ranks, [1.0, 1.0, 2.0, 2.0, 3.0, 4.0, 4.0].map(Some));
        assert_eq!(of(&[7.0], 0.01), Some(7.0));
        assert_eq!(of(&[], 0.5), None);
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }
}
