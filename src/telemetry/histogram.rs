//! Latency histograms: fixed buckets for Prometheus, an HDR histogram for quantiles.

use hdrhistogram::Histogram;

use crate::protocol::Micros;

/// Largest latency recorded for quantiles; longer ones are clamped to it.
pub const LATENCY_MAX: Micros = Micros(3_600_000_000);

/// Significant digits of the HDR histogram, for quantiles within 1 %.
const SIGNIFICANT_DIGITS: u8 = 2;

/// Histogram of one latency.
#[derive(Clone, Debug)]
pub struct LatencyHistogram {
    /// Quantile histogram, in microseconds.
    values: Histogram<u64>,
    /// Inclusive upper bucket edges, ascending; the last bucket is unbounded.
    edges: Vec<Micros>,
    /// Observations per bucket; one more entry than edges.
    counts: Vec<u64>,
    /// Sum of all observations, not clamped.
    sum: Micros,
}

impl LatencyHistogram {
    /// Creates an empty histogram with bucket edges in any order.
    pub fn new(edges: impl IntoIterator<Item = Micros>) -> LatencyHistogram {
        let mut edges: Vec<Micros> = edges.into_iter().collect();
        edges.sort_unstable();
        edges.dedup();
        let values = Histogram::new_with_bounds(1, LATENCY_MAX.0, SIGNIFICANT_DIGITS)
            .expect("the bounds are valid constants");
        LatencyHistogram { values, counts: vec![0; edges.len() + 1], edges, sum: Micros::ZERO }
    }

    /// Records one observation.
    pub fn record(&mut self, latency: Micros) {
        self.values.saturating_record(latency.0);
        let bucket = self.edges.partition_point(|edge| *edge < latency);
        self.counts[bucket] += 1;
        self.sum = Micros(self.sum.0.saturating_add(latency.0));
    }

    /// Number of observations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Sum of all observations.
    pub fn sum(&self) -> Micros {
        self.sum
    }

    /// Cumulative buckets `(upper edge, observations at or below it)`, ascending.
    pub fn cumulative(&self) -> impl Iterator<Item = (Micros, u64)> + '_ {
        self.edges.iter().zip(&self.counts).scan(0, |below, (edge, count)| {
            *below += count;
            Some((*edge, *below))
        })
    }

    /// Quantiles for reports; `None` while empty.
    pub fn quantiles(&self) -> Option<Quantiles> {
        if self.values.is_empty() {
            return None;
        }
        let millis = |quantile| Micros(self.values.value_at_quantile(quantile)).as_millis_f64();
        Some(Quantiles {
            p50_ms: millis(0.5),
            p90_ms: millis(0.9),
            p99_ms: millis(0.99),
            count: self.count(),
        })
    }
}

/// Quantiles of a latency, in milliseconds, within 1 %.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Quantiles {
    /// 50th percentile.
    pub p50_ms: f64,
    /// 90th percentile.
    pub p90_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// Number of observations.
    pub count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_observation_on_an_edge_counts_below_it() {
        let mut histogram = LatencyHistogram::new([Micros(20), Micros(10), Micros(20)]);
        for latency in [0, 10, 11, 20, 21] {
            histogram.record(Micros(latency));
        }
        let cumulative: Vec<_> = histogram.cumulative().collect();
        assert_eq!(cumulative, [(Micros(10), 2), (Micros(20), 4)]);
        assert_eq!((histogram.count(), histogram.sum()), (5, Micros(62)));
    }

    #[test]
    fn quantiles_are_within_one_percent() {
        let mut histogram = LatencyHistogram::new([]);
        assert_eq!(histogram.quantiles(), None);
        for millis in 1..=1000 {
            histogram.record(Micros::from_millis(millis));
        }
        let quantiles = histogram.quantiles().unwrap();
        assert_eq!(quantiles.count, 1000);
        for (seen, want) in [(quantiles.p50_ms, 500.0), (quantiles.p90_ms, 900.0), (quantiles.p99_ms, 990.0)]
        {
            assert!((seen / want - 1.0).abs() < 0.01, "{seen} is not {want}");
        }
    }

    #[test]
    fn a_latency_beyond_the_bound_is_counted_at_the_bound() {
        let mut histogram = LatencyHistogram::new([LATENCY_MAX]);
        histogram.record(Micros(u64::MAX));
        histogram.record(Micros(u64::MAX));
        assert_eq!(histogram.count(), 2);
        assert_eq!(histogram.cumulative().last(), Some((LATENCY_MAX, 0)));
        let p99 = histogram.quantiles().unwrap().p99_ms;
        assert!((p99 / LATENCY_MAX.as_millis_f64() - 1.0).abs() < 0.01, "{p99}");
    }
}
