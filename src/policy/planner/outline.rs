//! What a step takes and yields at the boundaries of buckets, for every number of draft calls: exact
//! there, and bounds on everything in between, without putting any position in order.

use super::rank::{Ranking, level_of};
use super::{Plan, Problem, Row, Times};
use crate::policy::survival::POSITIONS_MAX;

/// Slack of upper bounds, for sums that were rounded in another order.
const ROUNDING: f64 = 1.0 - 1e-9;

/// Sums over the positions of one bucket that the same draft call makes.
#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    value: f64,
    query_us: f64,
    rows: u32,
}

/// A step with all positions within a cap that come before a bucket.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Point {
    /// Expected tokens, weighted.
    pub(super) value: f64,
    /// Priced time without the target's staircase.
    pub(super) other_us: f64,
    /// Chosen positions.
    pub(super) drafts: u32,
    /// Upper bound on the rate with this bucket's positions in part or whole.
    rate_max: f64,
}

/// A boundary: all positions that `cap` further draft calls can make, before `bucket`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Boundary {
    pub(super) cap: usize,
    pub(super) bucket: usize,
}

/// Points by cap, from no further draft call to the most that were drawn.
///
/// Positions that exist already form level 0, and each call to come one level more, so
/// that the points of a cap are those of the cap below plus one level.
#[derive(Debug, Default)]
pub(super) struct Outline {
    cells: Vec<Cell>,
    points: Vec<Point>,
    buckets: usize,
    /// The cap that was drawn last.
    drawn: usize,
    deepest: usize,
    /// Levels beyond the first.
    calls_max: usize,
    drafts_max: u32,
}

impl Outline {
    /// Draws caps until one that no deeper one can beat and returns the best
    /// point that keeps the row limit.
    pub(super) fn draw(
        &mut self,
        problem: &Problem<'_>,
        times: &Times,
        ranking: &Ranking,
        deepest: usize,
    ) -> (Boundary, Plan) {
        self.buckets = ranking.buckets();
        self.deepest = deepest;
        let calls = |row: &Row| (row.positions.min(deepest as u32)).saturating_sub(row.made) as usize;
        self.calls_max = problem.rows.iter().map(calls).max().unwrap_or(0);
        self.drawn = 0;
        self.drafts_max = problem.rows_max.saturating_sub(problem.requests as u32);
        self.fill_cells(problem, ranking);
        self.points.resize((self.calls_max + 1) * (self.buckets + 1), Point::default());
        let value = problem.priced_tokens + problem.weight();
        let nothing = Point { value, other_us: problem.priced_us, ..Point::default() };
        let mut best = (Boundary { cap: 0, bucket: 0 }, nothing.plan(times));
        self.points[..=self.buckets].fill(nothing);
        let mut call_value = self.add_level(times, 0, &mut best);
        // Dropping a cap's last call loses at most what its positions are worth, and deeper
        // ones are worth no more.
        let call_us = times.call_us(1);
        while self.drawn < self.calls_max && (self.drawn == 0 || call_value > best.1.rate() * call_us) {
            self.drawn += 1;
            call_value = self.add_level(times, self.drawn, &mut best);
        }
        best
    }

    fn fill_cells(&mut self, problem: &Problem<'_>, ranking: &Ranking) {
        // One cell more in each level, for positions that do not exist.
        let width = self.buckets + 1;
        self.cells.clear();
        self.cells.resize((self.calls_max + 1) * width, Cell::default());
        for depth in 0..self.deepest {
            let survival = &problem.survival[depth * problem.rows.len()..];
            let positions = ranking.buckets_at(depth).iter().zip(ranking.terms()).zip(ranking.made());
            for (((&bucket, (weight, query_us)), &made), &survival) in positions.zip(survival) {
                let level = level_of(depth, made).min(self.calls_max);
                let cell = &mut self.cells[level * width + bucket as usize];
                cell.value += f64::from(weight * survival);
                cell.query_us += f64::from(query_us);
                cell.rows += 1;
            }
        }
    }

