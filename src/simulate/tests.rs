use super::*;
use crate::policy::{Fixed, Learner, Policy, Scratch, Static};
use crate::protocol::{Clock, DrafterNeeds, Micros, MonotonicClock, Slo, StepDecision, StepView};
use crate::replay::spec_bench::Task;
use crate::replay::{Lengths, TraceSource, WorkloadOptions, load};
use crate::timing::cost_model::{Between, LatencyModel, LatencyTerms};

/// Microseconds of a target pass: 5,000 and 10 for each row.
const TARGET_US: f64 = 5000.0;
const TARGET_ROW_US: f64 = 10.0;
/// Microseconds of a draft call, whatever the rows.
const DRAFT_US: f64 = 300.0;
const HOST_US: f64 = 50.0;

/// Times that depend on rows alone.
fn rows_only(target_us: f64, row_us: f64) -> CostModel {
    let terms = |micros: [f64; 2]| LatencyTerms::staircase(Between::Interpolate, &[1, 1001], &micros);
    let target = [target_us + row_us, target_us + 1001.0 * row_us];
    CostModel {
        target: LatencyModel::new(terms(target)).unwrap(),
        draft: Some(LatencyModel::new(terms([DRAFT_US; 2])).unwrap()),
        host_us: HOST_US,
    }
}

pub(crate) fn settings() -> Settings {
    Settings {
        cost: rows_only(TARGET_US, TARGET_ROW_US),
        error: TimeError::NONE,
        draft: DraftQuality::typical(),
        limits: SchedulerLimits {
            running_requests_max: 64,
            prefill_chunk_tokens_max: 512,
            batch_tokens_max: 2048,
            draft_tokens_max: 8,
            sampled_rows_max: u32::MAX,
            target_blocks: 8192,
            drafter: Some(DrafterNeeds::kv_cache(8192)),
        },
        queue_requests_max: 10_000,
        context_tokens_max: 65_536,
        order: ServiceOrder::Fifo,
        late: LateAction::default(),
        classes: SimulatedClass::of_all(Slo {
            ttft: Some(Micros::from_millis(500)),
            tpot: Some(Micros::from_millis(8)),
        }),
        temperature: 0.0,
        seed: 11,
    }
}

fn geometric(acceptance: f64) -> DraftQuality {
    DraftQuality {
        median: Some(acceptance),
        request_sd: 0.0,
        position_sd: 0.0,
        correlation: 0.0,
        confidence: Confidence::Calibrated,
        runner_up: 0.0,
        recording: None,
        recording_in_order: false,
    }
}

fn arrival(at_ms: u64, prompt_tokens: u32, output_tokens: u32) -> Arrival {
    Arrival { at: Micros::from_millis(at_ms), prompt_tokens, output_tokens, task: Task::Chat }
}

pub(crate) fn poisson(rps: f64, seconds: f64) -> Vec<Arrival> {
    load(&TraceSource::Gamma { rps, cv: 1.0, seconds }, &WorkloadOptions::whole(Lengths::SpecBench, 5))
        .unwrap()
}

fn run(workload: &[Arrival], settings: &Settings, draft_tokens: u32) -> Report {
    simulate(workload, settings, Box::new(Static::new(Fixed { draft_tokens }))).unwrap()
}

fn assert_within(actual: f64, expected: f64, share: f64) {
    assert!((actual / expected - 1.0).abs() <= share, "{actual} is not within {share} of {expected}");
}

#[test]
fn the_same_seed_gives_the_same_report_and_another_one_does_not() {
    let workload = poisson(8.0, 10.0);
    let settings = settings();
    let report = run(&workload, &settings, 3);
    assert_eq!(report, run(&workload, &settings, 3));
    let other = Settings { seed: 12, ..settings };
    assert_ne!(report.mean_accepted_tokens, run(&workload, &other, 3).mean_accepted_tokens);
}

