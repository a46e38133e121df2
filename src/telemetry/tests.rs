use super::*;
use crate::protocol::{
    DecodeView, DeviceIdle, DraftCounts, DraftedRow, ExecutorMemory, FinishReason, Micros, Proposal,
    RequestFailure, RequestId, RequestSummary, RequestTimes, Slo, StepReport, StepView,
};

fn proposal() -> Proposal {
    Proposal { token: 1, probability: 0.9, margin: 0.5, runner_up: 2, finite: true }
}

fn decoding(request: u64) -> DecodeView {
    DecodeView {
        request: RequestId(request),
        context_tokens: 10,
        output_tokens: 2,
        since_first_token: Micros(100),
        tpot: None,
        weight: 1.0,
        draft_lag_tokens: 1,
        drafts_max: 8,
        temperature: 0.0,
    }
}

/// Two sequences, the first of which drafted four tokens.
fn step(verified: u32, accepted: u32) -> StepReport {
    StepReport {
        view: StepView { decoding: vec![decoding(1), decoding(2)], ..StepView::default() },
        drafted: vec![DraftedRow::chain(0, vec![proposal(); 4])],
        counts: vec![DraftCounts { verified, accepted }, DraftCounts::default()],
        draft_calls: vec![(1, 1)],
        prefill_tokens: 0,
        prefill_attended_tokens: 0,
        draft_time: Micros(300),
        target_time: Micros(600),
        step_time: Micros(1000),
        device_idle: None,
        ..StepReport::default()
    }
}

fn summary(ttft_ms: u64, tpot_ms: u64, output_tokens: u32) -> RequestSummary {
    let first_token = Micros::from_millis(10 + ttft_ms);
    RequestSummary {
        prompt_tokens: 5,
        output_tokens,
        times: RequestTimes {
            arrival: Micros::from_millis(10),
            scheduled: Micros::from_millis(11),
            first_token,
            last_token: first_token + Micros::from_millis(tpot_ms * u64::from(output_tokens - 1)),
        },
        ..RequestSummary::default()
    }
}

fn slo(ttft_ms: u64, tpot_ms: u64) -> Slo {
    Slo { ttft: Some(Micros::from_millis(ttft_ms)), tpot: Some(Micros::from_millis(tpot_ms)) }
}

fn metrics() -> Metrics {
    Metrics::new(MetricsConfig {
        model: "tiny".into(),
        policy: "fixed:4".into(),
        block_tokens: 16,
        slos: vec![slo(777, 33)],
    })
}

#[test]
fn a_step_counts_drafted_verified_and_accepted_apart() {
    let mut metrics = metrics();
    metrics.record_step(&step(3, 2));
    metrics.record_step(&step(4, 0));
    let counters = metrics.summary().counters;
    assert_eq!((counters.drafts, counters.drafted, counters.verified, counters.accepted), (2, 8, 7, 2));
    assert_eq!(metrics.summary().mean_acceptance_length, Some(1.5));
    let page = metrics.render();
    for line in [
        "specserve_spec_decode_verified_tokens_total 7",
        "specserve_spec_decode_accepted_tokens_per_position_total{position=\"1\"} 1",
        "specserve_spec_decode_accepted_tokens_per_position_total{position=\"2\"} 0",
        "specserve_step_time_seconds_sum{kind=\"host\"} 0.0002",
    ] {
        assert!(page.lines().any(|seen| seen == line), "no {line} in\n{page}");
    }
}

/// The samples of the calibration error on a page: label and value.
fn calibration_errors(metrics: &Metrics) -> Vec<(String, f64)> {
    let page = metrics.render();
    let prefix = "specserve_confidence_calibration_error{confidence=\"";
    let samples = page.lines().filter_map(|line| line.strip_prefix(prefix)?.split_once("\"} "));
    samples.map(|(label, value)| (label.to_owned(), value.parse().expect("a number"))).collect()
}

#[test]
fn the_calibration_error_of_confidences_covers_the_drafts_that_were_examined() {
    let mut metrics = metrics();
    assert_eq!(calibration_errors(&metrics), []);
    // four verified and two accepted: the third was rejected, the fourth says nothing
    metrics.record_step(&step(4, 2));
    let errors = calibration_errors(&metrics);
    assert_eq!(errors.len(), 1);
    let (label, error) = &errors[0];
    assert!(label == "draft" && (error - (0.9 - 2.0 / 3.0)).abs() < 1e-6, "{errors:?}");
    metrics.set_calibrated_error(Some(0.0625));
    assert_eq!(calibration_errors(&metrics)[1], ("calibrated".to_owned(), 0.0625));
    let summary = metrics.summary().calibration_error;
    assert_eq!((summary.draft, summary.calibrated), (Some(*error), Some(0.0625)));
}

