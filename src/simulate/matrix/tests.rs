use super::*;
use crate::pacing::ServiceOrder;
use crate::policy::{Fixed, Learner, Policy, Scratch, Static};
use crate::protocol::{Micros, Slo, StepDecision, StepView};
use crate::replay::Arrival;
use crate::simulate::saturation_load;
use crate::simulate::tests::settings;

fn fixed(draft_tokens: u32) -> Contender {
    Contender {
        order: ServiceOrder::Fifo,
        learner: Box::new(move || -> Box<dyn Learner> { Box::new(Static::new(Fixed { draft_tokens })) }),
    }
}

fn machine() -> Machine {
    Machine {
        name: "rows only".to_owned(),
        settings: settings(),
        policy: fixed(2),
        rivals: vec![fixed(0), fixed(4)],
    }
}

fn standing(policy: &str, goodput_rps: f64) -> Standing {
    Standing {
        policy: policy.to_owned(),
        goodput_rps,
        attainment: 0.9,
        ttft_p50_ms: Some(100.0),
        tpot_mean_ms: None,
        tokens_per_second: 0.0,
    }
}

fn played(goodput_rps: f64, rivals: &[f64]) -> Played {
    Played {
        cell: draw(1, 0, 1),
        tpot_ms: None,
        offered_rps: 1.0,
        policy: standing("ours", goodput_rps),
        rivals: rivals.iter().map(|&rps| standing(&format!("rival {rps}"), rps)).collect(),
    }
}

#[test]
fn a_cell_is_a_function_of_seed_and_index() {
    assert_eq!(draw(3, 7, 2), draw(3, 7, 2));
    assert_eq!(workload(&draw(3, 7, 2), 20), workload(&draw(3, 7, 2), 20));
    let differs = |other: Cell| {
        let this = draw(3, 7, 2);
        this.seed != other.seed && this.load != other.load && this.prompt_tokens != other.prompt_tokens
    };
    assert!(differs(draw(4, 7, 2)) && differs(draw(3, 8, 2)));
}

#[test]
fn cells_cover_the_range_of_each_quantity_and_stay_within() {
    let cells: Vec<Cell> = (0..2000).map(|index| draw(1, index, 3)).collect();
    let spans = |of: fn(&Cell) -> f64, low: f64, high: f64| {
        let least = cells.iter().map(of).fold(f64::INFINITY, f64::min);
        let most = cells.iter().map(of).fold(0.0, f64::max);
        let margin = 0.05 * (high - low);
        assert!((low..=low + margin).contains(&least), "{least} from {low}");
        assert!((high - margin..=high).contains(&most), "{most} to {high}");
    };
    spans(|cell| f64::from(cell.prompt_tokens), 40.0, 2500.0);
    spans(|cell| f64::from(cell.output_tokens), 25.0, 400.0);
    spans(|cell| cell.length_log_sd, 0.3, 1.0);
    spans(|cell| cell.load, 0.5, 1.6);
    spans(|cell| cell.acceptance, 0.4, 0.9);
    let share = |of: fn(&Cell) -> bool| cells.iter().filter(|cell| of(cell)).count() as f64 / 2000.0;
    for (found, expected) in [
        (share(|cell| cell.machine == 2), 1.0 / 3.0),
        (share(|cell| cell.arrivals == ArrivalProcess::OnOff), 0.25),
        (share(|cell| cell.tpot_factor.is_none()), 0.1),
        (share(|cell| cell.ttft_ms.is_none()), 1.0 / 6.0),
        (share(|cell| cell.running_requests_max == 256), 0.25),
        (share(|cell| cell.confidence == DraftConfidence::Calibrated), 0.5),
        (share(|cell| cell.load < 0.9), 0.3),
        (share(|cell| cell.time_error == 1.0), 0.5),
        (share(|cell| cell.batch_class), 0.25),
    ] {
        assert!((found - expected).abs() < 0.04, "{found} instead of {expected}");
    }
}