#[test]
fn every_request_finishes_with_all_its_tokens_under_any_draft_length() {
    let workload = poisson(20.0, 5.0);
    let tokens: u64 = workload.iter().map(|one| u64::from(one.output_tokens)).sum();
    for draft_tokens in [0, 1, 8] {
        let report = run(&workload, &settings(), draft_tokens);
        assert_eq!((report.finished, report.refused), (workload.len() as u64, 0));
        assert_within(report.tokens_per_second * report.simulated_seconds, tokens as f64, 1e-9);
        let arrivals: u64 = report.timeline.iter().map(|bin| bin.arrivals).sum();
        let steps: u64 = report.timeline.iter().map(|bin| bin.steps).sum();
        assert_eq!((arrivals, steps), (report.requests, report.steps));
        assert!(report.mean_accepted_tokens <= report.mean_verified_tokens);
        assert!(report.mean_verified_tokens <= report.mean_draft_tokens);
    }
}

#[test]
fn a_full_pool_preempts_and_every_request_still_finishes() {
    let mut settings = settings();
    settings.limits.target_blocks = 120;
    settings.limits.drafter = Some(DrafterNeeds::kv_cache(120));
    let workload: Vec<Arrival> = (0..12).map(|n| arrival(n, 100, 400)).collect();
    let report = run(&workload, &settings, 4);
    assert_eq!(report.finished, 12);
    assert!(report.preemptions > 0);
}

#[test]
fn plain_decoding_takes_the_closed_form() {
    let workload: Vec<Arrival> = (0..16).map(|_| arrival(0, 32, 500)).collect();
    let report = run(&workload, &settings(), 0);
    // one chunk prefills all 16 prompts, and each of its tokens is a row
    let prefill = TARGET_US + 16.0 * 32.0 * TARGET_ROW_US + HOST_US;
    let step = TARGET_US + 16.0 * TARGET_ROW_US + HOST_US;
    assert_within(report.ttft_ms.mean.unwrap(), prefill / 1e3, 0.001);
    assert_within(report.tpot_ms.mean.unwrap(), step / 1e3, 0.001);
    let seconds = (prefill + 499.0 * step) / 1e6;
    assert_within(report.tokens_per_second, 16.0 * 500.0 / seconds, 0.001);
    assert_eq!((report.mean_draft_tokens, report.steps), (0.0, 500));
}

#[test]
fn fixed_drafts_speed_up_as_geometric_acceptance_says() {
    for (acceptance, draft_tokens) in [(0.5, 2), (0.8, 4), (0.9, 8)] {
        let settings = Settings { draft: geometric(acceptance), ..settings() };
        let report = run(&[arrival(0, 32, 30_000)], &settings, draft_tokens);
        let k = f64::from(draft_tokens);
        let tokens = (1.0 - f64::powf(acceptance, k + 1.0)) / (1.0 - acceptance);
        let step = TARGET_US + (k + 1.0) * TARGET_ROW_US + k * DRAFT_US + HOST_US;
        assert_within(report.tpot_ms.mean.unwrap(), step / tokens / 1e3, 0.02);
        assert_within(report.mean_accepted_tokens, tokens - 1.0, 0.02);
    }
}

#[test]
fn an_idle_engine_jumps_to_the_next_arrival() {
    let report = run(&[arrival(0, 16, 4), arrival(3_600_000, 16, 4)], &settings(), 0);
    let one = 4.0 * (TARGET_US + TARGET_ROW_US + HOST_US) / 1e6;
    assert_within(report.simulated_seconds, 3600.0 + one, 1e-6);
    assert_eq!((report.steps, report.finished), (8, 2));
    assert!(report.ttft_ms.p99.unwrap() < 6.0, "waiting for work counts as no request's latency");
}

#[test]
fn requests_that_do_not_fit_are_refused_and_miss_their_objectives() {
    let mut settings = Settings { queue_requests_max: 2, context_tokens_max: 1000, ..settings() };
    settings.limits.running_requests_max = 1;
    let workload =
        [arrival(0, 990, 11), arrival(1, 16, 50), arrival(2, 16, 4), arrival(3, 16, 4), arrival(4, 16, 4)];
    let report = run(&workload, &settings, 0);
    assert_eq!((report.requests, report.refused, report.finished), (5, 2, 3));
    assert!(report.attainment <= 0.6);
}

