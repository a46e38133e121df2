//! Mean and percentiles of a latency, as reports print them.

use serde::Serialize;

use super::histogram::LatencyHistogram;
use crate::stats::quantile::nearest_rank;

/// Statistics of one latency, in milliseconds; `None` without a sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LatencyStats {
    /// Arithmetic mean.
    pub mean: Option<f64>,
    /// 50th percentile.
    pub p50: Option<f64>,
    /// 90th percentile.
    pub p90: Option<f64>,
    /// 99th percentile.
    pub p99: Option<f64>,
}

impl LatencyStats {
    /// Statistics of a histogram; quantiles are within 1 %.
    pub fn of_histogram(histogram: &LatencyHistogram) -> LatencyStats {
        histogram.quantiles().map_or(LatencyStats::default(), |quantiles| LatencyStats {
            mean: Some(histogram.sum().as_millis_f64() / quantiles.count as f64),
            p50: Some(quantiles.p50_ms),
            p90: Some(quantiles.p90_ms),
            p99: Some(quantiles.p99_ms),
        })
    }

    /// Statistics of a sample in milliseconds; quantiles by nearest rank.
    pub fn of_sample(mut sample: Vec<f64>) -> LatencyStats {
        let mean = (!sample.is_empty()).then(|| sample.iter().sum::<f64>() / sample.len() as f64);
        let mut rank = |share: f64| nearest_rank(&mut sample, share, f64::total_cmp);
        LatencyStats { mean, p50: rank(0.5), p90: rank(0.9), p99: rank(0.99) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Micros;

    #[test]
    fn sample_and_histogram_agree_within_the_histograms_resolution() {
        let mut histogram = LatencyHistogram::new([]);
        (1..=1000).for_each(|value| histogram.record(Micros(value * 100)));
        let binned = LatencyStats::of_histogram(&histogram);
        let exact = LatencyStats::of_sample((1..=1000).rev().map(|value| f64::from(value) / 10.0).collect());
        assert_eq!((exact.p50, exact.p90, exact.p99), (Some(50.0), Some(90.0), Some(99.0)));
        for (binned, exact) in [
            (binned.mean, exact.mean),
            (binned.p50, exact.p50),
            (binned.p90, exact.p90),
            (binned.p99, exact.p99),
        ] {
            let (binned, exact) = (binned.expect("a sample"), exact.expect("a sample"));
            assert!((binned / exact - 1.0).abs() < 0.01, "{binned} {exact}");
        }
    }

    #[test]
    fn without_a_sample_there_are_no_figures() {
        assert_eq!(LatencyStats::of_sample(vec![]), LatencyStats::default());
        assert_eq!(LatencyStats::of_histogram(&LatencyHistogram::new([])), LatencyStats::default());
    }
}
