//! Planning time for 256 requests × 8 positions (docs/policy.md gives figures).
//!
//! `cargo bench --bench planner`

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use specserve::policy::planner::{Buffers, Curve, Problem, Row, solve};
use specserve::random::SplitMix64;

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
    let rows = vec![Row { weight: 1.0, query_us: 0.0, positions: POSITIONS as u32 }; REQUESTS];
    // Contexts of a few hundred tokens, each token at the price of an H100 with an 8B model.
    let context_us = |index: usize| 0.001 * (300 + 7 * (index % 90)) as f32;
    let with_context: Vec<Row> =
        (0..REQUESTS).map(|index| Row { query_us: context_us(index), ..rows[index] }).collect();
    let problem = |rows, calls_made| Problem {
        rows,
        survival: &survival,
        target: Curve { table: &target, factor: 1.0, row_us: 0.0 },
        draft: Curve { table: &draft, factor: 1.0, row_us: 0.05 },
        calls_made,
        priced_us: 1200.0,
        priced_tokens: 0.0,
        rows_max: 1024,
    };
    let cases = [
        ("select_256x8", problem(&rows[..], POSITIONS as u32)),
        ("plan_256x8", problem(&rows[..], 0)),
        ("extend_256x8", problem(&rows[..], 2)),
        ("plan_256x8_context", problem(&with_context[..], 0)),
    ];
    for (name, problem) in cases {
        let (mut buffers, mut lengths) = (Buffers::default(), Vec::new());
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| black_box(solve(black_box(&problem), &mut buffers, &mut lengths)));
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(std::time::Duration::from_millis(300))
        .measurement_time(std::time::Duration::from_secs(1));
    targets = planner
}
criterion_main!(benches);
