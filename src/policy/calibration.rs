//! Maps the draft's probability of a token to the probability that the target accepts it.
//!
//! A reliability table per position group and sampling mode: acceptance rates in bins of draft
//! probability, with exponential decay. Sparse cells are pulled towards the table pooled over all
//! positions, and that towards a warm start; the curve is made monotone (pool adjacent violators)
//! and interpolated between bins. A level, the acceptance of the last hundreds of drafts over what
//! the table promised, follows changes that the table needs thousands for. Acceptance is
//! conditional: a draft is a sample only if all drafts before it were accepted, because the target's
//! choice after a rejection is unobserved (censoring). Selecting by draft probability does not bias the table, which conditions on it.
//! The input is the step report; docs/policy.md, section "Survival".

use serde::{Deserialize, Serialize};

use crate::protocol::{ExaminedDraft, StepReport};
use crate::stats::calibration_error::CalibrationError;
use crate::stats::isotonic::make_monotone;
use crate::timing::reliability::{BINS, CENTRES, EDGES, Reliability, bin};

/// Position groups: first, second, third and fourth, later.
pub const POSITION_GROUPS: usize = 4;
/// Temperature 0, and all others: the draft's probability means different things there.
const KINDS: usize = 2;
/// Half-life of an observation, in verified drafts.
const HALF_LIFE_TOKENS: f64 = 4096.0;
/// Half-life of an observation in the level, in verified drafts.
const LEVEL_HALF_LIFE_TOKENS: f64 = 256.0;
/// Weight of the pooled table as the prior of a position group, in observations.
const POOLED_STRENGTH: f64 = 24.0;
/// Bounds on calibrated acceptance: finite evidence never justifies 0 or 1.
const ACCEPTANCE_RANGE: (f64, f64) = (0.005, 0.995);

/// How draft probability becomes survival.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CalibrationMode {
    /// Through the learned table.
    #[default]
    Learned,
    /// As it is: what AdaSpec does.
    Raw,
}

/// Decayed counts of one bin.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Cell {
    seen: f64,
    accepted: f64,
}

impl Cell {
    fn add(&mut self, accepted: bool) {
        self.seen += 1.0;
        self.accepted += f64::from(u8::from(accepted));
    }

    fn fade(&mut self, factor: f64) {
        self.seen *= factor;
        self.accepted *= factor;
    }

    fn estimate(&self, prior: f64, strength: f64) -> f64 {
        (self.accepted + prior * strength) / (self.seen + strength)
    }
}

/// Acceptance of late over what the table promised: follows a draft model that turns good or bad
/// within hundreds of drafts, where the table's cells need thousands.
#[derive(Clone, Copy, Debug, Default)]
struct Level {
    promised: f64,
    accepted: f64,
    variance: f64,
}

impl Level {
    fn add(&mut self, promised: f64, accepted: bool) {
        self.promised += promised;
        self.accepted += f64::from(u8::from(accepted));
        self.variance += promised * (1.0 - promised);
    }

    fn fade(&mut self, factor: f64) {
        self.promised *= factor;
        self.accepted *= factor;
        self.variance *= factor;
    }

    /// What to multiply the table with: 1 while the difference is within a standard deviation.
    fn factor(&self) -> f32 {
        let difference = self.accepted - self.promised;
        let beyond = (difference.abs() - self.variance.sqrt()).max(0.0).copysign(difference);
        if self.promised > 0.0 { ((self.promised + beyond) / self.promised) as f32 } else { 1.0 }
    }
}

type Table<T> = [[[T; BINS]; POSITION_GROUPS]; KINDS];

/// The learned table and its error tracker.
#[derive(Clone, Debug)]
pub struct Calibration {
    mode: CalibrationMode,
    warm_start: Reliability,
    cells: Table<Cell>,
    curves: Table<f32>,
    levels: [Level; KINDS],
    /// The levels' factors as of the last settling.
    factors: [f32; KINDS],
    /// Of the predictions, each made before its outcome was learned.
    error: CalibrationError,
}

