//! The search for the best step: first among the outline's points, then wherever its bounds
//! leave room for something better.

use super::floors::Floors;
use super::outline::{Boundary, Outline};
use super::rank::{Ranking, depth_of, row_of};
use super::sweep::Sweep;
use super::{Buffers, Plan, Problem, Times};

/// A step: all positions above `cap` before `frontier`, and what is forced in beside them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) plan: Plan,
    cap: usize,
    frontier: u64,
}

/// One call of the planner.
pub(super) struct Search<'a> {
    problem: &'a Problem<'a>,
    times: &'a Times,
    outline: &'a mut Outline,
    ranking: &'a mut Ranking,
    floors: &'a mut Floors,
    /// The outline's best point.
    first: (Boundary, Plan),
    /// The best step so far, and what was forced into it.
    pub(super) best: Option<Candidate>,
    best_forced: &'a mut Vec<u64>,
}

impl<'a> Search<'a> {
    /// Draws the outline.
    pub(super) fn begin(problem: &'a Problem<'a>, buffers: &'a mut Buffers, deepest: usize) -> Search<'a> {
        let Buffers { times, ranking, outline, floors, best_forced } = buffers;
        let drafts: usize = problem.rows.iter().map(|row| (row.positions as usize).min(deepest)).sum();
        let drafts_max = (problem.rows_max as usize).saturating_sub(problem.rows.len());
        times.prepare(problem, drafts.min(drafts_max));
        ranking.prepare(problem, deepest);
        let first = outline.draw(problem, times, ranking, deepest);
        floors.reset(problem);
        best_forced.clear();
        Search { problem, times, outline, ranking, floors, first, best: None, best_forced }
    }

    /// Whether the outline's best point keeps all bounds without further ado.
    pub(super) fn first_keeps_bounds(&self) -> bool {
        self.floors.allow(self.first.1.priced_us + self.problem.unpriced_us)
    }

    /// The best step without bounds: the outline's best point, or something in the buckets
    /// that could hold better.
    pub(super) fn refine(&mut self) {
        self.list();
        let (boundary, plan) = self.first;
        let frontier = self.ranking.frontier(boundary.bucket);
        self.best = Some(Candidate { plan, cap: boundary.cap, frontier });
        for cap in self.outline.caps() {
            let mut boundary = Boundary { cap, bucket: 0 };
            while let Some(bucket) = self.next_open(boundary) {
                boundary.bucket = bucket;
                // The next boundary is known already.
                let last = self.outline.points(cap)[bucket + 1].drafts.saturating_sub(1);
                let last = last.min(self.outline.drafts_max());
                let mut sweep =
                    Sweep::at(boundary, self.problem, self.times, self.outline, self.ranking, self.floors);
                while sweep.drafts() < last && sweep.advance() {
                    let found = Candidate { plan: sweep.plan(), cap, frontier: sweep.frontier() };
                    keep_better(&mut self.best, found);
                }
                boundary.bucket += 1;
            }
        }
    }

    /// The best step that keeps all bounds, found wherever there could be one.
    pub(super) fn work_in_bounds(&mut self) {
        self.outline.draw_rest(self.times);
        self.list();
        self.best = None;
        // A good step early on rules out most of the others.
        let (boundary, _) = self.first;
        self.sweep_with_bounds(boundary, boundary.bucket);
        // A step without drafts is in no bucket.
        let plain = Boundary { cap: *self.outline.caps().start(), bucket: 0 };
        let plain_plan = self.outline.points(plain.cap)[0].plan(self.times);
        if self.best.is_none_or(|best| !best.plan.beats(&plain_plan)) {
            self.sweep_with_bounds(plain, 0);
        }
        self.sweep_cap(boundary.cap);
        self.outline.caps().filter(|&cap| cap != boundary.cap).for_each(|cap| self.sweep_cap(cap));
    }

    /// Sweeps what could hold something better in a cap.
    fn sweep_cap(&mut self, cap: usize) {
        let mut end = 0;
        while let Some(start) = self.next_open(Boundary { cap, bucket: end }) {
            end = start + 1;
            while self.next_open(Boundary { cap, bucket: end }) == Some(end) {
                end += 1;
            }
            self.sweep_with_bounds(Boundary { cap, bucket: start }, end);
        }
    }

    /// Examines every number of drafts from one boundary to another. Where a step can't be
    /// borne, a longer one can't either.
    fn sweep_with_bounds(&mut self, boundary: Boundary, end: usize) {
        let points = self.outline.points(boundary.cap);
        let (start, end) = (points[boundary.bucket], points[end].drafts);
        let start_us = start.plan(self.times).priced_us + self.problem.unpriced_us;
        self.floors.reset_for(self.problem, boundary.cap, start_us);
        let mut sweep =
            Sweep::at(boundary, self.problem, self.times, self.outline, self.ranking, self.floors);
        let (mut goal, mut forced) = (start.drafts, None);
        while sweep.settle(goal).is_ok() && sweep.drafts() <= self.outline.drafts_max() {
            let found = Candidate { plan: sweep.plan(), cap: boundary.cap, frontier: sweep.frontier() };
            if keep_better(&mut self.best, found) {
                forced = Some(sweep.forced());
            }
            if sweep.drafts() >= end || !sweep.advance() {
                break;
            }
            goal = sweep.drafts();
        }
        if let Some(count) = forced {
            self.best_forced.clear();
            self.best_forced.extend_from_slice(&self.floors.asked[..count]);
        }
    }

    /// Lists the positions of all caps that were drawn.
    fn list(&mut self) {
        self.ranking.list(*self.outline.caps().end(), self.outline.starts());
    }

    fn next_open(&self, from: Boundary) -> Option<usize> {
        let rate = self.best.map_or(0.0, |best| best.plan.rate());
        self.outline.next_open(self.times, self.ranking, from, rate)
    }

    /// Writes the best step's lengths over zeros.
    pub(super) fn write(&self, lengths: &mut [u32]) {
        let Some(best) = self.best else { return };
        self.ranking.count_before(best.frontier, best.cap, lengths);
        for &item in self.best_forced.iter() {
            let length = &mut lengths[row_of(item)];
            *length = (*length).max(depth_of(item) as u32 + 1);
        }
        debug_assert_eq!(lengths.iter().sum::<u32>(), best.plan.drafts);
    }
}

/// Keeps the better of two steps; returns whether it is the new one. Of equals the shallower cap
/// wins: it asks for fewer draft calls.
fn keep_better(best: &mut Option<Candidate>, new: Candidate) -> bool {
    let wins =
        best.is_none_or(|old| new.plan.beats(&old.plan) || (new.cap < old.cap && !old.plan.beats(&new.plan)));
    if wins {
        *best = Some(new);
    }
    wins
}