#[test]
fn each_class_is_judged_by_its_own_objectives_and_the_first_is_served_first() {
    let class = |name: &str, slo| SimulatedClass::new(name, 0.5, slo);
    let strict = Slo { ttft: Some(Micros::from_millis(300)), tpot: None };
    let hopeless = Slo { ttft: Some(Micros(1)), tpot: None };
    let mut settings = settings();
    settings.limits.running_requests_max = 4;
    let workload = poisson(8.0, 10.0);
    let run_with = |first: Slo, second: Slo| {
        let classes = vec![class("first", first), class("second", second)];
        run(&workload, &Settings { classes, ..settings.clone() }, 0)
    };

    let report = run_with(strict, Slo::default());
    let [first, second] = &report.classes[..] else { panic!("two classes: {:?}", report.classes) };
    assert_eq!((first.name.as_str(), second.name.as_str()), ("first", "second"));
    assert_eq!(first.requests + second.requests, report.requests);
    assert_eq!((second.attainment, second.finished), (1.0, second.requests));
    assert!(3.0 * first.ttft_ms.mean.unwrap() < second.ttft_ms.mean.unwrap(), "{report:?}");
    assert_within(first.goodput_rps + second.goodput_rps, report.goodput_rps, 1e-9);
    let attained = first.attainment * first.requests as f64 + second.requests as f64;
    assert_within(report.attainment * report.requests as f64, attained, 1e-9);

    let report = run_with(Slo::default(), hopeless);
    assert_eq!((report.classes[0].attainment, report.classes[1].attainment), (1.0, 0.0));
}

#[test]
fn late_requests_are_served_or_refused_as_told_and_a_refused_one_is_a_miss() {
    let slo = Slo { ttft: Some(Micros::from_millis(400)), tpot: None };
    let mut settings =
        Settings { order: ServiceOrder::Slo, classes: SimulatedClass::of_all(slo), ..settings() };
    settings.limits.running_requests_max = 2;
    let workload: Vec<Arrival> = (0..30).map(|n| arrival(n, 200, 30)).collect();
    let run_with = |late| run(&workload, &Settings { late, ..settings.clone() }, 0);
    for late in [LateAction::Queue, LateAction::Demote] {
        let report = run_with(late);
        assert_eq!((report.finished, report.refused, report.refused_late), (30, 0, 0), "{late:?}");
    }
    let report = run_with(LateAction::Reject);
    assert!(report.refused_late > 0 && report.finished > 0, "{report:?}");
    assert_eq!(report.refused, report.refused_late);
    assert_eq!(report.finished + report.refused, report.requests);
    let class = &report.classes[0];
    assert_eq!((class.refused, class.refused_late), (report.refused, report.refused_late));
    // pairs take 152 ms, so the third one is the last in time
    assert_eq!(report.finished, 6);
    assert_within(report.attainment, 6.0 / 30.0, 1e-9);
    assert_within(report.goodput_rps * report.simulated_seconds, 6.0, 1e-9);
}

#[test]
fn in_the_order_of_arrival_no_waiting_request_is_refused() {
    let slo = Slo { ttft: Some(Micros::from_millis(300)), tpot: None };
    let classes = SimulatedClass::of_all(slo);
    let mut settings = Settings { late: LateAction::Reject, classes, ..settings() };
    settings.limits.running_requests_max = 2;
    let workload: Vec<Arrival> = (0..30).map(|n| arrival(n, 200, 30)).collect();
    assert_eq!(run(&workload, &settings, 0).finished, 30);
}

#[test]
fn a_class_that_is_worth_more_attains_more_of_its_objectives() {
    let class = |name: &str, tpot_us, weight| {
        let slo = Slo { ttft: None, tpot: Some(Micros(tpot_us)) };
        SimulatedClass { weight, ..SimulatedClass::new(name, 0.5, slo) }
    };
    let workload = poisson(40.0, 20.0);
    let strict = |weight| {
        // fourteen at once keep the strict pace, but more at once give more tokens per second
        let classes = vec![class("strict", 4500, weight), class("patient", 50_000, 1.0)];
        let cost = rows_only(1000.0, 200.0);
        let settings = Settings { order: ServiceOrder::Slo, cost, classes, ..settings() };
        run(&workload, &settings, 0).classes[0].attainment
    };
    let (light, heavy) = (strict(0.0), strict(1000.0));
    assert!(light + 0.2 < heavy, "{light} and {heavy}");
}