impl Calibration {
    /// Starts from `warm_start`. An invalid one is replaced by the default.
    pub fn new(mode: CalibrationMode, warm_start: Option<Reliability>) -> Calibration {
        let warm_start = warm_start.filter(Reliability::is_valid).unwrap_or_default();
        let mut calibration = Calibration {
            mode,
            warm_start,
            cells: Default::default(),
            curves: Default::default(),
            levels: Default::default(),
            factors: [1.0; KINDS],
            error: CalibrationError::default(),
        };
        (0..KINDS).for_each(|kind| calibration.redraw(kind));
        calibration
    }

    /// Chance that the draft at `position` (from 1) is accepted, given that all before it were.
    pub fn acceptance(&self, probability: f32, position: u32, greedy: bool) -> f32 {
        let probability = if probability.is_finite() { probability.clamp(0.0, 1.0) } else { 0.0 };
        match self.mode {
            CalibrationMode::Raw => probability,
            CalibrationMode::Learned => {
                let (low, high) = ACCEPTANCE_RANGE;
                let level = self.factors[kind(greedy)];
                (self.table(probability, position, greedy) * level).clamp(low as f32, high as f32)
            }
        }
    }

    fn table(&self, probability: f32, position: u32, greedy: bool) -> f32 {
        interpolate(&self.curves[kind(greedy)][group(position)], probability)
    }

    /// Learns from one verified draft whose predecessors were all accepted. Predictions change when
    /// it [settles](Self::settle): all drafts of a step were predicted before any was judged.
    pub fn learn(&mut self, probability: f32, position: u32, greedy: bool, accepted: bool) {
        if !probability.is_finite() {
            return;
        }
        self.error.add(self.acceptance(probability, position, greedy), accepted);
        self.levels[kind(greedy)].add(self.table(probability, position, greedy).into(), accepted);
        self.cells[kind(greedy)][group(position)][bin(probability)].add(accepted);
    }

    /// Learns from a step's uncensored drafts.
    pub fn observe(&mut self, report: &StepReport) {
        let mut tokens = 0;
        for ExaminedDraft { row, position, proposal, is_accepted } in report.examined() {
            self.learn(proposal.probability, position, row.temperature == 0.0, is_accepted);
            tokens += 1;
        }
        if tokens > 0 {
            self.settle(tokens);
        }
    }

    /// Decays the table for `tokens` new observations and recomputes the curves.
    pub fn settle(&mut self, tokens: u32) {
        let factor = (-f64::from(tokens) / HALF_LIFE_TOKENS).exp2();
        self.cells.iter_mut().flatten().flatten().for_each(|cell| cell.fade(factor));
        self.error.fade(tokens);
        let factor = (-f64::from(tokens) / LEVEL_HALF_LIFE_TOKENS).exp2();
        self.levels.iter_mut().for_each(|level| level.fade(factor));
        self.factors = self.levels.map(|level| level.factor());
        for kind in 0..KINDS {
            // A table without observations has nothing to decay.
            if self.cells[kind].iter().flatten().any(|cell| cell.seen > 0.0) {
                self.redraw(kind);
            }
        }
    }

    /// Expected calibration error of the predictions, each of which was made before its outcome was
    /// learned; with the horizon of `CalibrationError`. `None` before the first outcome.
    pub fn expected_error(&self) -> Option<f64> {
        self.error.get()
    }

    /// The curves and their support, for `/v1/engine/state`.
    pub fn state(&self) -> serde_json::Value {
        let seen = |kind: usize| -> f64 { self.cells[kind].iter().flatten().map(|cell| cell.seen).sum() };
        serde_json::json!({
            "mode": self.mode,
            "bin_edges": EDGES.to_vec(),
            "acceptance_greedy": curve_rows(&self.curves[0]),
            "acceptance_sampled": curve_rows(&self.curves[1]),
            "observations_greedy": seen(0),
            "observations_sampled": seen(1),
            "expected_calibration_error": self.expected_error(),
        })
    }