#[test]
fn the_calibration_error_forgets_what_long_ago_was_wrong() {
    let mut metrics = metrics();
    let error = |metrics: &Metrics| metrics.summary().calibration_error.draft.expect("drafts");
    (0..1000).for_each(|_| metrics.record_step(&step(4, 0)));
    assert!((error(&metrics) - 0.9).abs() < 1e-6);
    (0..10_000).for_each(|_| metrics.record_step(&step(4, 4)));
    assert!((error(&metrics) - 0.1).abs() < 0.01, "{}", error(&metrics));
}

#[test]
fn each_part_of_the_executors_memory_is_shown() {
    let mut metrics = metrics();
    metrics.set_memory(ExecutorMemory {
        target_weights: 16_000_000_000,
        draft_weights: 2,
        target_kv: 3,
        draft_kv: 4,
        hidden_states: 5,
    });
    let page = metrics.render();
    let prefix = "specserve_memory_bytes{part=\"";
    let samples: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix(prefix)).collect();
    let expected = [
        "target_weights\"} 16000000000",
        "draft_weights\"} 2",
        "target_kv\"} 3",
        "draft_kv\"} 4",
        "hidden_states\"} 5",
    ];
    assert_eq!(samples, expected);
}

#[test]
fn the_prefix_cache_counts_tokens_looked_up_and_tokens_found() {
    let mut metrics = metrics();
    metrics.set_prefix_cache(200, 96);
    let page = metrics.render();
    for line in ["specserve_prefix_cache_queries_total 200", "specserve_prefix_cache_hits_total 96"] {
        assert!(page.lines().any(|seen| seen == line), "no {line} in\n{page}");
    }
}

#[test]
fn device_idle_times_are_separate_and_absent_if_unknown() {
    let idle_of = |pauses: &[Option<u64>]| {
        let mut idle = None;
        pauses.iter().for_each(|pause| DeviceIdle::add(&mut idle, pause.map(Micros)));
        idle
    };
    assert_eq!(idle_of(&[None, None]), None);
    let mut metrics = metrics();
    metrics.record_step(&step(3, 2));
    // two draft calls and the verification, then a plain step after a time without work
    metrics.record_step(&StepReport { device_idle: idle_of(&[Some(70), Some(20), Some(30)]), ..step(3, 2) });
    metrics.record_step(&StepReport { device_idle: idle_of(&[Some(0)]), ..step(0, 0) });
    let page = metrics.render();
    for line in [
        "specserve_device_idle_seconds_sum{kind=\"between_steps\"} 0.00007",
        "specserve_device_idle_seconds_count{kind=\"between_steps\"} 1",
        "specserve_device_idle_seconds_sum{kind=\"within_step\"} 0.00005",
        "specserve_device_idle_seconds_count{kind=\"within_step\"} 2",
    ] {
        assert!(page.lines().any(|seen| seen == line), "no {line} in\n{page}");
    }
}

#[test]
#[should_panic(expected = "accepted of 2 verified")]
fn more_accepted_than_verified_is_a_fault() {
    metrics().record_step(&step(2, 3));
}

#[test]
#[should_panic(expected = "verified of 4 drafted")]
fn more_verified_than_drafted_is_a_fault() {
    metrics().record_step(&step(5, 3));
}

#[test]
fn a_request_attains_when_both_bounds_hold() {
    let mut metrics = metrics();
    metrics.record_finished(&summary(100, 20, 5), FinishReason::Stop, &slo(100, 20));
    metrics.record_finished(&summary(101, 20, 5), FinishReason::Length, &slo(100, 20));
    metrics.record_finished(&summary(100, 21, 5), FinishReason::Stop, &slo(100, 20));
    metrics.record_finished(&summary(500, 90, 5), FinishReason::Stop, &Slo::default());
    let counters = metrics.summary().counters;
    assert_eq!(counters.slo_ttft, SloCounts { attained: 2, violated: 1 });
    assert_eq!(counters.slo_tpot, SloCounts { attained: 2, violated: 1 });
    assert_eq!(counters.slo_request, SloCounts { attained: 2, violated: 2 });
    assert_eq!(metrics.summary().attainment, Some(0.5));
    assert_eq!((counters.finished_stop, counters.finished_length), (3, 1));
}

