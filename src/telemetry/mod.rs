//! What the daemon measures about itself: counters, latency histograms, their text form.
//!
//! [`Metrics`] is a plain value with one owner, the SLO monitor. It holds no lock and
//! reads no clock. Counters are `u64` and only grow; rates and ratios are left to the
//! reader of `/metrics`, whose HELP lines state each definition.
#![forbid(unsafe_code)]

mod figures;
mod gauges;
mod histogram;
mod metrics;
mod prometheus;
mod render;
mod summary;
#[cfg(test)]
mod tests;

pub use figures::LatencyFigures;
pub use gauges::{Gauges, KvGauge};
pub use histogram::{LATENCY_MAX, LatencyHistogram, Quantiles};
pub use metrics::{DRAFT_POSITIONS_MAX, Metrics, MetricsConfig, RejectionReason};
pub use prometheus::{CONTENT_TYPE as PROMETHEUS_CONTENT_TYPE, MetricKind, PrometheusText};
pub use summary::{Counters, MetricsSummary, PredictionError, SloCounts};