/// Coefficient of variation of the gaps, which the rate does not change.
fn gap_spread(arrivals: &[Arrival]) -> f64 {
    let gaps: Vec<f64> = arrivals.windows(2).map(|pair| (pair[1].at - pair[0].at).as_secs_f64()).collect();
    let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
    (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt() / mean
}

#[test]
fn requests_come_at_about_twenty_a_second_as_bursty_as_their_process() {
    for (arrivals, spread) in
        [(ArrivalProcess::Poisson, 1.0), (ArrivalProcess::Gamma, 2.236), (ArrivalProcess::OnOff, 1.458)]
    {
        let requests = workload(&Cell { arrivals, ..draw(1, 0, 1) }, 20_000);
        let rate = 20_000.0 / requests.last().unwrap().at.as_secs_f64();
        assert!((17.0..23.0).contains(&rate), "{arrivals:?}: {rate} a second");
        let found = gap_spread(&requests);
        assert!((found / spread - 1.0).abs() < 0.1, "{arrivals:?}: {found} instead of {spread}");
    }
}

#[test]
fn lengths_have_the_median_and_the_spread_of_their_cell() {
    let cell = Cell { prompt_tokens: 500, output_tokens: 100, length_log_sd: 0.5, ..draw(1, 0, 1) };
    let requests = workload(&cell, 2001);
    let mut prompts: Vec<u32> = requests.iter().map(|one| one.prompt_tokens).collect();
    let mut outputs: Vec<u32> = requests.iter().map(|one| one.output_tokens).collect();
    prompts.sort_unstable();
    outputs.sort_unstable();
    assert!((480..520).contains(&prompts[1000]) && (96..104).contains(&outputs[1000]));
    // a standard deviation above the median
    let above = f64::from(prompts[1683]) / 500.0;
    assert!((above / f64::exp(0.5) - 1.0).abs() < 0.05, "{above}");
}

#[test]
fn a_matrix_repeats_on_any_number_of_threads_and_accounts_for_every_cell() {
    let machines = [machine(), machine()];
    let matrix = Matrix { seed: 2, cells: 5, requests: 25, machines: &machines };
    let outcomes = matrix.play(3).unwrap();
    assert_eq!(outcomes, matrix.play(1).unwrap());
    let mut indices: Vec<u64> = outcomes.skipped.iter().map(|cell| cell.index).collect();
    indices.extend(outcomes.played.iter().map(|played| played.cell.index));
    indices.sort_unstable();
    assert_eq!(indices, (0..5).collect::<Vec<_>>());
    assert!(!outcomes.played.is_empty() && !outcomes.skipped.is_empty(), "{outcomes:?}");
    for played in &outcomes.played {
        let names = played.rivals.iter().map(|rival| rival.policy.as_str());
        assert_eq!((played.policy.policy.as_str(), names.collect()), ("fixed:2", vec!["none", "fixed:4"]));
        assert!(played.policy.tokens_per_second > 0.0);
    }
}

#[test]
fn a_cell_that_no_load_saturates_is_skipped() {
    let cell = Cell { tpot_factor: None, ttft_ms: None, ..draw(1, 0, 1) };
    assert_eq!(contest::play(&cell, &machine(), 10).unwrap(), None);
}

/// Plans nothing.
#[derive(Debug)]
struct Broken;

impl Policy for Broken {
    fn name(&self) -> String {
        "broken".to_owned()
    }

    fn plan(&self, _: &StepView, _: &mut Scratch) -> StepDecision {
        panic!("broken")
    }
}

#[test]
fn a_run_that_fails_names_its_cell() {
    let broken = || -> Box<dyn Learner> { Box::new(Static::new(Broken)) };
    let broken = Contender { order: ServiceOrder::Fifo, learner: Box::new(broken) };
    let machines = [Machine { policy: broken, ..machine() }];
    let matrix = Matrix { seed: 2, cells: 5, requests: 25, machines: &machines };
    let error = matrix.play(2).unwrap_err().to_string();
    let first = (0..5).find(|&index| matrix.cell(index).is_err()).unwrap();
    assert!(error.starts_with(&format!("cell {first}: ")) && error.contains("broken"), "{error}");
}

#[test]
fn a_second_class_halves_the_requests_that_have_objectives() {
    let slo = Slo { ttft: Some(Micros(1)), tpot: None };
    let attainment = |batch_class| {
        let cell = Cell { batch_class, ..draw(1, 0, 1) };
        let settings = cell.settings(&settings(), slo);
        fixed(0).simulate(&workload(&cell, 40), &settings).unwrap().attainment
    };
    assert_eq!(attainment(false), 0.0);
    assert!((0.3..0.7).contains(&attainment(true)));
}

#[test]
fn the_objective_is_a_multiple_of_a_lone_plain_step() {
    let cell = Cell { tpot_factor: Some(2.0), ttft_ms: Some(50), load: 1.0, ..draw(1, 0, 1) };
    let played = contest::play(&cell, &machine(), 25).unwrap().expect("it saturates");
    // 5000 µs for the pass, 10 for its row and 50 of the host; see the machine of the tests
    assert!((played.tpot_ms.unwrap() / 10.12 - 1.0).abs() < 0.001, "{:?}", played.tpot_ms);
}

#[test]
fn the_load_is_a_multiple_of_the_rate_at_which_plain_decoding_saturates() {
    let (machine, cell) = (machine(), Cell { tpot_factor: Some(2.0), ttft_ms: Some(50), ..draw(1, 0, 1) });
    let offered = |load| {
        let cell = Cell { load, ..cell.clone() };
        contest::play(&cell, &machine, 25).unwrap().expect("it saturates").offered_rps
    };
    let slo = Slo { ttft: Some(Micros::from_millis(50)), tpot: Some(Micros(10_118)) };
    let (requests, settings) = (workload(&cell, 25), cell.settings(&machine.settings, slo));
    let saturation = saturation_load(&requests, &settings).unwrap().unwrap();
    let own = 25.0 / requests.last().unwrap().at.as_secs_f64();
    for load in [0.5, 1.0, 1.5] {
        assert!((offered(load) / (own * saturation * load) - 1.0).abs() < 0.02, "{load}");
    }
}

#[test]
fn ratios_are_to_the_best_rival_and_to_each() {
    let one = played(9.0, &[5.0, 10.0, 8.0]);
    assert_eq!(one.best_rival().policy, "rival 10");
    assert!((one.ratio() - 0.9).abs() < 1e-9 && (one.ratio_to(0) - 1.8).abs() < 1e-9);
    assert_eq!(played(0.0, &[0.0]).ratio(), 1.0);
}

#[test]
fn first_tokens_are_late_for_nothing_unless_attainment_is_gained() {
    let late = |ttft_ms: f64, attainment: f64| {
        let mut one = played(1.0, &[1.0]);
        one.policy = Standing { ttft_p50_ms: Some(ttft_ms), attainment, ..one.policy };
        one.is_late_for_nothing()
    };
    assert!(late(221.0, 0.9) && late(221.0, 0.905));
    assert!(!late(219.0, 0.9) && !late(221.0, 0.906));
}

#[test]
fn a_summary_counts_what_is_poor_and_names_the_lowest_ratio_to_each_rival() {
    let cells = [played(1.0, &[1.0, 0.5]), played(0.97, &[1.0, 2.0]), played(4.0, &[1.0, 1.0])];
    let summary = summarize(&cells, 2).unwrap();
    assert_eq!((summary.cells, summary.skipped, summary.poor), (3, 2, 1));
    assert!((summary.ratio_min - 0.485).abs() < 1e-9 && (summary.ratio_p50 - 1.0).abs() < 1e-9);
    assert!((summary.ratio_geometric_mean - (0.485f64 * 4.0).cbrt()).abs() < 1e-6);
    let minima: Vec<f64> = summary.rivals.iter().map(|rival| rival.ratio_min).collect();
    assert!((minima[0] - 0.97).abs() < 1e-9 && (minima[1] - 0.485).abs() < 1e-9);
    assert_eq!(summarize(&[], 2), None);
}
