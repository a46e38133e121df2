//! Counters of errors and refused connections.
//!
//! The engine's metrics cover only requests that reach it, and only once it runs. These
//! counters cover the rest.

use std::sync::atomic::{AtomicU64, Ordering};

use super::error_code::ErrorCode;
use crate::telemetry::{MetricKind, PrometheusText};

/// Counters since the daemon's start, shared by server and routes.
#[derive(Debug)]
pub struct ApiCounters {
    /// Error responses by [`ErrorCode`].
    errors: [AtomicU64; ErrorCode::ALL.len()],
    /// Connections from users that are not allowed to connect.
    unauthorized: AtomicU64,
    /// Connections that sent no valid HTTP request head.
    bad_heads: AtomicU64,
}

impl Default for ApiCounters {
    fn default() -> ApiCounters {
        ApiCounters {
            errors: std::array::from_fn(|_| AtomicU64::new(0)),
            unauthorized: AtomicU64::new(0),
            bad_heads: AtomicU64::new(0),
        }
    }
}

impl ApiCounters {
    /// Counts an error response.
    pub fn count_error(&self, code: ErrorCode) {
        self.errors[code as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection closed because its user is not allowed; returns the new total.
    pub fn count_unauthorized(&self) -> u64 {
        self.unauthorized.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Counts a connection closed because of a malformed request head.
    pub fn count_bad_head(&self) {
        self.bad_heads.fetch_add(1, Ordering::Relaxed);
    }

    /// Renders the API's part of the `/metrics` page.
    pub fn render(&self) -> String {
        let mut page = PrometheusText::new();
        page.family(
            "specserve_http_errors_total",
            MetricKind::Counter,
            "Requests answered with an error in place of an answer, by HTTP status and by the error's code. \
             A stream that fails after its first event is not among them.",
        );
        for (&code, count) in ErrorCode::ALL.iter().zip(&self.errors) {
            let status = code.status();
            page.sample(&[("status", status.as_str()), ("code", code.name())], count.load(Ordering::Relaxed));
        }
        page.family(
            "specserve_connections_refused_total",
            MetricKind::Counter,
            "Connections closed by the server. uid: the user is not one of server.socket_uids; \
             bad_head: a request's head was malformed or too long.",
        )
        .sample(&[("reason", "uid")], self.unauthorized.load(Ordering::Relaxed))
        .sample(&[("reason", "bad_head")], self.bad_heads.load(Ordering::Relaxed));
        page.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_counted_by_status_and_code_and_all_are_there_from_the_start() {
        let counters = ApiCounters::default();
        let errors = |page: &str| page.matches("specserve_http_errors_total{").count();
        assert_eq!(errors(&counters.render()), ErrorCode::ALL.len());
        counters.count_error(ErrorCode::QueueFull);
        counters.count_error(ErrorCode::InvalidJson);
        counters.count_error(ErrorCode::InvalidJson);
        counters.count_bad_head();
        assert_eq!((counters.count_unauthorized(), counters.count_unauthorized()), (1, 2));
        let page = counters.render();
        for line in [
            "specserve_http_errors_total{status=\"400\",code=\"invalid_json\"} 2",
            "specserve_http_errors_total{status=\"503\",code=\"queue_full\"} 1",
            "specserve_http_errors_total{status=\"404\",code=\"unknown_url\"} 0",
            "specserve_connections_refused_total{reason=\"uid\"} 2",
            "specserve_connections_refused_total{reason=\"bad_head\"} 1",
        ] {
            assert!(page.lines().any(|seen| seen == line), "no {line} in\n{page}");
        }
        assert_eq!(errors(&page), ErrorCode::ALL.len());
    }

    #[test]
    fn every_metric_and_every_reason_is_documented() {
        let documented = include_str!("../../docs/metrics.md");
        let page = ApiCounters::default().render();
        for family in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let name = family.split(' ').next().expect("a name");
            let row = documented.lines().find(|line| line.contains(&format!("`{name}`")));
            let row = row.unwrap_or_else(|| panic!("docs/metrics.md does not name {name}"));
            for reason in page.lines().filter_map(|line| line.strip_prefix(&format!("{name}{{reason=\""))) {
                let reason = reason.split('"').next().expect("a label");
                assert!(row.contains(reason), "docs/metrics.md does not name {reason}");
            }
        }
    }
}
