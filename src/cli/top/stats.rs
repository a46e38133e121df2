//! Statistics of the dashboard, from two metrics pages.

use serde::Serialize;

use super::page::Page;
use crate::cli::table::{Table, or_dash};

/// Percentiles in milliseconds, interpolated within histogram buckets; `None` without samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// 50th percentile.
    pub p50: Option<f64>,
    /// 99th percentile.
    pub p99: Option<f64>,
}

/// Statistics of one screen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DashboardStats {
    /// The served model.
    pub model: String,
    /// The speculation policy.
    pub policy: String,
    /// Running requests.
    pub requests_running: u64,
    /// Waiting requests.
    pub requests_waiting: u64,
    /// Requests with a complete output, since the daemon's start.
    pub requests_finished: u64,
    /// Failed requests, since the daemon's start.
    pub requests_failed: u64,
    /// Output tokens per second, over the last interval.
    pub tokens_per_second: f64,
    /// Prompt tokens admitted per second, over the last interval.
    pub prompt_tokens_per_second: f64,
    /// Finished requests per second, over the last interval.
    pub requests_per_second: f64,
    /// Goodput: requests per second that met their objectives, over the last interval.
    pub goodput_rps: f64,
    /// Attainment: share of finished requests that met their objectives, since the daemon's start.
    pub attainment: Option<f64>,
    /// Share of finished requests within their TTFT objective, since the daemon's start.
    pub ttft_attainment: Option<f64>,
    /// Share of finished requests within their TPOT objective, since the daemon's start.
    pub tpot_attainment: Option<f64>,
    /// Acceptance length: mean tokens per target step and request, over the last interval.
    pub acceptance_length: Option<f64>,
    /// Acceptance rate: accepted over verified draft tokens, over the last interval.
    pub acceptance_rate: Option<f64>,
    /// Draft tokens per second, over the last interval.
    pub draft_tokens_per_second: f64,
    /// Expected calibration error of the drafter's confidence, 0 to 1.
    pub draft_confidence_error: Option<f64>,
    /// Expected calibration error of the policy's acceptance probabilities, 0 to 1; `None` if it
    /// makes none.
    pub calibrated_confidence_error: Option<f64>,
    /// Share of the target's KV blocks in use.
    pub kv_usage_target: Option<f64>,
    /// Share of the draft's KV blocks in use.
    pub kv_usage_draft: Option<f64>,
    /// TTFT, since the window's start.
    pub ttft_ms: Latency,
    /// TPOT, since the window's start.
    pub tpot_ms: Latency,
    /// Engine steps, since the window's start.
    pub step_ms: Latency,
}

impl DashboardStats {
    /// Computes the statistics of `now`. Rates are relative to the page of `seconds` ago; latencies cover
    /// everything after `window_start`.
    pub fn new(window_start: &Page, before: &Page, now: &Page, seconds: f64) -> DashboardStats {
        let grown = |name: &str| (now.sum(name) - before.sum(name)).max(0.0);
        let rate = |name: &str| grown(name) / seconds.max(1e-9);
        let latency = |histogram: &str| Latency::between(window_start, now, histogram);
        let attained = |page: &Page| objectives(page, "request").0;
        let attainment = |kind: &str| {
            let (attained, violated) = objectives(now, kind);
            ratio(attained, attained + violated)
        };
        let confidence_error =
            |confidence| now.labelled("specserve_confidence_calibration_error", "confidence", confidence);
        let accepted = grown("specserve_spec_decode_accepted_tokens_total");
        DashboardStats {
            model: now.label("specserve_engine_info", "model").unwrap_or("?").to_owned(),
            policy: now.label("specserve_engine_info", "policy").unwrap_or("?").to_owned(),
            requests_running: now.sum("specserve_requests_running") as u64,
            requests_waiting: now.sum("specserve_requests_waiting") as u64,
            requests_finished: now.sum("specserve_request_success_total") as u64,
            requests_failed: now.sum("specserve_request_failure_total") as u64,
            tokens_per_second: rate("specserve_generation_tokens_total"),
            prompt_tokens_per_second: rate("specserve_prompt_tokens_total"),
            requests_per_second: rate("specserve_request_success_total"),
            goodput_rps: (attained(now) - attained(before)).max(0.0) / seconds.max(1e-9),
            attainment: attainment("request"),
            ttft_attainment: attainment("ttft"),
            tpot_attainment: attainment("tpot"),
            acceptance_length: ratio(accepted, grown("specserve_sequence_steps_total"))
                .map(|extra| 1.0 + extra),
            acceptance_rate: ratio(accepted, grown("specserve_spec_decode_verified_tokens_total")),
            draft_tokens_per_second: rate("specserve_spec_decode_draft_tokens_total"),
            draft_confidence_error: confidence_error("draft"),
            calibrated_confidence_error: confidence_error("calibrated"),
            kv_usage_target: now.labelled("specserve_kv_cache_usage_ratio", "model", "target"),
            kv_usage_draft: now.labelled("specserve_kv_cache_usage_ratio", "model", "draft"),
            ttft_ms: latency("specserve_time_to_first_token_seconds"),
            tpot_ms: latency("specserve_request_time_per_output_token_seconds"),
            step_ms: latency("specserve_step_seconds"),
        }
    }
}