#[test]
fn a_single_token_has_no_tpot_and_cannot_miss_it() {
    let mut metrics = metrics();
    metrics.record_finished(&summary(1, 0, 1), FinishReason::Stop, &slo(100, 20));
    assert_eq!(metrics.summary().tpot, None);
    assert_eq!(metrics.summary().counters.slo_tpot, SloCounts { attained: 1, violated: 0 });
}

#[test]
fn failures_and_refusals_are_counted_by_reason() {
    let mut metrics = metrics();
    metrics.record_failed(&RequestFailure::Cancelled);
    metrics.record_failed(&RequestFailure::Engine("gone".into()));
    metrics.record_failed(&RequestFailure::Late { ttft: Micros(1000) });
    metrics.record_failed(&RequestFailure::Overdue { wait_max: Micros(1000) });
    metrics.record_rejected(RejectionReason::QueueFull);
    metrics.record_rejected(RejectionReason::QueueFull);
    let page = metrics.render();
    for (reason, count) in [
        ("cancelled", 1),
        ("engine_error", 1),
        ("slo_too_late", 1),
        ("queue_timeout", 1),
        ("queue_full", 2),
        ("too_large", 0),
    ] {
        let line = format!("specserve_request_failure_total{{reason=\"{reason}\"}} {count}");
        assert!(page.lines().any(|seen| seen == line), "no {line} in\n{page}");
    }
    assert_eq!((metrics.summary().counters.failed, metrics.summary().counters.rejected), (2, 4));
}

#[test]
fn the_bounds_of_the_classes_are_bucket_edges() {
    let page = metrics().render();
    assert!(page.contains("specserve_time_to_first_token_seconds_bucket{le=\"0.777\"} 0"));
    assert!(page.contains("specserve_request_time_per_output_token_seconds_bucket{le=\"0.033\"} 0"));
}

#[test]
fn drafts_deeper_than_the_last_label_are_counted_there() {
    let mut metrics = metrics();
    let depth = DRAFT_POSITIONS_MAX as u32 + 3;
    let mut report = step(depth, depth);
    report.drafted[0].proposals = vec![proposal(); depth as usize];
    metrics.record_step(&report);
    let line = format!("per_position_total{{position=\"{}\"}} 4", DRAFT_POSITIONS_MAX - 1);
    assert!(metrics.render().contains(&line));
}

#[test]
fn every_family_has_help_and_type_once_and_its_samples_under_it() {
    let mut metrics = metrics();
    metrics.set_gauges(Gauges {
        running: 3,
        kv: vec![KvGauge { model: "target".into(), blocks_held: 3, blocks_total: 12 }],
        ..Gauges::default()
    });
    let page = metrics.render();
    assert!(page.contains("specserve_kv_cache_usage_ratio{model=\"target\"} 0.25"));
    let mut families = std::collections::HashSet::new();
    let mut open = "";
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            open = rest.split(' ').next().unwrap();
            assert!(families.insert(open), "{open} twice");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            assert_eq!(rest.split(' ').next(), Some(open));
        } else {
            assert!(line.starts_with(open), "{line} under {open}");
            line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
        }
    }
}

#[test]
fn the_summary_survives_json() {
    let mut metrics = metrics();
    metrics.record_step(&step(3, 2));
    metrics.record_output(3, Some(Micros(900)));
    metrics.record_admitted(12);
    let summary = metrics.summary();
    let json = serde_json::to_string(&summary).unwrap();
    assert_eq!(serde_json::from_str::<MetricsSummary>(&json).unwrap(), summary);
}

#[test]
fn every_metric_is_documented() {
    let documented = include_str!("../../docs/metrics.md");
    for family in metrics().render().lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = family.split(' ').next().unwrap();
        let short = name.replace("specserve_spec_decode_", "…_");
        let known = documented.contains(&format!("`{name}`"));
        assert!(known || documented.contains(&format!("`{short}`")), "{name}");
    }
}

#[test]
fn predictions_are_compared_with_observations() {
    let mut metrics = metrics();
    assert_eq!(metrics.summary().prediction_error, None);
    for predicted in [1000, 1000, 900] {
        metrics.record_prediction(Micros(predicted), Micros(1000));
    }
    let error = metrics.summary().prediction_error.expect("three were recorded");
    assert_eq!(error.count, 3);
    assert!(error.p50 < 0.001, "{error:?}");
    assert!((error.p99 - 0.1).abs() < 0.002, "{error:?}");
    assert!(metrics.render().contains("specserve_step_prediction_error_ratio{quantile=\"0.99\"} 0.1"));
}
