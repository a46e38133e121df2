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
    items: Vec<u64>,
    deadlines: Vec<Deadline>,
    floors: Vec<u8>,
}

/// When the step gets longer than `at_us`, `row` must have the draft at `depth` (from 0).
#[derive(Clone, Copy, Debug)]
struct Deadline {
    at_us: f64,
    depth: u16,
    row: u16,
}

/// The best point of a sweep: all items up to `last` (packed), and the floors of the
/// first `fired` deadlines.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    plan: Plan,
    last: Option<u64>,
    fired: usize,
    cap: usize,
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
    let order = Order::of(problem);
    let deepest = problem.rows.iter().map(|row| row.positions as usize).max().unwrap_or(0).min(POSITIONS_MAX);
    let drafted = (problem.calls_made as usize).min(deepest);
    list_items(problem, &order, deepest, &mut scratch.items);
    list_deadlines(problem, deepest, drafted, &mut scratch.deadlines);
    let mut best: Option<Candidate> = None;
    for cap in (drafted..=deepest).rev() {
        scratch.items.retain(|&item| depth_of(item) < cap);
        scratch.floors.clear();
        scratch.floors.resize(problem.rows.len(), 0);
        let mut sweep = Sweep::new(problem, &order, &scratch.items, &mut scratch.floors, (drafted, cap));
        let found = sweep.run(&scratch.deadlines);
        // Of equals the shallower cap wins: it asks for fewer draft calls.
        best = match (best, found) {
            (Some(old), Some(new)) if old.plan.beats(&new.plan) => Some(old),
            (old, new) => new.or(old),
        };
    }
    let best = best?;
    write_lengths(problem, &order, &best, &scratch.deadlines, lengths);
    Some(best.plan)
}

/// How items are ranked: by value less the price of their own context.
struct Order {
    price: f32,
}

impl Order {
    fn of(problem: &Problem<'_>) -> Order {
        let weight: f64 = problem.rows.iter().map(|row| f64::from(row.weight)).sum();
        Order { price: (weight / problem.plain_us()) as f32 }
    }

    /// Ascending in this number is descending in rank; ties go by depth, then by row.
    fn pack(&self, problem: &Problem<'_>, row: usize, depth: usize) -> u64 {
        let terms = &problem.rows[row];
        let key = terms.weight * problem.survival(row, depth) - self.price * terms.query_us;
        (u64::from(!ascending_bits(key)) << 32) | (depth as u64) << 16 | row as u64
    }
}

/// Bits whose unsigned order is the order of the numbers.
fn ascending_bits(value: f32) -> u32 {
    let bits = value.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

fn depth_of(item: u64) -> usize {
    (item >> 16) as usize & 0xffff
}

fn row_of(item: u64) -> usize {
    item as usize & 0xffff
}

fn list_items(problem: &Problem<'_>, order: &Order, deepest: usize, items: &mut Vec<u64>) {
    items.clear();
    for depth in 0..deepest {
        for (row, terms) in problem.rows.iter().enumerate() {
            if depth < terms.positions as usize {
                items.push(order.pack(problem, row, depth));
            }
        }
    }
    items.sort_unstable();
}

/// Lists the deadlines that the longest conceivable step would pass, earliest first.
fn list_deadlines(problem: &Problem<'_>, deepest: usize, drafted: usize, deadlines: &mut Vec<Deadline>) {
    deadlines.clear();
    if problem.rows.iter().all(|row| row.bound.is_none()) {
        return;
    }
    let longest_us = longest_us(problem, deepest - drafted);
    for (row, terms) in problem.rows.iter().enumerate() {
        let Some(bound) = terms.bound else { continue };
        let mut tokens = 1.0;
        for depth in 0..=(terms.positions as usize).min(POSITIONS_MAX) {
            let at_us = bound.deadline_us(tokens);
            if at_us >= longest_us {
                break;
            }
            deadlines.push(Deadline { at_us, depth: depth as u16, row: row as u16 });
            if depth < terms.positions as usize {
                tokens += f64::from(problem.survival(row, depth));
            }
        }
    }
    deadlines.sort_unstable_by(|a, b| a.at_us.total_cmp(&b.at_us).then(a.depth.cmp(&b.depth)));
}

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

fn write_lengths(
    problem: &Problem<'_>,
    order: &Order,
    best: &Candidate,
    deadlines: &[Deadline],
    lengths: &mut [u32],
) {
    if let Some(last) = best.last {
        for (row, length) in lengths.iter_mut().enumerate() {
            let depths = (problem.rows[row].positions as usize).min(best.cap);
            *length =
                (0..depths).take_while(|&depth| order.pack(problem, row, depth) <= last).count() as u32;
        }
    }
    for deadline in &deadlines[..best.fired] {
        let length = &mut lengths[deadline.row as usize];
        *length = (*length).max(u32::from(deadline.depth) + 1);
    }
    debug_assert_eq!(lengths.iter().sum::<u32>(), best.plan.drafts);
}

/// One pass over the items of a depth cap, in rank order.
///
/// Chosen are the items before `next` and those below their row's floor.
struct Sweep<'a> {
    problem: &'a Problem<'a>,
    order: &'a Order,
    items: &'a [u64],
    floors: &'a mut [u8],
    drafted: usize,
    cap: usize,
    next: usize,
    drafts: usize,
    drafts_max: usize,
    value: f64,
    priced_us: f64,
    at_depth: [u32; POSITIONS_MAX],
}

