//! Tables of the simulation reports.

use crate::cli::table::{Table, or_dash};
use crate::simulate::Report;

/// One row per run.
pub fn of(reports: &[Report]) -> Table {
    let mut table = Table::new([
        "policy",
        "load",
        "rps",
        "attained %",
        "refused",
        "goodput/s",
        "tokens/s",
        "TTFT p50",
        "p99",
        "TPOT mean",
        "p50",
        "p99 ms",
        "drafted",
        "verified",
        "accepted",
        "batch",
        "wall s",
    ]);
    for report in reports {
        let two = |value: f64| format!("{value:.2}");
        let millis = |value: Option<f64>| or_dash(value, 2);
        table.row([
            report.policy.clone(),
            two(report.load),
            two(report.offered_rps),
            format!("{:.1}", report.attainment * 100.0),
            report.refused.to_string(),
            two(report.goodput_rps),
            format!("{:.0}", report.tokens_per_second),
            millis(report.ttft_ms.p50),
            millis(report.ttft_ms.p99),
            millis(report.tpot_ms.mean),
            millis(report.tpot_ms.p50),
            millis(report.tpot_ms.p99),
            two(report.mean_draft_tokens),
            two(report.mean_verified_tokens),
            two(report.mean_accepted_tokens),
            format!("{:.1}", report.mean_batch),
            millis(report.wall_seconds),
        ]);
    }
    table
}

/// One row per run and class.
pub fn of_classes(reports: &[Report]) -> Table {
    let mut table = Table::new([
        "policy",
        "load",
        "class",
        "requests",
        "attained %",
        "refused",
        "goodput/s",
        "TTFT p50",
        "p99",
        "TPOT mean",
        "p50",
        "p99 ms",
    ]);
    for report in reports {
        for class in &report.classes {
            let millis = |value: Option<f64>| or_dash(value, 2);
            table.row([
                report.policy.clone(),
                format!("{:.2}", report.load),
                class.name.clone(),
                class.requests.to_string(),
                format!("{:.1}", class.attainment * 100.0),
                class.refused.to_string(),
                format!("{:.2}", class.goodput_rps),
                millis(class.ttft_ms.p50),
                millis(class.ttft_ms.p99),
                millis(class.tpot_ms.mean),
                millis(class.tpot_ms.p50),
                millis(class.tpot_ms.p99),
            ]);
        }
    }
    table
}