    /// Computes the points of `cap` from those of the cap below, and takes note of the best.
    /// Cells of its level turn into sums over all cells before them. Returns the value of the
    /// whole level.
    fn add_level(&mut self, times: &Times, cap: usize, best: &mut (Boundary, Plan)) -> f64 {
        let (level, width) = (cap, self.buckets + 1);
        if level > 0 {
            self.points.copy_within((level - 1) * width..level * width, level * width);
        }
        let (points, cells) = (&mut self.points[level * width..], &mut self.cells[level * width..][..width]);
        let mut sum = Cell::default();
        // What the bucket before this point takes at least.
        let mut before_us = f64::INFINITY;
        for (bucket, cell) in cells.iter_mut().enumerate() {
            let point = &mut points[bucket];
            let call_us = if level > 0 { times.call_us(sum.rows) } else { 0.0 };
            point.value += sum.value;
            point.other_us += sum.query_us + call_us;
            point.drafts += sum.rows;
            let plan = point.plan(times);
            if point.drafts <= self.drafts_max && plan.beats(&best.1) {
                *best = (Boundary { cap, bucket }, plan);
            }
            let value = point.value;
            let next_us = point.other_us + times.target_us(point.drafts + 1);
            if let Some(before) = bucket.checked_sub(1) {
                points[before].rate_max = value / before_us;
            }
            before_us = next_us;
            let after = Cell {
                value: sum.value + cell.value,
                query_us: sum.query_us + cell.query_us,
                rows: sum.rows + cell.rows,
            };
            *cell = std::mem::replace(&mut sum, after);
        }
        cells[self.buckets].value
    }

    /// The caps that were drawn.
    pub(super) fn caps(&self) -> std::ops::RangeInclusive<usize> {
        0..=self.drawn
    }

    /// Most drafts by the row limit.
    pub(super) fn drafts_max(&self) -> u32 {
        self.drafts_max
    }

    /// The points of a cap, by bucket.
    pub(super) fn points(&self, cap: usize) -> &[Point] {
        &self.points[cap * (self.buckets + 1)..][..=self.buckets]
    }

    /// Rows of each draft call to come at a boundary.
    pub(super) fn call_rows(&self, at: Boundary) -> [u32; POSITIONS_MAX] {
        let mut rows = [0; POSITIONS_MAX];
        let width = self.buckets + 1;
        let levels = self.cells[width.min(self.cells.len())..].chunks(width);
        for (rows, cells) in rows[..at.cap].iter_mut().zip(levels) {
            *rows = cells[at.bucket].rows;
        }
        rows
    }

    /// Where each bucket begins among all positions within the largest cap that was drawn.
    pub(super) fn starts(&self) -> impl Iterator<Item = u32> + '_ {
        self.points(self.drawn).iter().map(|point| point.drafts)
    }

    /// The first bucket, from a boundary on, in which a number of drafts beyond the bucket's
    /// beginning could give `rate` or more.
    pub(super) fn next_open(
        &self,
        times: &Times,
        ranking: &Ranking,
        from: Boundary,
        rate: f64,
    ) -> Option<usize> {
        let rate = rate * ROUNDING;
        let mut buckets = self.points(from.cap).windows(2).enumerate().skip(from.bucket);
        let found = buckets.find(|(bucket, pair)| {
            let [here, next] = pair else { return false };
            here.rate_max >= rate
                && self.may_reach(times, ranking.best_key(*bucket), ranking.price, rate, here, next)
        });
        found.map(|(bucket, _)| bucket)
    }

    /// Whether any number of drafts after `here` up to `next` could give `rate`.
    fn may_reach(
        &self,
        times: &Times,
        best_key: f64,
        price: f64,
        rate: f64,
        here: &Point,
        next: &Point,
    ) -> bool {
        // Ranks are made at the price of the plain step: below it, context is cheaper.
        let cheaper_us = (price - rate).max(0.0) * (next.other_us - here.other_us);
        let key = best_key.max(0.0);
        // No position adds more than the best key to what a step is worth beyond the rate, and
        // all together add what is known at the next boundary.
        (here.drafts + 1..=next.drafts.min(self.drafts_max)).any(|drafts| {
            let value = here.value + cheaper_us + key * f64::from(drafts - here.drafts);
            value.min(next.value) >= rate * (here.other_us + times.target_us(drafts))
        })
    }
}

impl Point {
    pub(super) fn plan(&self, times: &Times) -> Plan {
        Plan {
            value_tokens: self.value,
            priced_us: self.other_us + times.target_us(self.drafts),
            drafts: self.drafts,
        }
    }
}