    fn redraw(&mut self, kind: usize) {
        let warm = if kind == 0 { &self.warm_start.greedy } else { &self.warm_start.sampled };
        let groups = &self.cells[kind];
        let mut pooled = [0.0; BINS];
        for (bin, estimate) in pooled.iter_mut().enumerate() {
            let sum = groups.iter().fold(Cell::default(), |sum, group| Cell {
                seen: sum.seen + group[bin].seen,
                accepted: sum.accepted + group[bin].accepted,
            });
            *estimate = sum.estimate(warm[bin], self.warm_start.strength);
        }
        for (curve, cells) in self.curves[kind].iter_mut().zip(groups) {
            let weights = cells.map(|cell| cell.seen + POOLED_STRENGTH);
            let mut estimates = [0.0; BINS];
            for (value, (cell, &prior)) in estimates.iter_mut().zip(cells.iter().zip(&pooled)) {
                *value = cell.estimate(prior, POOLED_STRENGTH);
            }
            make_monotone(&mut estimates, &weights);
            let (low, high) = ACCEPTANCE_RANGE;
            *curve = estimates.map(|value| value.clamp(low, high) as f32);
        }
    }
}

fn curve_rows(curves: &[[f32; BINS]; POSITION_GROUPS]) -> Vec<Vec<f32>> {
    curves.iter().map(|curve| curve.to_vec()).collect()
}

fn kind(greedy: bool) -> usize {
    usize::from(!greedy)
}

fn group(position: u32) -> usize {
    match position {
        0 | 1 => 0,
        2 => 1,
        3 | 4 => 2,
        _ => 3,
    }
}

