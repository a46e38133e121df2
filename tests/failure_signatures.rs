//! Known failure modes of adaptive speculation, in the simulator with the daemon's own
//! scheduler and policy: a wrong time model, uninformative confidences, a useless draft.

use specserve::pacing::{LateAction, ServiceOrder};
use specserve::policy::registry::{PolicyName, PolicyOptions, build};
use specserve::protocol::{DrafterNeeds, Micros, Slo};
use specserve::replay::{Arrival, Lengths, TraceSource, WorkloadOptions, load};
use specserve::scheduler::SchedulerLimits;
use specserve::simulate::virtual_executor::{Confidence, TimeError};
use specserve::simulate::{DraftQuality, Report, Settings, SimulatedClass, simulate};
use specserve::timing::profile::Profile;

fn profile() -> Profile {
    Profile::from_toml(include_str!("../profiles/h100-8b-160m-measured.toml")).expect("the profile parses")
}

fn settings() -> Settings {
    Settings {
        cost: profile().cost_model().expect("the profile's terms are valid"),
        error: TimeError::NONE,
        draft: DraftQuality::typical(),
        limits: SchedulerLimits {
            running_requests_max: 128,
            prefill_chunk_tokens_max: 2048,
            batch_tokens_max: 4096,
            draft_tokens_max: 8,
            sampled_rows_max: u32::MAX,
            target_blocks: 16_384,
            drafter: Some(DrafterNeeds::kv_cache(16_384)),
        },
        queue_requests_max: 10_000,
        context_tokens_max: 8192,
        order: ServiceOrder::Slo,
        late: LateAction::Demote,
        classes: SimulatedClass::of_all(Slo {
            ttft: Some(Micros::from_millis(1000)),
            tpot: Some(Micros::from_millis(15)),
        }),
        temperature: 0.0,
        seed: 3,
    }
}

fn arrivals(rps: f64, seconds: f64) -> Vec<Arrival> {
    load(&TraceSource::Gamma { rps, cv: 1.0, seconds }, &WorkloadOptions::whole(Lengths::SpecBench, 5))
        .expect("a Poisson process")
}

fn play(policy: PolicyName, settings: &Settings) -> Report {
    let policy = build(policy, Some(&profile()), &PolicyOptions::default()).expect("the policy builds");
    simulate(&arrivals(9.0, 60.0), settings, policy).expect("simulates")
}

#[test]
fn a_machine_forty_percent_slower_than_its_profile_is_learned_and_objectives_are_kept() {
    let slow = TimeError {
        target_factor: 1.4,
        prefill_factor: 1.4,
        draft_factor: 1.4,
        host_factor: 1.4,
        ..TimeError::NONE
    };
    let report = play(PolicyName::SpecServe, &Settings { error: slow, ..settings() });
    assert!(report.attainment >= 0.99, "attained {}", report.attainment);
    assert!(report.step_time_error_p50.expect("it predicts") < 0.02, "{:?}", report.step_time_error_p50);
}

#[test]
fn noisy_confidences_do_not_make_speculation_go_on_and_off() {
    let mut settings = settings();
    settings.draft.confidence = Confidence::Noisy { logit_sd: 1.5 };
    let report = play(PolicyName::SpecServe, &settings);
    assert!(report.switches_per_second < 0.5, "{} switches a second", report.switches_per_second);
    assert!(report.mean_accepted_tokens > 0.5, "noise is no reason to stop: {}", report.mean_accepted_tokens);
}

#[test]
fn a_draft_that_is_of_no_use_costs_less_than_two_percent() {
    let mut settings = settings();
    settings.draft.confidence = Confidence::Misaligned { acceptance: 0.02 };
    let plain = play(PolicyName::None, &settings);
    let ours = play(PolicyName::SpecServe, &settings);
    let [ours_ms, plain_ms] = [&ours, &plain].map(|report| report.tpot_ms.mean.expect("requests finished"));
    assert!(ours_ms / plain_ms < 1.02, "{ours_ms} against {plain_ms} ms a token");
    assert_eq!(ours.finished, plain.finished);
}
