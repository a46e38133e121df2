//! Metrics: counters, latency histograms, and their Prometheus rendering.
//!
//! [`Metrics`] is a plain value owned by the SLO monitor. It takes no locks and reads no
//! clock. Counters are monotonic `u64`s; rates and ratios are left to the reader of
//! `/metrics`, whose HELP lines define each metric.
//!
//! May import: protocol, stats.
#![forbid(unsafe_code)]

mod gauges;
mod histogram;
mod latency_stats;
mod metrics;
mod prometheus;
mod render;
mod summary;
#[cfg(test)]
mod tests;

pub use gauges::{Gauges, KvGauge};
pub use histogram::{LATENCY_MAX, LatencyHistogram, Quantiles};
pub use latency_stats::LatencyStats;
pub use metrics::{DRAFT_POSITIONS_MAX, Metrics, MetricsConfig, RejectionReason};
pub use prometheus::{CONTENT_TYPE as PROMETHEUS_CONTENT_TYPE, MetricKind, PrometheusText};
pub use summary::{ConfidenceErrors, Counters, MetricsSummary, PredictionError, SloCounts};