#[test]
fn a_slower_machine_is_slower_by_its_factor() {
    let workload = [arrival(0, 32, 200)];
    let exact = run(&workload, &settings(), 0);
    let slow = run(&workload, &Settings { error: TimeError::all(1.4), ..settings() }, 0);
    assert_within(slow.tpot_ms.mean.unwrap(), 1.4 * exact.tpot_ms.mean.unwrap(), 0.001);
}

/// Plain decoding that checks what it is shown.
#[derive(Debug, Default)]
struct Watchful {
    last: Micros,
    steps: u32,
}

impl Policy for Watchful {
    fn name(&self) -> String {
        "watchful".to_owned()
    }

    fn plan(&self, view: &StepView, scratch: &mut Scratch) -> StepDecision {
        assert!(view.now >= self.last, "time went back");
        Fixed::NONE.plan(view, scratch)
    }
}

impl Learner for Watchful {
    fn observe(&mut self, report: &crate::protocol::StepReport) {
        assert!(report.step_time >= report.target_time + report.draft_time);
        self.last = report.view.now + report.target_time;
        self.steps += 1;
    }

    fn predict(&self, report: &crate::protocol::StepReport) -> Option<Micros> {
        Some(Micros(report.step_time.0 / 2))
    }

    fn snapshot(&self) -> std::sync::Arc<dyn Policy> {
        std::sync::Arc::new(Watchful { ..*self })
    }

    fn calibration_error(&self) -> Option<f64> {
        Some(0.25)
    }

    fn state(&self) -> serde_json::Value {
        serde_json::json!({ "steps": self.steps })
    }
}

#[test]
fn policies_see_time_go_forward_and_learn_from_every_step() {
    let report = simulate(&poisson(10.0, 4.0), &settings(), Box::<Watchful>::default()).unwrap();
    assert_eq!(report.policy_state["steps"], report.steps);
    assert_within(report.step_time_error_p99.unwrap(), 0.5, 0.001);
    assert_eq!(report.calibration_error.calibrated, Some(0.25));
    assert_eq!(run(&poisson(10.0, 1.0), &settings(), 0).step_time_error_p50, None);
}

#[test]
fn a_report_says_how_well_confidences_were_calibrated() {
    let undrafted = run(&poisson(10.0, 1.0), &settings(), 0).calibration_error;
    assert_eq!((undrafted.draft, undrafted.calibrated), (None, None));
    // the settings' draft is as good as it says
    let drafted = run(&poisson(10.0, 8.0), &settings(), 3).calibration_error;
    let error = drafted.draft.expect("thousands of drafts");
    assert!(error > 0.0 && error < 0.05, "{error}");
    assert_eq!(drafted.calibrated, None, "a fixed length calibrates nothing");
}

#[test]
fn a_sweep_reports_in_the_order_of_its_jobs_on_any_number_of_threads() {
    let (workload, settings, clock) = (poisson(5.0, 4.0), settings(), MonotonicClock::start());
    let contender = |draft_tokens| Contender {
        order: ServiceOrder::Fifo,
        learner: Box::new(move || -> Box<dyn Learner> { Box::new(Static::new(Fixed { draft_tokens })) }),
    };
    let (plain, two) = (contender(0), contender(2));
    let jobs = [
        Job { rate: 2.0, load: 1.0, contender: &plain },
        Job { rate: 0.5, load: 0.25, contender: &plain },
        Job { rate: 2.0, load: 1.0, contender: &two },
    ];
    let timeless = |threads| -> Vec<Report> {
        let reports = sweep(&workload, &settings, &jobs, threads, &clock as &dyn Clock).unwrap();
        assert!(reports.iter().all(|report| report.wall_seconds.is_some()));
        reports.into_iter().map(|report| Report { wall_seconds: None, ..report }).collect()
    };
    let reports = timeless(3);
    assert_eq!(reports, timeless(1));
    let names: Vec<(&str, f64)> = reports.iter().map(|one| (one.policy.as_str(), one.load)).collect();
    assert_eq!(names, [("none", 1.0), ("none", 0.25), ("fixed:2", 1.0)]);
    assert_within(reports[0].offered_rps, 4.0 * reports[1].offered_rps, 0.001);
}

