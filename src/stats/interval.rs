//! Confidence intervals of means.

/// 97.5th percentiles of Student's t-distribution with 1, 2, ... degrees of freedom.
const T_975: [f64; 10] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
/// The same of the normal distribution.
const Z_975: f64 = 1.959_964;

/// A mean, and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct MeanInterval {
    /// Arithmetic mean.
    pub mean: f64,
    /// Half the width of its 95 % t-interval; `None` for a single value.
    pub half_width: Option<f64>,
}

impl MeanInterval {
    /// That of independent, about normal `values`; `None` without values.
    pub fn of(values: &[f64]) -> Option<MeanInterval> {
        if values.is_empty() {
            return None;
        }
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let half_width =
            t_975(values.len() - 1).map(|quantile| quantile * (squares / (count - 1.0) / count).sqrt());
        Some(MeanInterval { mean, half_width })
    }
}

/// The 97.5th percentile of Student's t-distribution; `None` for 0 degrees of freedom.
fn t_975(degrees: usize) -> Option<f64> {
    let place = degrees.checked_sub(1)?;
    Some(T_975.get(place).copied().unwrap_or_else(|| t_975_of_many(degrees as f64)))
}

/// Fisher's expansion around the normal distribution; within 0.1 % from 11 degrees on.
fn t_975_of_many(degrees: f64) -> f64 {
    let z = Z_975;
    let first = (z.powi(3) + z) / 4.0;
    let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
    z + first / degrees + second / degrees.powi(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_t_are_those_of_the_tables() {
        for (degrees, expected) in [(1, 12.706), (10, 2.228), (11, 2.201), (20, 2.086), (100, 1.984)] {
            let found = t_975(degrees).unwrap();
            assert!((found / expected - 1.0).abs() < 0.001, "{degrees}: {found} instead of {expected}");
        }
        assert_eq!(t_975(0), None);
    }

    #[test]
    fn an_interval_is_as_wide_as_its_sample_is_small_and_spread() {
        let interval = MeanInterval::of(&[1.0, 2.0, 3.0, 4.0]).unwrap();
        // standard deviation 1.291, over the root of 4, times 3.182
        assert_eq!(interval.mean, 2.5);
        assert!((interval.half_width.unwrap() - 2.054).abs() < 0.001, "{interval:?}");
        assert_eq!(MeanInterval::of(&[7.0]), Some(MeanInterval { mean: 7.0, half_width: None }));
        assert_eq!(MeanInterval::of(&[7.0; 3]), Some(MeanInterval { mean: 7.0, half_width: Some(0.0) }));
        assert_eq!(MeanInterval::of(&[]), None);
    }
}
