//! Report of a replay: all runs and their medians.

use serde::Serialize;

use super::run_stats::RunStats;
use crate::cli::table::{Table, or_dash};
use crate::stats::quantile::median;

/// Baseline policy of the comparison.
const PLAIN: &str = "none";

/// Medians over the repeats of one policy at one rate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Policy of the runs.
    pub policy: String,
    /// Multiple of the trace's rate.
    pub rate_scale: f64,
    /// Attainment: requests that met their objectives over all requests.
    pub attainment: Option<f64>,
    /// Goodput: requests per second that met their objectives.
    pub goodput_rps: Option<f64>,
    /// Output tokens per second.
    pub tokens_per_second: Option<f64>,
    /// Median TTFT, in milliseconds.
    pub ttft_p50_ms: Option<f64>,
    /// 99th percentile of TTFT, in milliseconds.
    pub ttft_p99_ms: Option<f64>,
    /// Mean TPOT, in milliseconds.
    pub tpot_mean_ms: Option<f64>,
    /// Its 99th percentile.
    pub tpot_p99_ms: Option<f64>,
    /// Draft tokens per request and step.
    pub mean_draft_tokens: Option<f64>,
    /// Acceptance length: mean tokens per target step and request.
    pub acceptance_length: Option<f64>,
    /// Median relative error of step time predictions.
    pub time_error_p50: Option<f64>,
    /// Its 99th percentile.
    pub time_error_p99: Option<f64>,
    /// Goodput relative to plain decoding at the same rate; the median over repeats.
    pub goodput_over_none: Option<f64>,
    /// Speedup over plain decoding: ratio of mean TPOTs, the median over repeats.
    pub speed_over_none: Option<f64>,
}

/// The complete report; the `--json` document.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReplayReport {
    /// Version of this program.
    pub version: &'static str,
    /// Medians, in the order of the arguments.
    pub summary: Vec<Summary>,
    /// All runs, in execution order.
    pub runs: Vec<RunStats>,
}

impl ReplayReport {
    /// Summarises the runs.
    pub fn new(runs: Vec<RunStats>) -> ReplayReport {
        let mut keys: Vec<(String, f64)> = Vec::new();
        for run in &runs {
            let key = (run.setting.policy.clone(), run.setting.rate_scale);
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        let summary = keys.iter().map(|(policy, rate_scale)| summarise(&runs, policy, *rate_scale)).collect();
        ReplayReport { version: env!("CARGO_PKG_VERSION"), summary, runs }
    }
}

fn summarise(runs: &[RunStats], policy: &str, rate_scale: f64) -> Summary {
    let of = |policy: &str, repeat: Option<u32>| {
        let policy = policy.to_owned();
        runs.iter().filter(move |run| {
            run.setting.policy == policy
                && run.setting.rate_scale == rate_scale
                && repeat.is_none_or(|repeat| run.setting.repeat == repeat)
        })
    };
    let middle =
        |metric: &dyn Fn(&RunStats) -> Option<f64>| median(of(policy, None).filter_map(metric).collect());
    let over_none = |metric: &dyn Fn(&RunStats, &RunStats) -> Option<f64>| {
        let ratios = of(policy, None).filter_map(|run| {
            let plain = of(PLAIN, Some(run.setting.repeat)).next()?;
            metric(run, plain)
        });
        median(ratios.filter(|ratio| ratio.is_finite()).collect())
    };
    Summary {
        policy: policy.to_owned(),
        rate_scale,
        attainment: middle(&|run| Some(run.attainment)),
        goodput_rps: middle(&|run| Some(run.goodput_rps)),
        tokens_per_second: middle(&|run| Some(run.tokens_per_second)),
        ttft_p50_ms: middle(&|run| run.ttft_ms.p50),
        ttft_p99_ms: middle(&|run| run.ttft_ms.p99),
        tpot_mean_ms: middle(&|run| run.tpot_ms.mean),
        tpot_p99_ms: middle(&|run| run.tpot_ms.p99),
        mean_draft_tokens: middle(&|run| run.mean_draft_tokens),
        acceptance_length: middle(&|run| run.acceptance_length),
        time_error_p50: middle(&|run| run.time_model_error.p50),
        time_error_p99: middle(&|run| run.time_model_error.p99),
        goodput_over_none: over_none(&|run, plain| Some(run.goodput_rps / plain.goodput_rps)),
        speed_over_none: over_none(&|run, plain| Some(plain.tpot_ms.mean? / run.tpot_ms.mean?)),
    }
}

impl std::fmt::Display for ReplayReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut table = Table::new([
            "policy",
            "rate ×",
            "attained %",
            "goodput/s",
            "tokens/s",
            "TTFT p50 ms",
            "p99",
            "TPOT ms",
            "p99",
            "drafts",
            "accept.",
            "goodput ÷ none",
            "speed ÷ none",
        ]);
        for one in &self.summary {
            table.row([
                one.policy.clone(),
                format!("{}", one.rate_scale),
                or_dash(one.attainment.map(|share| share * 100.0), 1),
                or_dash(one.goodput_rps, 2),
                or_dash(one.tokens_per_second, 1),
                or_dash(one.ttft_p50_ms, 1),
                or_dash(one.ttft_p99_ms, 1),
                or_dash(one.tpot_mean_ms, 3),
                or_dash(one.tpot_p99_ms, 3),
                or_dash(one.mean_draft_tokens, 2),
                or_dash(one.acceptance_length, 2),
                or_dash(one.goodput_over_none, 3),
                or_dash(one.speed_over_none, 3),
            ]);
        }
        write!(f, "{table}")?;
        for run in &self.runs {
            if run.refused + run.failed > 0 {
                let (setting, first) = (&run.setting, run.failures.first().map_or("", String::as_str));
                writeln!(
                    f,
                    "{} at {} ×: {} requests, {} rejected, {} failed {first}",
                    setting.policy, setting.rate_scale, run.requests, run.refused, run.failed
                )?;
            }
        }
        Ok(())
    }
}
