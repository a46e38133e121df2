//! Planning time for 256 requests × 8 positions and for 256 trees of 16 drafts, and what the order of
//! service takes for 256 running requests and a queue (docs/policy.md gives figures).
//!
//! `cargo bench --bench planner`

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use specserve::pacing::{Demand, Pacer, Prompt, Ranking};
use specserve::policy::planner::{Buffers, Curve, Problem, Row, solve};
use specserve::policy::specserve::{Shape, SpecServe, SpecServeOptions};
use specserve::policy::{Policy, Scratch};
use specserve::protocol::{
    DecodeView, DraftPlace, DraftShape, DraftedRow, Micros, OpenDraft, PrefillView, Proposal, RequestId,
    RequestSummary, RequestTimes, Step, StepDecision, StepReport, StepView,
};
use specserve::random::SplitMix64;
use specserve::timing::cost_model::{Between, CostModel, LatencyModel, LatencyTerms};
use specserve::timing::profile::Profile;

const REQUESTS: usize = 256;
const POSITIONS: usize = 8;

/// A padded staircase like a GPU's: powers of two up to 32, then multiples of 32.
fn staircase() -> Vec<f64> {
    let padded = |rows: usize| if rows <= 32 { rows.next_power_of_two() } else { rows.div_ceil(32) * 32 };
    (0..=1024).map(|rows| 7000.0 + 6.0 * padded(rows) as f64).collect()
}

/// Survival of requests whose confidence differs by request and position.
fn survival() -> Vec<f32> {
    let mut random = SplitMix64::new(1);
    let mut alive: Vec<f32> = vec![1.0; REQUESTS];
    let mut table = Vec::with_capacity(REQUESTS * POSITIONS);
    for _ in 0..POSITIONS {
        alive.iter_mut().for_each(|alive| *alive *= 1.0 - 0.6 * random.uniform() * random.uniform());
        table.extend_from_slice(&alive);
    }
    table
}

fn planner(criterion: &mut Criterion) {
    let (target, survival) = (staircase(), survival());
    let draft: Vec<f64> = (0..=256).map(|rows| 400.0 + 0.6 * f64::from(rows)).collect();
    let rows = vec![Row { weight: 1.0, query_us: 0.0, positions: POSITIONS as u32, made: 0 }; REQUESTS];
    // Contexts of a few hundred tokens, each token at the price of an H100 with an 8B model.
    let context_us = |index: usize| 0.001 * (300 + 7 * (index % 90)) as f32;
    let with_context: Vec<Row> =
        (0..REQUESTS).map(|index| Row { query_us: context_us(index), ..rows[index] }).collect();
    let problem = |rows| Problem {
        rows,
        requests: REQUESTS,
        survival: &survival,
        target: Curve { table: &target, factor: 1.0, row_us: 0.0 },
        draft: Curve { table: &draft, factor: 1.0, row_us: 0.05 },
        priced_us: 1200.0,
        priced_tokens: 0.0,
        rows_max: 1024,
    };
    let made = |made| -> Vec<Row> { rows.iter().map(|row| Row { made, ..*row }).collect() };
    let (all, two) = (made(POSITIONS as u32), made(2));
    let cases = [
        ("select_256x8", problem(&all[..])),
        ("plan_256x8", problem(&rows[..])),
        ("extend_256x8", problem(&two[..])),
        ("plan_256x8_context", problem(&with_context[..])),
    ];
    for (name, problem) in cases {
        let (mut buffers, mut lengths) = (Buffers::default(), Vec::new());
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| black_box(solve(black_box(&problem), &mut buffers, &mut lengths)));
        });
    }
}

/// A tree of 16 drafts: eight answers of the drafter, each a choice and a runner-up, one at each of the
/// first two depths and two at each of the next three.
fn tree(decoding: u32, random: &mut SplitMix64) -> DraftedRow {
    let followed = [0, 1, 3, 4, 5, 7, 9, 11];
    let mut row = DraftedRow { decoding, ..DraftedRow::default() };
    for parent in followed {
        let probability = 1.0 - 0.6 * random.uniform();
        let depth = if parent == 0 { 0 } else { row.places[parent as usize - 1].depth + 1 };
        for rank in 0..2 {
            let margin = 0.5 * probability;
            row.proposals.push(Proposal { probability, margin, finite: true, ..Proposal::default() });
            row.places.push(DraftPlace { parent, depth, rank });
        }
    }
    row
}