/// Requests that met, and that missed, their objectives of this kind.
fn objectives(page: &Page, kind: &str) -> (f64, f64) {
    let count = |name: &str| page.labelled(name, "kind", kind).unwrap_or(0.0);
    (count("specserve_slo_attained_total"), count("specserve_slo_violated_total"))
}

fn ratio(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}

impl Latency {
    fn between(start: &Page, now: &Page, histogram: &str) -> Latency {
        let earlier = start.buckets(histogram);
        let at_start =
            |edge: f64| earlier.iter().find(|bucket| bucket.0 == edge).map_or(0.0, |bucket| bucket.1);
        let buckets: Vec<(f64, f64)> =
            now.buckets(histogram).into_iter().map(|(edge, count)| (edge, count - at_start(edge))).collect();
        let millis = |q: f64| quantile(&buckets, q).map(|seconds| seconds * 1e3);
        Latency { p50: millis(0.5), p99: millis(0.99) }
    }
}

/// The `q`-quantile, interpolated linearly within its bucket. In the last, unbounded bucket
/// it is the lower edge.
fn quantile(buckets: &[(f64, f64)], q: f64) -> Option<f64> {
    let total = buckets.last()?.1;
    if total <= 0.0 {
        return None;
    }
    let rank = q * total;
    let index = buckets.iter().position(|bucket| bucket.1 >= rank)?;
    let (edge, count) = buckets[index];
    let (lower_edge, lower_count) = if index == 0 { (0.0, 0.0) } else { buckets[index - 1] };
    if edge.is_infinite() {
        return Some(lower_edge);
    }
    Some(lower_edge + (edge - lower_edge) * (rank - lower_count) / (count - lower_count).max(1e-9))
}

impl std::fmt::Display for DashboardStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "specserve: {}, policy {}", self.model, self.policy)?;
        writeln!(
            f,
            "requests     {} running, {} waiting, {} finished, {} failed",
            self.requests_running, self.requests_waiting, self.requests_finished, self.requests_failed
        )?;
        writeln!(
            f,
            "speed        {:.1} tokens/s, {:.1} prompt tokens/s, {:.2} requests/s",
            self.tokens_per_second, self.prompt_tokens_per_second, self.requests_per_second
        )?;
        writeln!(
            f,
            "objectives   {} attained since start, goodput {:.2} requests/s",
            percent(self.attainment),
            self.goodput_rps
        )?;
        writeln!(
            f,
            "speculation  {} tokens per step, {} of verified drafts accepted, {:.1} drafts/s",
            or_dash(self.acceptance_length, 2),
            percent(self.acceptance_rate),
            self.draft_tokens_per_second
        )?;
        writeln!(
            f,
            "confidence   the draft's off by {}, calibrated by {}",
            percent(self.draft_confidence_error),
            percent(self.calibrated_confidence_error)
        )?;
        let (target, draft) = (percent(self.kv_usage_target), percent(self.kv_usage_draft));
        writeln!(f, "KV cache     target {target}, draft {draft}\n")?;
        let mut table = Table::new(["", "p50, ms", "p99, ms"]);
        for (name, latency) in [("TTFT", self.ttft_ms), ("TPOT", self.tpot_ms), ("step", self.step_ms)] {
            table.row([name.to_owned(), or_dash(latency.p50, 2), or_dash(latency.p99, 2)]);
        }
        write!(f, "{table}")
    }
}

