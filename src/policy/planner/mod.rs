//! Chooses draft lengths for a whole batch: most expected tokens per second among the
//! steps that keep every bound.
//!
//! ```text
//! maximise   V(g) = Σ_r w_r (1 + Σ_{i≤g_r} S(r,i)) / T(g)
//! subject to T(g) + U ≤ credit_r + τ_r (1 + Σ_{i≤g_r} S(r,i))   for every bounded r
//! ```
//!
//! `T(g)` is the target's staircase at all rows plus what each draft adds for its own
//! context, plus one draft call per depth that is still to be drafted; `U` is time that is
//! spent anyway (prefill, catch-up) and therefore constrains but is not priced.
//!
//! For every depth cap the items `(r,i)` with `i` up to the cap are taken in order of their
//! marginal value, which is prefix-closed because survival does not rise with `i`. Along
//! this sweep the step gets longer; whenever it passes the deadline of a request at its
//! current length, the next item of that request is forced in (a floor), and the least
//! valuable free item is given back, so that the number of drafts stays the one under
//! examination. Every number of drafts is examined: a staircase has many local maxima.
//!
//! The result is the exact optimum whenever a draft call's time does not depend on its rows
//! and drafts cost the same in every row (`row_us` and `query_us` zero and a flat draft
//! table), in particular for the choice after drafting with a context-free verify cost.
//! Otherwise every examined plan is still costed truly, and the result is never worse than
//! any feasible plan with one length for all. Both claims are tested against enumeration.

mod caps;
mod deadlines;
mod rank;
mod sweep;

use caps::Caps;
use deadlines::Deadline;
use rank::{Items, Ranking, depth_of};
use sweep::{Candidate, Ground, Sweep};

use super::slo::TpotBound;
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
    /// Longest step that it allows; `None`: any.
    pub bound: Option<TpotBound>,
    /// Most drafts, at most [`POSITIONS_MAX`].
    pub positions: u32,
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
}

/// What is to be decided.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    /// The decoding requests.
    pub rows: &'a [Row],
    /// `S(r,i)` at index `(i − 1) × rows.len() + r`; not rising with `i`.
    pub survival: &'a [f32],
    /// Target time by verification rows (one per request and one per draft).
    pub target: Curve<'a>,
    /// Time of one draft call by its rows.
    pub draft: Curve<'a>,
    /// Draft calls already made: positions up to here cost no more drafting.
    pub calls_made: u32,
    /// The rest of the step that counts for the value: context, host, drafting so far.
    pub priced_us: f64,
    /// The rest of the step that only counts against bounds: prefill, catch-up.
    pub unpriced_us: f64,
    /// Most verification rows.
    pub rows_max: u32,
}

impl Problem<'_> {
    /// The step without any draft beyond those that exist, none of them verified.
    pub fn plain_us(&self) -> f64 {
        self.priced_us + self.target.at(self.rows.len())
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

    fn beats(&self, other: &Plan) -> bool {
        self.value_tokens * other.priced_us > other.value_tokens * self.priced_us
    }
}

/// Memory that is used again by every call; holds no information between calls.
#[derive(Debug, Default)]
pub struct Scratch {
    items: Items,
    deadlines: Vec<Deadline>,
    target_us: Vec<f64>,
    call_us: Vec<f64>,
    sweeps: Sweeps,
}

/// Solves `problem` and writes one draft length per row to `lengths`. `None`, with all
/// lengths zero, if no examined step keeps all bounds.
///
/// # Panics
/// If there are more than [`PLAN_ROWS_MAX`] rows, or the survival table is too short.
pub fn solve(problem: &Problem<'_>, scratch: &mut Scratch, lengths: &mut Vec<u32>) -> Option<Plan> {
    assert!(problem.rows.len() <= PLAN_ROWS_MAX, "too many rows to plan");
    lengths.clear();
    lengths.resize(problem.rows.len(), 0);
    let deepest = problem.rows.iter().map(|row| row.positions as usize).max().unwrap_or(0).min(POSITIONS_MAX);
    let drafted = (problem.calls_made as usize).min(deepest);
    let drafts_max = (problem.rows_max as usize).saturating_sub(problem.rows.len());
    let ranking = Ranking::of(problem);
    // Lower caps skip items, so that they may need all; one cap needs what fits the row limit.
    let needed = if drafted == deepest { drafts_max + 1 } else { usize::MAX };
    ranking.sort(problem, deepest, needed, &mut scratch.items);
    let items = scratch.items.sorted.as_slice();
    tabulate(problem, items.len().min(drafts_max), &mut scratch.target_us, &mut scratch.call_us);
    let mut ground = Ground {
        problem,
        ranking: &ranking,
        deadlines: &[],
        weight: problem.rows.iter().map(|row| f64::from(row.weight)).sum(),
        drafted,
        drafts_max,
        target_us: &scratch.target_us,
        call_us: &scratch.call_us,
    };
    // Bounds seldom bind: only when the unbounded optimum breaks one are they worked in.
    let unbounded = scratch.sweeps.best(&ground, deepest, items)?;
    write_lengths(&ground, &unbounded, lengths);
    if keeps_bounds(problem, lengths, unbounded.plan.priced_us) {
        return Some(unbounded.plan);
    }
    lengths.fill(0);
    deadlines::list(problem, longest_us(problem, deepest - drafted), &mut scratch.deadlines);
    ground.deadlines = &scratch.deadlines;
    let best = scratch.sweeps.best(&ground, deepest, items)?;
    write_lengths(&ground, &best, lengths);
    Some(best.plan)
}