fn trees(criterion: &mut Criterion) {
    let profile = Profile::from_toml(include_str!("../profiles/h100-8b-160m.toml")).expect("it parses");
    let cost = profile.cost_model().expect("it is valid");
    let options =
        SpecServeOptions { draft_tokens_max: 16, shape: Shape::Tree, ..SpecServeOptions::default() };
    let policy = SpecServe::new(cost, None, options);
    let decoding: Vec<DecodeView> =
        decoding().into_iter().map(|row| DecodeView { drafts_max: 16, ..row }).collect();
    let view = StepView { decoding, ..StepView::default() };
    let drafts = vec![16; REQUESTS];
    let granted = StepDecision { shape: DraftShape::Tree, drafts, rate: 0.01, ..StepDecision::default() };
    let step = Step { view: &view, granted: &granted };
    let mut random = SplitMix64::new(3);
    let rows: Vec<DraftedRow> = (0..REQUESTS as u32).map(|row| tree(row, &mut random)).collect();
    let open: Vec<OpenDraft> =
        (0..REQUESTS as u32).flat_map(|row| [12, 13, 14, 15].map(|draft| OpenDraft { row, draft })).collect();
    let mut scratch = Scratch::default();
    let (mut keep, mut chosen) = (Vec::new(), Vec::new());
    criterion.bench_function("expand_256x16_tree", |bencher| {
        bencher.iter(|| {
            keep.clear();
            policy.expand(black_box(step), &rows, &open, &mut scratch, &mut keep);
            black_box(keep.len())
        });
    });
    criterion.bench_function("choose_256x16_tree", |bencher| {
        bencher.iter(|| {
            chosen.clear();
            policy.choose(black_box(step), &rows, &mut scratch, &mut chosen);
            black_box(chosen.len())
        });
    });
}

/// A pacer that knows how long outputs are: without that it sets no limit.
fn pacer() -> Pacer {
    let rows: Vec<u32> = (0..=64).map(|index| 1 + 32 * index).collect();
    let times: Vec<f64> = rows.iter().map(|&rows| 7000.0 + 15.0 * f64::from(rows)).collect();
    let terms = LatencyTerms::staircase(Between::Interpolate, &rows, &times);
    let target = LatencyModel::new(terms).expect("rises with the rows");
    let mut pacer = Pacer::new(CostModel { target, draft: None, host_us: 60.0 });
    let times = RequestTimes { last_token: Micros(1_500_000), ..RequestTimes::default() };
    let summary =
        RequestSummary { prompt_tokens: 348, output_tokens: 132, times, ..RequestSummary::default() };
    for arrival in 0..64 {
        pacer.observe_arrival(Micros(arrival * 14_000));
        pacer.observe(&StepReport { finished: vec![summary.clone()], ..StepReport::default() });
    }
    pacer
}

/// Requests in the middle of their outputs, some of them behind their objective.
fn decoding() -> Vec<DecodeView> {
    let request = |index: u64| DecodeView {
        request: RequestId(index),
        context_tokens: 300 + 7 * (index as u32 % 90),
        output_tokens: 1 + index as u32 % 130,
        since_first_token: Micros(index % 130 * (13_000 + index % 7 * 500)),
        tpot: Some(Micros(15_000)),
        weight: 1.0,
        draft_lag_tokens: 1,
        drafts_max: 8,
        temperature: 0.0,
    };
    (0..REQUESTS as u64).map(request).collect()
}

/// Prompts that arrived within the last second, some of them late.
fn waiting(count: u64, now: Micros) -> Vec<Prompt> {
    let mut random = SplitMix64::new(2);
    let prompt = |index: u64| {
        let arrival = Micros(now.0 - 1_100_000 + index * 1_100_000 / count);
        Prompt {
            class: 0,
            arrival,
            done_tokens: 0,
            remaining_tokens: 16 + (600.0 * random.uniform()) as u32,
            deadline: Some(Micros(arrival.0 + 1_000_000)),
            resumes: false,
        }
    };
    (0..count).map(prompt).collect()
}

fn order_of_service(criterion: &mut Criterion) {
    let (mut pacer, decoding, now) = (pacer(), decoding(), Micros(10_000_000));
    for count in [16, 64, 256, 1024] {
        let prompts = waiting(count, now);
        let demand = Demand { tpot_us: Some(15_000), ttft: true, weight: 1.0 };
        let mut ranking = Ranking::default();
        criterion.bench_function(&format!("rank_256_running_{count}_waiting"), |bencher| {
            bencher.iter(|| pacer.rank(now, black_box(&prompts), &decoding, 2048, false, &mut ranking));
        });
        criterion.bench_function(&format!("limit_256_running_{count}_waiting"), |bencher| {
            let demands = || std::iter::repeat_n(demand, REQUESTS + prompts.len());
            bencher.iter(|| black_box(pacer.running_limit(demands(), REQUESTS as u32)));
        });
    }
    let prefilling: Vec<PrefillView> = (0..8)
        .map(|index| PrefillView {
            request: RequestId(1000 + index),
            done_tokens: 0,
            remaining_tokens: 348,
            since_arrival: Micros(300_000),
            ttft: Some(Micros(1_000_000)),
        })
        .collect();
    criterion.bench_function("chunk_256_running", |bencher| {
        bencher.iter(|| black_box(pacer.chunk(&decoding, &prefilling, &[200, 2000], 2048)));
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(std::time::Duration::from_millis(300))
        .measurement_time(std::time::Duration::from_secs(1));
    targets = planner, trees, order_of_service
}
criterion_main!(benches);