/// Between the centres of neighbouring bins; flat beyond the outermost.
fn interpolate(curve: &[f32; BINS], probability: f32) -> f32 {
    // a branch-free count: the branches of a binary search would be mispredicted
    let left = CENTRES[1..BINS - 1].iter().map(|&centre| usize::from(centre <= probability)).sum::<usize>();
    let share = (probability - CENTRES[left]) / (CENTRES[left + 1] - CENTRES[left]);
    curve[left] + share.clamp(0.0, 1.0) * (curve[left + 1] - curve[left])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{DecodeView, DraftCounts, DraftedRow, Proposal, StepView};
    use crate::random::SplitMix64;

    /// Uniform numbers in 0..1.
    struct Uniform(SplitMix64);

    impl Uniform {
        fn next(&mut self) -> f32 {
            self.0.uniform()
        }

        /// Draft probabilities crowd near 1, as real ones do.
        fn probability(&mut self) -> f32 {
            1.0 - self.next() * self.next()
        }
    }

    fn teach(table: &mut Calibration, random: &mut Uniform, tokens: u32, truth: impl Fn(f32, u32) -> f32) {
        for step in 0..tokens {
            let (probability, position) = (random.probability(), 1 + step % 6);
            let accepted = random.next() < truth(probability, position);
            table.learn(probability, position, true, accepted);
            table.settle(1);
        }
    }

    /// Mean gap between the bins' predicted and true acceptance over fresh drafts.
    fn true_error(table: &Calibration, random: &mut Uniform, truth: impl Fn(f32, u32) -> f32) -> f64 {
        let mut bins = [(0.0f64, 0.0f64); 10];
        for draw in 0..20_000 {
            let (probability, position) = (random.probability(), 1 + draw % 6);
            let predicted = table.acceptance(probability, position, true);
            let slot = &mut bins[((predicted * 10.0) as usize).min(9)];
            slot.0 += f64::from(predicted);
            slot.1 += f64::from(truth(probability, position));
        }
        bins.iter().map(|(promised, kept)| (promised - kept).abs()).sum::<f64>() / 20_000.0
    }

    #[test]
    fn a_draft_model_that_turns_bad_or_good_is_followed_within_hundreds_of_drafts() {
        let mut calibration = Calibration::new(CalibrationMode::Learned, None);
        let mut uniform = Uniform(SplitMix64::new(9));
        let mut run = |calibration: &mut Calibration, acceptance: f32, drafts: u32| {
            for _ in 0..drafts {
                calibration.learn(0.4 + 0.6 * uniform.next(), 1, true, uniform.next() < acceptance);
                calibration.settle(1);
            }
            calibration.acceptance(0.7, 1, true)
        };
        assert!(run(&mut calibration, 0.8, 10_000) > 0.75);
        assert!(run(&mut calibration, 0.02, 1600) < 0.06);
        assert!(run(&mut calibration, 0.8, 400) > 0.4);
    }

    #[test]
    fn a_level_within_a_standard_deviation_changes_nothing() {
        let mut level = Level::default();
        assert_eq!(level.factor(), 1.0);
        (0..100).for_each(|index| level.add(0.5, index < 46));
        assert_eq!(level.factor(), 1.0, "four below, with a deviation of five");
        (0..10).for_each(|_| level.add(0.5, false));
        assert!(level.factor() < 0.95);
    }

    #[test]
    fn a_known_reliability_is_learned_within_five_thousand_tokens() {
        let truth = |q: f32, position: u32| q * q * (0.95 - 0.03 * position as f32);
        let mut random = Uniform(SplitMix64::new(3));
        let mut table = Calibration::new(CalibrationMode::Learned, None);
        assert!(true_error(&table, &mut random, truth) > 0.1);
        teach(&mut table, &mut random, 5_000, truth);
        let error = true_error(&table, &mut random, truth);
        assert!(error <= 0.02, "{error}");
    }

    #[test]
    fn drift_is_followed_and_the_tracker_tells_of_it() {
        let mut random = Uniform(SplitMix64::new(5));
        let mut table = Calibration::new(CalibrationMode::Learned, None);
        teach(&mut table, &mut random, 8_000, |q, _| q);
        let seen = |table: &Calibration| table.expected_error().expect("thousands of drafts");
        let settled = seen(&table);
        teach(&mut table, &mut random, 1_000, |q, _| 0.5 * q);
        assert!(seen(&table) > settled + 0.01, "{settled} {}", seen(&table));
        teach(&mut table, &mut random, 20_000, |q, _| 0.5 * q);
        let error = true_error(&table, &mut random, |q, _| 0.5 * q);
        assert!(error <= 0.03, "{error}");
    }

    #[test]
    fn the_curve_never_falls_as_the_draft_gets_surer() {
        let mut random = Uniform(SplitMix64::new(8));
        let mut table = Calibration::new(CalibrationMode::Learned, None);
        teach(&mut table, &mut random, 300, |_, _| 0.5);
        for position in 1..=6 {
            let curve: Vec<f32> =
                (0..=1000).map(|q| table.acceptance(q as f32 / 1000.0, position, true)).collect();
            assert!(curve.windows(2).all(|pair| pair[0] <= pair[1] + 1e-6));
        }
    }

    #[test]
    fn raw_is_the_identity_and_bad_numbers_are_worth_nothing() {
        let raw = Calibration::new(CalibrationMode::Raw, None);
        assert_eq!(raw.acceptance(0.37, 3, false), 0.37);
        assert_eq!(raw.acceptance(f32::NAN, 1, true), 0.0);
        assert_eq!(raw.acceptance(7.0, 1, true), 1.0);
        let mut learned = Calibration::new(CalibrationMode::Learned, None);
        let before = learned.state();
        learned.learn(f32::NAN, 1, true, true);
        assert_eq!(learned.state(), before);
    }

    fn report(probabilities: &[f32], verified: u32, accepted: u32) -> StepReport {
        let row = DecodeView::example();
        let proposal = |&probability: &f32| Proposal { probability, finite: true, ..Proposal::default() };
        StepReport {
            view: StepView { decoding: vec![row], ..StepView::default() },
            drafted: vec![DraftedRow::chain(0, probabilities.iter().map(proposal).collect())],
            counts: vec![DraftCounts { verified, accepted }],
            ..StepReport::default()
        }
    }

    #[test]
    fn censored_and_selected_drafts_do_not_bias_the_table() {
        let truth = |q: f32| 0.2 + 0.7 * q;
        let mut random = Uniform(SplitMix64::new(11));
        let mut table = Calibration::new(CalibrationMode::Learned, None);
        for _ in 0..4_000 {
            let drafts: Vec<f32> = (0..6).map(|_| random.probability()).collect();
            let verified = drafts.iter().take_while(|&&q| q > 0.35).count() as u32;
            let accepted =
                drafts[..verified as usize].iter().take_while(|&&q| random.next() < truth(q)).count();
            table.observe(&report(&drafts, verified, accepted as u32));
        }
        for q in [0.45, 0.65, 0.9] {
            for position in [1, 2, 3] {
                let gap = (table.acceptance(q, position, true) - truth(q)).abs();
                assert!(gap < 0.07, "position {position}, q {q}: off by {gap}");
            }
        }
    }

    #[test]
    fn nothing_is_learned_behind_a_rejected_draft() {
        let mut table = Calibration::new(CalibrationMode::Learned, None);
        table.observe(&report(&[0.9, 0.9, 0.9, 0.9], 4, 1));
        let seen: f64 = table.cells.iter().flatten().flatten().map(|cell| cell.seen).sum();
        assert!((seen - 2.0).abs() < 0.01, "{seen}");
    }

    #[test]
    fn predictions_are_judged_as_they_were_before_the_step_that_judged_them() {
        let mut table = Calibration::new(CalibrationMode::Learned, None);
        let promised = f64::from(table.acceptance(0.9, 1, true));
        // hundreds of drafts in one step, all rejected: the level alone would fall far
        let mut many = report(&[0.9], 1, 0);
        many.view.decoding = vec![many.view.decoding[0].clone(); 300];
        many.counts = vec![many.counts[0]; 300];
        let row = many.drafted[0].clone();
        many.drafted = (0..300).map(|decoding| DraftedRow { decoding, ..row.clone() }).collect();
        table.observe(&many);
        let error = table.expected_error().expect("300 drafts");
        assert!((error - promised).abs() < 1e-6, "{error} is not {promised}");
        assert!(table.acceptance(0.9, 1, true) < 0.2, "and then the step was learned from");
    }

    #[test]
    fn what_the_target_never_saw_is_not_judged() {
        let mut table = Calibration::new(CalibrationMode::Raw, None);
        // the third and fourth stand behind a rejected draft
        table.observe(&report(&[0.95, 0.65, 0.1, 0.2], 4, 1));
        let error = table.expected_error().expect("two drafts");
        assert!((error - (0.05 + 0.65) / 2.0).abs() < 1e-6, "{error}");
    }

    #[test]
    fn overconfident_drafts_end_up_better_calibrated_than_they_say() {
        let mut random = Uniform(SplitMix64::new(12));
        let mut table = Calibration::new(CalibrationMode::Learned, None);
        let mut raw = Calibration::new(CalibrationMode::Raw, None);
        for _ in 0..8_000 {
            let probability = 0.2 + 0.8 * random.next();
            let step = report(&[probability], 1, u32::from(random.next() < probability - 0.2));
            table.observe(&step);
            raw.observe(&step);
        }
        let (before, after) = (raw.expected_error().unwrap(), table.expected_error().unwrap());
        assert!((before - 0.2).abs() < 0.015, "{before}");
        assert!(after < 0.02, "{after}");
    }

    #[test]
    fn a_report_whose_lists_do_not_match_is_survived() {
        let mut table = Calibration::new(CalibrationMode::Learned, None);
        let mut odd = report(&[0.9], 1, 1);
        odd.drafted[0].decoding = 9;
        table.observe(&odd);
        assert_eq!(table.expected_error(), None);
    }

    #[test]
    fn an_invalid_warm_start_gives_way_to_the_default() {
        let odd = Reliability { greedy: vec![2.0], sampled: vec![], strength: 1.0 };
        let table = Calibration::new(CalibrationMode::Learned, Some(odd));
        assert_eq!(table.warm_start, Reliability::default());
    }
}