/// A share in percent; a dash for `None`.
pub fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{:.1} %", value * 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(tokens: u32, accepted: u32, steps: u32, ttft: [u32; 3]) -> Page {
        Page::parse(&format!(
            "specserve_engine_info{{version=\"1\",model=\"tiny\",policy=\"fixed:4\"}} 1\n\
             specserve_requests_running 2\n\
             specserve_generation_tokens_total {tokens}\n\
             specserve_spec_decode_accepted_tokens_total {accepted}\n\
             specserve_spec_decode_verified_tokens_total {}\n\
             specserve_sequence_steps_total {steps}\n\
             specserve_slo_attained_total{{kind=\"ttft\"}} 100\n\
             specserve_slo_attained_total{{kind=\"request\"}} 3\n\
             specserve_slo_violated_total{{kind=\"request\"}} 1\n\
             specserve_confidence_calibration_error{{confidence=\"draft\"}} 0.125\n\
             specserve_kv_cache_usage_ratio{{model=\"target\"}} 0.5\n\
             specserve_time_to_first_token_seconds_bucket{{le=\"0.1\"}} {}\n\
             specserve_time_to_first_token_seconds_bucket{{le=\"0.2\"}} {}\n\
             specserve_time_to_first_token_seconds_bucket{{le=\"+Inf\"}} {}\n",
            2 * accepted,
            ttft[0],
            ttft[1],
            ttft[2],
        ))
    }

    #[test]
    fn rates_are_over_the_interval_and_totals_since_the_start() {
        let stats = DashboardStats::new(
            &Page::default(),
            &page(100, 10, 10, [0, 0, 0]),
            &page(300, 40, 20, [4, 8, 8]),
            2.0,
        );
        assert_eq!((stats.model.as_str(), stats.policy.as_str()), ("tiny", "fixed:4"));
        assert_eq!(stats.requests_running, 2);
        assert_eq!(stats.tokens_per_second, 100.0);
        assert_eq!(stats.acceptance_length, Some(4.0));
        assert_eq!(stats.acceptance_rate, Some(0.5));
        assert_eq!(stats.attainment, Some(0.75));
        assert_eq!((stats.ttft_attainment, stats.tpot_attainment), (Some(1.0), None));
        assert_eq!((stats.draft_confidence_error, stats.calibrated_confidence_error), (Some(0.125), None));
        let text = stats.to_string();
        assert!(text.contains("confidence   the draft's off by 12.5 %, calibrated by -\n"), "{text}");
        assert_eq!(stats.kv_usage_target, Some(0.5));
        assert_eq!(stats.kv_usage_draft, None);
    }

    #[test]
    fn latencies_count_the_window_only() {
        let now = page(0, 0, 0, [4, 8, 8]);
        let p50 = |window_start: &Page| {
            DashboardStats::new(window_start, &now, &now, 1.0).ttft_ms.p50.map(f64::round)
        };
        assert_eq!(p50(&Page::default()), Some(100.0));
        assert_eq!(p50(&page(0, 0, 0, [4, 4, 4])), Some(150.0));
        assert_eq!(p50(&now), None);
    }

    #[test]
    fn beyond_the_last_edge_only_the_edge_is_known() {
        assert_eq!(quantile(&[(0.1, 1.0), (f64::INFINITY, 10.0)], 0.99), Some(0.1));
    }

    #[test]
    fn an_idle_daemon_shows_dashes_in_place_of_ratios() {
        let idle = Page::default();
        let text = DashboardStats::new(&idle, &idle, &idle, 1.0).to_string();
        assert!(text.contains("speculation  - tokens per step"), "{text}");
        assert!(text.contains("TTFT        -        -"), "{text}");
    }
}
