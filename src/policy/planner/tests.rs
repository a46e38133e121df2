use proptest::prelude::*;

use super::*;

/// An owned problem.
#[derive(Clone, Debug)]
struct Case {
    rows: Vec<Row>,
    survival: Vec<f32>,
    target: Vec<f64>,
    draft: Vec<f64>,
    /// The others are branches.
    requests: usize,
    priced_us: f64,
    rows_max: u32,
}

impl Case {
    fn problem(&self) -> Problem<'_> {
        Problem {
            rows: &self.rows,
            survival: &self.survival,
            target: Curve { table: &self.target, factor: 1.0, row_us: 0.0 },
            draft: Curve { table: &self.draft, factor: 1.0, row_us: 0.0 },
            requests: self.requests,
            priced_us: self.priced_us,
            priced_tokens: 0.0,
            rows_max: self.rows_max,
        }
    }

    fn solve(&self) -> (Plan, Vec<u32>) {
        let mut lengths = Vec::new();
        let plan = solve(&self.problem(), &mut Buffers::default(), &mut lengths);
        (plan, lengths)
    }

    /// Value and priced time of `lengths`, computed from the definition.
    fn cost(&self, lengths: &[u32]) -> Plan {
        let problem = self.problem();
        let drafts: u32 = lengths.iter().sum();
        let mut value_tokens = 0.0;
        let mut priced_us = self.priced_us + problem.target.at(self.requests + drafts as usize);
        for (row, &length) in lengths.iter().enumerate() {
            value_tokens += f64::from(self.rows[row].weight) * self.tokens(row, length);
            priced_us += f64::from(self.rows[row].query_us) * f64::from(length);
        }
        let calls = |(row, &length): (&Row, &u32)| length.saturating_sub(row.made);
        let calls: Vec<u32> = self.rows.iter().zip(lengths).map(calls).collect();
        for call in 0..calls.iter().copied().max().unwrap_or(0) {
            priced_us += problem.draft.at(calls.iter().filter(|&&calls| calls > call).count());
        }
        Plan { value_tokens, priced_us, drafts }
    }

    fn tokens(&self, row: usize, length: u32) -> f64 {
        let own = if row < self.requests { 1.0 } else { 0.0 };
        own + (0..length as usize).map(|depth| f64::from(self.problem().survival(row, depth))).sum::<f64>()
    }

    /// Most drafts that the row limit leaves.
    fn drafts_max(&self) -> usize {
        (self.rows_max as usize).saturating_sub(self.requests)
    }

    /// The best of all length vectors, by enumeration.
    fn brute_force(&self) -> Plan {
        let mut lengths = vec![0u32; self.rows.len()];
        let mut best = self.cost(&lengths);
        while let Some(row) = (0..lengths.len()).find(|&row| lengths[row] < self.rows[row].positions) {
            lengths[..row].fill(0);
            lengths[row] += 1;
            let plan = self.cost(&lengths);
            if plan.drafts as usize <= self.drafts_max() && plan.beats(&best) {
                best = plan;
            }
        }
        best
    }
}

impl Case {
    /// All positions exist.
    fn drafted(mut self) -> Case {
        self.rows.iter_mut().for_each(|row| row.made = row.positions);
        self
    }
}

fn ascending(steps: Vec<f64>, first: f64) -> Vec<f64> {
    let mut total = first;
    std::iter::once(first)
        .chain(steps.into_iter().map(|step| {
            total += step;
            total
        }))
        .collect()
}

/// Up to 4 requests and branches with up to 4 positions, a random staircase.
fn cases(flat_draft: bool, query_us: f32) -> impl Strategy<Value = Case> {
    let step = prop_oneof![2 => Just(0.0), 1 => 0.0..8.0, 1 => 20.0..60.0];
    let row = (
        prop_oneof![Just(1.0f32), 0.2f32..3.0],
        0.0..=query_us,
        0u32..=4,
        prop::collection::vec(0.05f32..1.0, 4),
        // as in chains, or each of its own
        prop_oneof![Just(None), (0u32..=4).prop_map(Some)],
    );
    (
        prop::collection::vec(row, 1..=4),
        prop::collection::vec(step, 20),
        (1.0f64..25.0, 0.0f64..6.0),
        0u32..=4,
        5.0f64..60.0,
        (2u32..=20, 0usize..3),
    )
        .prop_map(move |(rows, steps, (call, slope), made, priced_us, (rows_max, branches))| {
            let count = rows.len();
            let mut survival = vec![0.0; count * 4];
            for (index, row) in rows.iter().enumerate() {
                let mut alive = 1.0;
                for (depth, confidence) in row.3.iter().enumerate() {
                    alive *= confidence;
                    survival[depth * count + index] = alive;
                }
            }
            Case {
                rows: rows
                    .iter()
                    .map(|row| Row {
                        weight: row.0,
                        query_us: row.1,
                        positions: row.2,
                        made: row.4.unwrap_or(made),
                    })
                    .collect(),
                survival,
                target: ascending(steps, 20.0),
                draft: ascending(vec![if flat_draft { 0.0 } else { slope }; 4], call),
                requests: count.saturating_sub(branches).max(1),
                priced_us,
                rows_max,
            }
        })
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * a.abs().max(b.abs())
}