/// Whether a step of these lengths keeps every bound.
fn keeps_bounds(problem: &Problem<'_>, lengths: &[u32], priced_us: f64) -> bool {
    let step_us = priced_us + problem.unpriced_us;
    problem.rows.iter().zip(lengths).enumerate().all(|(row, (terms, &length))| {
        let drafts = || (0..length as usize).map(|depth| f64::from(problem.survival(row, depth)));
        terms.bound.is_none_or(|bound| step_us <= bound.deadline_us(1.0 + drafts().sum::<f64>()))
    })
}

/// Tabulates what the sweeps look up at every step.
fn tabulate(problem: &Problem<'_>, drafts: usize, target_us: &mut Vec<f64>, call_us: &mut Vec<f64>) {
    target_us.clear();
    target_us.extend((0..=drafts).map(|drafts| problem.target.at(problem.rows.len() + drafts)));
    call_us.clear();
    let step_us = |rows: usize| problem.draft.at(rows + 1) - problem.draft.at(rows.max(1));
    call_us.extend((0..problem.rows.len()).map(step_us));
}

/// Buffers of the sweeps over depth caps.
#[derive(Debug, Default)]
struct Sweeps {
    capped: Vec<u64>,
    floors: Vec<u8>,
    caps: Caps,
}

impl Sweeps {
    /// Sweeps every depth cap that could hold the optimum, the most promising first.
    fn best(&mut self, ground: &Ground<'_>, deepest: usize, items: &[u64]) -> Option<Candidate> {
        if ground.drafted == deepest {
            self.floors.clear();
            self.floors.resize(ground.problem.rows.len(), 0);
            return Sweep::new(ground, items, &mut self.floors, deepest).run();
        }
        self.caps.prepare(ground, deepest, items);
        let favourite = self.caps.favourite(ground, deepest);
        let others = (ground.drafted..=deepest).filter(|&cap| cap != favourite);
        let mut best: Option<Candidate> = None;
        for cap in std::iter::once(favourite).chain(others) {
            if best.is_some_and(|best| !self.caps.may_beat(ground, cap, &best)) {
                continue;
            }
            self.floors.clear();
            self.floors.resize(ground.problem.rows.len(), 0);
            let found = if cap == deepest {
                Sweep::new(ground, items, &mut self.floors, cap).run()
            } else {
                take_above(items, cap, ground.drafts_max, &mut self.capped);
                Sweep::new(ground, &self.capped, &mut self.floors, cap).run()
            };
            best = match (best, found) {
                (Some(old), Some(new)) if !wins(&new, &old) => Some(old),
                (old, new) => new.or(old),
            };
        }
        best
    }
}

/// Of equals the shallower cap wins: it asks for fewer draft calls.
fn wins(new: &Candidate, old: &Candidate) -> bool {
    new.plan.beats(&old.plan) || (new.cap < old.cap && !old.plan.beats(&new.plan))
}

/// Copies the first `count` items above depth `cap`.
fn take_above(items: &[u64], cap: usize, count: usize, capped: &mut Vec<u64>) {
    capped.clear();
    if count == 0 {
        return;
    }
    capped.resize(items.len().min(count) + 1, 0);
    let mut length = 0;
    for &item in items {
        // Written without a branch: whether an item is above the cap can't be predicted.
        capped[length] = item;
        length += usize::from(depth_of(item) < cap);
        if length == count {
            break;
        }
    }
    capped.truncate(length);
}

/// The longest step that any choice makes.
fn longest_us(problem: &Problem<'_>, calls: usize) -> f64 {
    let drafts: usize = problem.rows.iter().map(|row| row.positions as usize).sum();
    let queries: f64 =
        problem.rows.iter().map(|row| f64::from(row.query_us) * f64::from(row.positions)).sum();
    problem.priced_us
        + problem.unpriced_us
        + problem.target.at(problem.rows.len() + drafts)
        + queries
        + problem.draft.at(problem.rows.len()) * calls as f64
}

fn write_lengths(ground: &Ground<'_>, best: &Candidate, lengths: &mut [u32]) {
    let problem = ground.problem;
    if let Some(last) = best.last {
        for (row, length) in lengths.iter_mut().enumerate() {
            let depths = (problem.rows[row].positions as usize).min(best.cap);
            let chosen = |&depth: &usize| ground.ranking.pack(problem, row, depth) <= last;
            *length = (0..depths).take_while(chosen).count() as u32;
        }
    }
    for deadline in &ground.deadlines[..best.fired] {
        let length = &mut lengths[usize::from(deadline.row)];
        *length = (*length).max(u32::from(deadline.depth) + 1);
    }
    debug_assert_eq!(lengths.iter().sum::<u32>(), best.plan.drafts);
}

#[cfg(test)]
mod tests;
