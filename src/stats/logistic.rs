//! The logistic curve in place of the normal distribution, which has no closed form.

/// Slope that makes the logistic curve close to the normal distribution's.
const SLOPE: f64 = 1.702;

/// Probability that a normal variable lies less than `deviations` standard deviations above its
/// mean, to within 0.01.
pub fn chance(deviations: f64) -> f64 {
    1.0 / (1.0 + (-SLOPE * deviations).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_close_to_the_normal_distribution() {
        for (deviations, normal) in [(0.0, 0.5), (0.5, 0.6915), (1.0, 0.8413), (2.0, 0.9772), (-1.0, 0.1587)]
        {
            assert!((chance(deviations) - normal).abs() < 0.01, "{deviations}");
        }
        assert_eq!((chance(f64::INFINITY), chance(f64::NEG_INFINITY)), (1.0, 0.0));
    }
}
