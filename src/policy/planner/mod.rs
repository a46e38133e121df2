//! Chooses draft lengths for a whole batch: most expected tokens per second.
//!
//! ```text
//! maximise V(g) = Σ_r w_r (1 + Σ_{i≤g_r} S(r,i)) / T(g)
//! ```
//!
//! `T(g)` is the target's staircase at all rows plus what each draft adds for its own
//! context, plus one draft call per depth that is still to be drafted.
//!
//! For every number of draft calls the items `(r,i)` that so many calls can make are taken in order of
//! their marginal value, which is prefix-closed because survival does not rise with `i`. Every number
//! of drafts is examined: a staircase has many local maxima.
//!
//! Trees need no more than that. A draft survives at most as often as the one that it follows, so a
//! row may list the drafts of a tree by falling survival: whatever is taken from the front of the list
//! is a tree itself. What may follow a draft that exists is a row of its own, a branch.
//!
//! The result is the exact optimum whenever a draft call's time does not depend on its rows
//! and drafts cost the same in every row (`row_us` and `query_us` zero and a flat draft
//! table), in particular for the choice after drafting with a context-free verify cost.
//! Otherwise every examined plan is still costed truly, and the result is never worse than
//! any plan with one length for all. Both claims are tested against enumeration.
//! docs/policy.md, section "The planner", has the argument.

mod outline;
mod rank;
mod search;
mod sweep;

use outline::Outline;
use rank::Ranking;
use search::Search;

use super::survival::POSITIONS_MAX;

/// Most rows of one problem.
pub const PLAN_ROWS_MAX: usize = u16::MAX as usize;

/// One decoding request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// `w_r`: what a token of this request is worth; not negative.
    pub weight: f32,
    /// Microseconds that each verified draft adds to the target's time beside the staircase.
    pub query_us: f32,
    /// Most drafts, at most [`POSITIONS_MAX`].
    pub positions: u32,
    /// How many of them exist: these cost no more drafting, and each further one takes a draft call
    /// more than the one before.
    pub made: u32,
}

/// A time that grows with a row count: `factor × table[rows] + row_us × rows`.
#[derive(Clone, Copy, Debug)]
pub struct Curve<'a> {
    /// Microseconds by row count, not falling; the last entry holds for all larger counts.
    pub table: &'a [f64],
    /// Correction on the table.
    pub factor: f64,
    /// Microseconds per row on top.
    pub row_us: f64,
}

impl Curve<'_> {
    /// No time at all.
    pub const ZERO: Curve<'static> = Curve { table: &[0.0], factor: 1.0, row_us: 0.0 };

    /// The time of `rows` rows.
    pub fn at(&self, rows: usize) -> f64 {
        self.table[rows.min(self.table.len() - 1)] * self.factor + self.row_us * rows as f64
    }

    /// Writes the times of `from` to `to` rows.
    fn tabulate(&self, from: usize, to: usize, times_us: &mut Vec<f64>) {
        let last = self.table.len() - 1;
        let known = &self.table[from.min(last)..=to.min(last)];
        times_us.clear();
        times_us.extend_from_slice(known);
        times_us.resize(to - from + 1, self.table[last]);
        for (rows, time_us) in (from as i32..).zip(times_us) {
            *time_us = *time_us * self.factor + self.row_us * f64::from(rows);
        }
    }
}

/// One step's planning problem.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    /// The decoding requests, and behind them, in a step that drafts trees, further branches of theirs:
    /// what may follow a draft that exists.
    pub rows: &'a [Row],
    /// How many of the rows are requests: each of these has one row of the target without drafts, and
    /// one token.
    pub requests: usize,
    /// `S(r,i)` at index `(i − 1) × rows.len() + r`; at most 1, not rising with `i`.
    pub survival: &'a [f32],
    /// Target time by verification rows (one per request and one per draft).
    pub target: Curve<'a>,
    /// Time of one draft call by its rows.
    pub draft: Curve<'a>,
    /// The rest of the step that counts for the value: context, host, drafting so far. Prefill
    /// does not: it has to be done in some step anyway.
    pub priced_us: f64,
    /// Weighted tokens that come with it, beside one for each request.
    pub priced_tokens: f64,
    /// Most verification rows.
    pub rows_max: u32,
}

impl Problem<'_> {
    /// The step without any draft beyond those that exist, none of them verified.
    pub fn plain_us(&self) -> f64 {
        self.priced_us + self.target.at(self.requests)
    }

    /// `Σ w_r` over the requests.
    fn weight(&self) -> f64 {
        self.rows[..self.requests].iter().map(|row| f64::from(row.weight)).sum()
    }

    fn survival(&self, row: usize, depth: usize) -> f32 {
        self.survival[depth * self.rows.len() + row]
    }
}

/// The chosen step; lengths are written beside it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// `Σ_r w_r (1 + Σ S)`.
    pub value_tokens: f64,
    /// `T`: priced time, in microseconds.
    pub priced_us: f64,
    /// Drafts in all rows.
    pub drafts: u32,
}

impl Plan {
    /// The objective, in weighted tokens per microsecond.
    pub fn rate(&self) -> f64 {
        self.value_tokens / self.priced_us
    }

    /// The rate of what is left of the plan after `before_us` of its time at `rate`.
    pub fn rate_after(&self, before_us: f64, rate: f64) -> f64 {
        (self.value_tokens - before_us * rate) / (self.priced_us - before_us)
    }

    fn beats(&self, other: &Plan) -> bool {
        self.value_tokens * other.priced_us > other.value_tokens * self.priced_us
    }
}

/// Tabulated times of the problem at hand.
#[derive(Debug, Default)]
struct Times {
    target_us: Vec<f64>,
    call_us: Vec<f64>,
}

impl Times {
    /// Tabulates the times of up to `drafts_max` drafts.
    fn prepare(&mut self, problem: &Problem<'_>, drafts_max: usize) {
        let (rows, requests) = (problem.rows.len(), problem.requests);
        problem.target.tabulate(requests, requests + drafts_max + 1, &mut self.target_us);
        problem.draft.tabulate(0, rows.max(1), &mut self.call_us);
        self.call_us[0] = self.call_us[1];
    }

    /// Target time with `drafts` drafts, or with as many as are allowed.
    #[inline]
    fn target_us(&self, drafts: u32) -> f64 {
        self.target_us[(drafts as usize).min(self.target_us.len() - 1)]
    }

    /// A draft call; it is charged for one row at least.
    #[inline]
    fn call_us(&self, rows: u32) -> f64 {
        self.call_us[rows as usize]
    }
}

/// Working memory of [`solve`]; holds no information between calls.
#[derive(Debug, Default)]
pub struct Buffers {
    times: Times,
    ranking: Ranking,
    outline: Outline,
}

/// Solves `problem` and writes one draft length per row to `lengths`.
///
/// # Panics
/// If there are more than [`PLAN_ROWS_MAX`] rows, or the survival table is too short.
pub fn solve(problem: &Problem<'_>, buffers: &mut Buffers, lengths: &mut Vec<u32>) -> Plan {
    assert!(problem.rows.len() <= PLAN_ROWS_MAX, "too many rows to plan");
    lengths.clear();
    lengths.resize(problem.rows.len(), 0);
    let deepest = problem.rows.iter().map(|row| row.positions as usize).max().unwrap_or(0).min(POSITIONS_MAX);
    let mut search = Search::begin(problem, buffers, deepest);
    search.refine();
    search.write(lengths);
    search.best.plan
}

#[cfg(test)]
mod tests;