#[test]
fn saturation_is_where_plain_decoding_begins_to_miss() {
    // a pass over more than 14 rows takes too long
    let slo = Slo { ttft: None, tpot: Some(Micros(5200)) };
    let (workload, settings) =
        (poisson(5.0, 10.0), Settings { classes: SimulatedClass::of_all(slo), ..settings() });
    let load = saturation_load(&workload, &settings).unwrap().expect("there is a limit");
    let attainment = |load: f64| run(&at_load(&workload, load), &settings, 0).attainment;
    assert!(attainment(load) >= SATURATED_ATTAINMENT);
    assert!(attainment(load * 1.1) < SATURATED_ATTAINMENT);
    let hopeless = SimulatedClass::of_all(Slo { tpot: Some(Micros(1)), ..slo });
    assert_eq!(saturation_load(&workload, &Settings { classes: hopeless, ..settings }).unwrap(), None);
}

#[test]
fn every_profile_that_is_shipped_can_be_read() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles");
    let mut profiles = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let text = std::fs::read_to_string(&path).unwrap();
            let profile = crate::timing::profile::Profile::from_toml(&text);
            profile.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            profiles += 1;
        }
    }
    assert!(profiles > 0);
}

#[test]
fn a_recording_is_played_back_to_the_length_that_it_says() {
    let recording =
        Recording::parse("{\"probabilities\":[0.9,0.9,0.9,0.2],\"accepted\":[true,true,true,false]}");
    let draft = DraftQuality { recording: Some(Arc::new(recording.unwrap())), ..DraftQuality::typical() };
    let settings = Settings { draft, ..settings() };
    let workload = [arrival(0, 100, 41)];
    let report = simulate(&workload, &settings, Box::new(Static::new(Fixed { draft_tokens: 3 }))).unwrap();
    // three drafts are right, the fourth place is the target's own: four tokens a step
    assert_eq!((report.mean_accepted_tokens, report.steps), (3.0, 11));
    let settings = Settings { draft: DraftQuality { recording: None, ..settings.draft }, ..settings };
    assert!(
        simulate(&workload, &settings, Box::new(Static::new(Fixed { draft_tokens: 3 }))).unwrap().steps > 11
    );
}

/// A run of `fixed:DRAFTS` with a draft head whose recording this is; `block_tokens` is 0 for one of
/// chains.
fn with_recorded_head(block_tokens: u32, draft_tokens: u32) -> Report {
    let recording = Recording::parse(
        "{\"probabilities\":[0.9,0.9,0.9,0.2],\"accepted\":[true,true,true,false],\
         \"later_probabilities\":[[0.5,0.4],[0.5,0.4],[0.5,0.4],[0.5,0.4]],\"later_accepted\":[1,0,2,0]}",
    );
    let draft = DraftQuality { recording: Some(Arc::new(recording.unwrap())), ..DraftQuality::typical() };
    let mut settings = Settings { draft, ..settings() };
    settings.limits.drafter = Some(DrafterNeeds { block_tokens, ..DrafterNeeds::hidden_states(vec![0]) });
    run(&[arrival(0, 100, 49)], &settings, draft_tokens)
}

#[test]
fn a_recorded_head_is_accepted_by_the_chain_of_the_place_where_each_round_starts() {
    for block_tokens in [0, 3] {
        // from place 0 on two drafts are right and the next round starts at place 3, where none is
        let report = with_recorded_head(block_tokens, 3);
        assert_eq!((report.mean_accepted_tokens, report.steps), (1.0, 25), "{block_tokens}");
        let longer = with_recorded_head(block_tokens, 8);
        let figures = |report: &Report| (report.timeline.clone(), report.tpot_ms);
        assert_eq!(figures(&longer), figures(&report), "no more was recorded, and no call is made for more");
    }
    // at places 0, 2, 0, 2, …, where one draft is right, although more would be
    assert_eq!(with_recorded_head(0, 1).mean_accepted_tokens, 1.0);
}
