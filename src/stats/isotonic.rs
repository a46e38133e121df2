//! Isotonic regression by pooling adjacent violators.

/// Replaces `values` by the weighted least-squares fit that is non-decreasing. Weights
/// must be positive; both slices have the same length.
pub(crate) fn make_monotone(values: &mut [f64], weights: &[f64]) {
    debug_assert_eq!(values.len(), weights.len());
    let mut start = 0;
    let mut blocks: Vec<(f64, f64, usize)> = Vec::with_capacity(values.len());
    for (&value, &weight) in values.iter().zip(weights) {
        let mut block = (value, weight, 1);
        while let Some(&(mean, mass, length)) = blocks.last() {
            if mean <= block.0 {
                break;
            }
            let total = mass + block.1;
            block = ((mean * mass + block.0 * block.1) / total, total, length + block.2);
            blocks.pop();
        }
        blocks.push(block);
    }
    for (mean, _, length) in blocks {
        values[start..start + length].fill(mean);
        start += length;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::stats::isotonic::make_monotone;

    #[test]
    fn violators_are_pooled_by_weight() {
        let mut values = [1.0, 4.0, 2.0, 5.0];
        make_monotone(&mut values, &[1.0, 1.0, 3.0, 1.0]);
        assert_eq!(values, [1.0, 2.5, 2.5, 5.0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn the_result_ascends_and_keeps_the_weighted_mean(
            pairs in prop::collection::vec((0.0f64..1.0, 0.1f64..10.0), 1..40)
        ) {
            let (mut values, weights): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
            let total = |values: &[f64]| values.iter().zip(&weights).map(|(v, w)| v * w).sum::<f64>();
            let before = total(&values);
            make_monotone(&mut values, &weights);
            prop_assert!(values.windows(2).all(|pair| pair[0] <= pair[1]));
            prop_assert!((total(&values) - before).abs() < 1e-9 * before.max(1.0));
        }
    }
}