impl Case {
    /// The best of all length vectors by the argument of docs/policy.md: for a cap and a number of
    /// drafts the step's length is known, so the most valuable positions are best.
    fn by_exchange(&self) -> Plan {
        let problem = self.problem();
        let calls_max = self.rows.iter().map(|row| row.positions.saturating_sub(row.made)).max().unwrap_or(0);
        let mut best = self.cost(&vec![0; self.rows.len()]);
        for cap in 0..=calls_max {
            let calls_us = problem.draft.at(1) * f64::from(cap);
            let mut plan = Plan { drafts: 0, ..best };
            plan.value_tokens = problem.weight();
            for value in self.values(cap).into_iter().take(self.drafts_max()) {
                plan.value_tokens += value;
                plan.drafts += 1;
                let queries_us = f64::from(self.rows[0].query_us) * f64::from(plan.drafts);
                let target_us = problem.target.at(self.requests + plan.drafts as usize);
                plan.priced_us = self.priced_us + calls_us + target_us + queries_us;
                if plan.beats(&best) {
                    best = plan;
                }
            }
        }
        best
    }

    /// What the positions that `cap` calls make are worth, the most valuable first.
    fn values(&self, cap: u32) -> Vec<f64> {
        let mut values = Vec::new();
        for (row, terms) in self.rows.iter().enumerate() {
            let depths = 0..terms.positions.min(terms.made + cap) as usize;
            values.extend(depths.map(|depth| f64::from(terms.weight * self.problem().survival(row, depth))));
        }
        values.sort_by(|a, b| b.total_cmp(a));
        values
    }
}

