//! A writer of the Prometheus text format, version 0.0.4.

use std::fmt::Write;

use super::histogram::LatencyHistogram;

/// Content type of the text format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Type of a metric family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Monotonically increasing.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Cumulative buckets, sum and count.
    Histogram,
}

impl MetricKind {
    fn name(self) -> &'static str {
        match self {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        }
    }
}

/// Writer of a metrics page. Samples belong to the most recently opened family.
#[derive(Debug, Default)]
pub struct PrometheusText {
    text: String,
    family: String,
}

impl PrometheusText {
    /// Creates an empty page.
    pub fn new() -> PrometheusText {
        PrometheusText::default()
    }

    /// Opens a metric family.
    pub fn family(&mut self, name: &str, kind: MetricKind, help: &str) -> &mut PrometheusText {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {}", kind.name()));
        self.family = name.to_owned();
        self
    }

    /// Writes a sample of the open family.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl std::fmt::Display) -> &mut PrometheusText {
        let labels = braced(labels);
        let name = std::mem::take(&mut self.family);
        self.line(format_args!("{name}{labels} {value}"));
        self.family = name;
        self
    }

    /// Writes an unlabelled counter: family and sample.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, MetricKind::Counter, help).sample(&[], value);
    }

    /// Writes an unlabelled gauge: family and sample.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, MetricKind::Gauge, help).sample(&[], value);
    }

    /// Writes the buckets, sum and count of a histogram of the open family, in seconds.
    pub fn latencies(&mut self, labels: &[(&str, &str)], histogram: &LatencyHistogram) {
        let name = std::mem::take(&mut self.family);
        let bucket = |edge: &str| braced(&[labels, &[("le", edge)]].concat());
        for (edge, count) in histogram.cumulative() {
            let labels = bucket(&edge.as_secs_f64().to_string());
            self.line(format_args!("{name}_bucket{labels} {count}"));
        }
        let (all, plain) = (bucket("+Inf"), braced(labels));
        self.line(format_args!("{name}_bucket{all} {}", histogram.count()));
        self.line(format_args!("{name}_sum{plain} {}", histogram.sum().as_secs_f64()));
        self.line(format_args!("{name}_count{plain} {}", histogram.count()));
        self.family = name;
    }

    /// Returns the finished page.
    pub fn finish(self) -> String {
        self.text
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("writing to a string cannot fail");
    }
}

/// Formats labels as `{a="b",c="d"}`; empty without labels.
fn braced(labels: &[(&str, &str)]) -> String {
    if labels.is_empty() {
        return String::new();
    }
    let pairs: Vec<String> =
        labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    format!("{{{}}}", pairs.join(","))
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Micros;

    #[test]
    fn label_values_and_help_are_escaped() {
        let mut page = PrometheusText::new();
        page.family("a_total", MetricKind::Counter, "one\ntwo \\").sample(&[("x", "q\"b\\n\n")], 3);
        let want = "# HELP a_total one\\ntwo \\\\\n# TYPE a_total counter\na_total{x=\"q\\\"b\\\\n\\n\"} 3\n";
        assert_eq!(page.finish(), want);
    }

    #[test]
    fn a_histogram_has_cumulative_buckets_that_end_at_infinity() {
        let mut histogram = LatencyHistogram::new([Micros(500_000), Micros(1_000_000)]);
        for millis in [100, 700, 5000] {
            histogram.record(Micros::from_millis(millis));
        }
        let mut page = PrometheusText::new();
        page.family("t_seconds", MetricKind::Histogram, "t").latencies(&[("kind", "draft")], &histogram);
        let text = page.finish();
        let samples: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            samples,
            [
                "t_seconds_bucket{kind=\"draft\",le=\"0.5\"} 1",
                "t_seconds_bucket{kind=\"draft\",le=\"1\"} 2",
                "t_seconds_bucket{kind=\"draft\",le=\"+Inf\"} 3",
                "t_seconds_sum{kind=\"draft\"} 5.8",
                "t_seconds_count{kind=\"draft\"} 3",
            ]
        );
    }
}