impl<'a> Sweep<'a> {
    fn new(
        problem: &'a Problem<'a>,
        order: &'a Order,
        items: &'a [u64],
        floors: &'a mut [u8],
        (drafted, cap): (usize, usize),
    ) -> Sweep<'a> {
        // Every call of the cap is charged from the start, for one row at least.
        let calls_us = problem.draft.at(1) * (cap - drafted) as f64;
        Sweep {
            problem,
            order,
            items,
            floors,
            drafted,
            cap,
            next: 0,
            drafts: 0,
            drafts_max: (problem.rows_max as usize).saturating_sub(problem.rows.len()),
            value: problem.rows.iter().map(|row| f64::from(row.weight)).sum(),
            priced_us: problem.priced_us + calls_us,
            at_depth: [0; POSITIONS_MAX],
        }
    }

    fn run(&mut self, deadlines: &[Deadline]) -> Option<Candidate> {
        let mut best: Option<Candidate> = None;
        let mut fired = 0;
        let mut goal = 0;
        loop {
            match self.settle(deadlines, fired, goal) {
                Some(count) if self.drafts <= self.drafts_max => fired = count,
                _ => return best,
            }
            let plan = self.plan();
            if best.is_none_or(|best| plan.beats(&best.plan)) {
                let last = self.next.checked_sub(1).map(|last| self.items[last]);
                best = Some(Candidate { plan, last, fired, cap: self.cap });
            }
            goal = self.drafts + 1;
            while self.drafts < goal {
                if self.next == self.items.len() {
                    return best;
                }
                self.advance();
            }
        }
    }

    /// Forces in what the step's length asks for, holding the number of drafts at `goal`
    /// where free items can be given back. Returns how many deadlines have fired; `None`
    /// if a request has no draft left that would allow this step.
    fn settle(&mut self, deadlines: &[Deadline], mut fired: usize, goal: usize) -> Option<usize> {
        while let Some(deadline) = deadlines.get(fired) {
            if deadline.at_us >= self.plan().priced_us + self.problem.unpriced_us {
                break;
            }
            self.force(deadline)?;
            fired += 1;
            while self.drafts > goal && self.next > 0 {
                self.retract();
            }
        }
        Some(fired)
    }

    fn plan(&self) -> Plan {
        let rows = self.problem.rows.len() + self.drafts;
        let priced_us = self.priced_us + self.problem.target.at(rows);
        Plan { value_tokens: self.value, priced_us, drafts: self.drafts as u32 }
    }

    /// Chooses the next item in rank order.
    fn advance(&mut self) {
        let item = self.items[self.next];
        self.next += 1;
        let (row, depth) = (row_of(item), depth_of(item));
        if depth >= usize::from(self.floors[row]) {
            self.add(row, depth);
        }
    }

    /// Gives back the last chosen item, unless it is below its row's floor.
    fn retract(&mut self) {
        self.next -= 1;
        let item = self.items[self.next];
        let (row, depth) = (row_of(item), depth_of(item));
        if depth >= usize::from(self.floors[row]) {
            self.remove(row, depth);
        }
    }

    fn force(&mut self, deadline: &Deadline) -> Option<()> {
        let (row, depth) = (usize::from(deadline.row), usize::from(deadline.depth));
        if depth >= (self.problem.rows[row].positions as usize).min(self.cap) {
            return None;
        }
        self.floors[row] = depth as u8 + 1;
        let chosen = self.items[..self.next].last().is_some_and(|&last| self.rank_of(row, depth) <= last);
        if !chosen {
            self.add(row, depth);
        }
        Some(())
    }

    fn rank_of(&self, row: usize, depth: usize) -> u64 {
        self.order.pack(self.problem, row, depth)
    }

    fn add(&mut self, row: usize, depth: usize) {
        let terms = &self.problem.rows[row];
        self.drafts += 1;
        self.value += f64::from(terms.weight * self.problem.survival(row, depth));
        self.priced_us += f64::from(terms.query_us) + self.call_change(depth, 1);
    }

    fn remove(&mut self, row: usize, depth: usize) {
        let terms = &self.problem.rows[row];
        self.drafts -= 1;
        self.value -= f64::from(terms.weight * self.problem.survival(row, depth));
        self.priced_us -= f64::from(terms.query_us);
        self.priced_us += self.call_change(depth, -1);
    }

    /// Counts a row of the draft call at `depth` in or out; returns the change of its time.
    fn call_change(&mut self, depth: usize, change: i32) -> f64 {
        if depth < self.drafted {
            return 0.0;
        }
        let before = self.at_depth[depth];
        let after = before.wrapping_add_signed(change);
        self.at_depth[depth] = after;
        self.problem.draft.at(after.max(1) as usize) - self.problem.draft.at(before.max(1) as usize)
    }
}

#[cfg(test)]
mod tests;