/// Dozens of requests with up to 8 positions, drafts of the same cost, flat draft calls.
fn crowds() -> impl Strategy<Value = Case> {
    let step = prop_oneof![3 => Just(0.0), 1 => 0.0..4.0, 1 => 10.0..40.0];
    let confidence = prop_oneof![0.05f32..1.0, 0.9f32..1.0, Just(0.7f32)];
    let row =
        (prop_oneof![3 => Just(1.0f32), 1 => 0.2f32..3.0], 0u32..=8, prop::collection::vec(confidence, 8));
    let other = (1.0f64..25.0, 0u32..=8, 5.0f64..60.0, 0.0f32..1.5, (30u32..=300, 0usize..20));
    (prop::collection::vec(row, 20..=60), prop::collection::vec(step, 300), other).prop_map(
        |(rows, steps, (call_us, made, priced_us, query_us, (rows_max, branches)))| {
            let count = rows.len();
            let mut survival = vec![0.0; count * 8];
            for (index, row) in rows.iter().enumerate() {
                let mut alive = 1.0;
                for (depth, confidence) in row.2.iter().enumerate() {
                    alive *= confidence;
                    survival[depth * count + index] = alive;
                }
            }
            // the requests have made what they have, the branches nothing
            let requests = count - branches;
            let row = |(index, row): (usize, &(f32, u32, Vec<f32>))| Row {
                weight: row.0,
                query_us,
                positions: row.1,
                made: if index < requests { made } else { 0 },
            };
            Case {
                rows: rows.iter().enumerate().map(row).collect(),
                survival,
                target: ascending(steps, 20.0),
                draft: vec![call_us],
                requests,
                priced_us,
                rows_max,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_plan_of_a_crowd_is_the_optimum_found_without_shortcuts(case in crowds()) {
        let (plan, lengths) = case.solve();
        let best = case.by_exchange();
        prop_assert!(close(plan.rate(), best.rate()), "{:?} {:?} {:?}", plan, lengths, best);
        prop_assert!(close(case.cost(&lengths).rate(), best.rate()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn the_plan_is_the_brute_force_optimum_when_calls_cost_the_same_for_any_rows(case in cases(true, 0.0)) {
        let (plan, lengths) = case.solve();
        let best = case.brute_force();
        prop_assert!(close(plan.rate(), best.rate()), "{:?} {:?} {:?}", plan, lengths, best);
    }

    #[test]
    fn every_plan_keeps_the_row_limit_and_is_costed_truly(case in cases(false, 6.0)) {
        let (plan, lengths) = case.solve();
        prop_assert!(plan.drafts as usize <= case.drafts_max(), "{:?} {:?}", plan, lengths);
        let true_cost = case.cost(&lengths);
        prop_assert_eq!(plan.drafts, true_cost.drafts);
        prop_assert!(close(plan.value_tokens, true_cost.value_tokens));
        // A cap's calls are all charged, so the plan may cost a little less than it says.
        prop_assert!(true_cost.priced_us <= plan.priced_us * (1.0 + 1e-6));
    }

    #[test]
    fn no_plan_with_one_length_for_all_is_better(case in cases(false, 0.0)) {
        let case = Case {
            // as chains: no branches, and all rows have made as much
            rows: case.rows.iter().map(|row| Row { positions: 4, made: case.rows[0].made, ..*row }).collect(),
            requests: case.rows.len(),
            rows_max: 100,
            ..case
        };
        let (plan, _) = case.solve();
        for length in 0..=4 {
            let common = case.cost(&vec![length; case.rows.len()]);
            prop_assert!(plan.rate() >= common.rate() * (1.0 - 1e-6));
        }
    }
}

/// Where the claim of optimality does not reach (draft calls that cost more for more rows,
/// rows whose drafts cost differently), the loss against enumeration stays small.
#[test]
fn the_loss_is_small_where_optimality_is_not_claimed() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut worst, mut total, mut count) = (1.0f64, 0.0, 0u32);
    for _ in 0..1500 {
        let case = cases(false, 6.0).new_tree(&mut runner).unwrap().current();
        let (plan, best) = (case.solve().0, case.brute_force());
        worst = worst.min(plan.rate() / best.rate());
        total += plan.rate() / best.rate();
        count += 1;
    }
    assert!(total / f64::from(count) > 0.997, "mean {}", total / f64::from(count));
    assert!(worst > 0.85, "worst {worst}");
}

fn uniform(requests: usize, positions: u32, confidence: f32, target: Vec<f64>) -> Case {
    let mut survival = Vec::new();
    for depth in 1..=positions {
        survival.extend(vec![confidence.powi(depth as i32); requests]);
    }
    Case {
        rows: vec![Row { weight: 1.0, query_us: 0.0, positions, made: 0 }; requests],
        survival,
        target,
        draft: vec![4.0; requests + 1],
        requests,
        priced_us: 0.0,
        rows_max: 1024,
    }
}

#[test]
fn equal_marginals_on_an_affine_cost_give_the_symmetric_plan() {
    for confidence in [0.3, 0.6, 0.8, 0.95] {
        let case = uniform(16, 8, confidence, (0..=300).map(|n| 100.0 + f64::from(n)).collect());
        let (plan, lengths) = case.solve();
        assert!(lengths.iter().all(|length| *length == lengths[0]), "{lengths:?}");
        let best = (0..=8).map(|k| case.cost(&[k; 16]).rate()).fold(0.0, f64::max);
        assert!(close(plan.rate(), best));
    }
}

#[test]
fn a_free_step_of_the_staircase_is_filled_and_the_next_is_not_begun() {
    // 8 captured rows cost as much as 3; the ninth doubles the time.
    let target: Vec<f64> = (0..=40).map(|n| if n <= 8 { 100.0 } else { 200.0 }).collect();
    let case = uniform(3, 8, 0.5, target).drafted();
    let (plan, lengths) = case.solve();
    assert_eq!(plan.drafts, 5);
    assert!(lengths.iter().all(|&length| length == 1 || length == 2), "{lengths:?}");
}

#[test]
fn a_second_hill_of_the_staircase_is_found() {
    // The first extra row is dear, all others up to the end are free: a search that stops
    // at the first fall never sees the gain.
    let target: Vec<f64> = (0..=40).map(|n| if n <= 4 { 100.0 } else { 160.0 }).collect();
    let case = uniform(4, 8, 0.8, target).drafted();
    let (plan, lengths) = case.solve();
    assert!(case.cost(&[1, 0, 0, 0]).rate() < case.cost(&[0; 4]).rate());
    assert_eq!((plan.drafts, lengths), (32, vec![8; 4]));
}

#[test]
fn no_rows_and_no_positions_are_no_trouble() {
    let empty = uniform(0, 4, 0.5, vec![100.0]);
    assert_eq!(empty.solve().0.drafts, 0);
    let stuck = Case { rows_max: 0, ..uniform(2, 0, 0.5, vec![100.0]) };
    assert_eq!(stuck.solve().1, [0, 0]);
}

#[test]
fn solving_is_deterministic_and_the_scratch_carries_nothing_over() {
    let first = uniform(7, 8, 0.83, (0..=80).map(|n| 100.0 + f64::from(n / 8) * 9.0).collect());
    let second = uniform(3, 2, 0.4, (0..=80).map(f64::from).map(|n| 50.0 + n).collect());
    let mut buffers = Buffers::default();
    let mut lengths = Vec::new();
    let fresh = first.solve();
    solve(&second.problem(), &mut buffers, &mut lengths);
    let plan = solve(&first.problem(), &mut buffers, &mut lengths);
    assert_eq!((plan, lengths), fresh);
}
