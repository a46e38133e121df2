//! The search for the best step: first among the outline's points, then wherever its bounds
//! leave room for something better.

use super::outline::{Boundary, Outline};
use super::rank::Ranking;
use super::sweep::Sweep;
use super::{Buffers, Plan, Problem, Times};

/// A step: all positions within `cap` before `frontier`.
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
    /// The outline's best point.
    first: (Boundary, Plan),
    /// The best step so far.
    pub(super) best: Candidate,
}

impl<'a> Search<'a> {
    /// Draws the outline.
    pub(super) fn begin(problem: &'a Problem<'a>, buffers: &'a mut Buffers, deepest: usize) -> Search<'a> {
        let Buffers { times, ranking, outline } = buffers;
        let drafts: usize = problem.rows.iter().map(|row| (row.positions as usize).min(deepest)).sum();
        let drafts_max = (problem.rows_max as usize).saturating_sub(problem.requests);
        times.prepare(problem, drafts.min(drafts_max));
        ranking.prepare(problem, deepest);
        let first = outline.draw(problem, times, ranking, deepest);
        let best = Candidate { plan: first.1, cap: first.0.cap, frontier: 0 };
        Search { problem, times, outline, ranking, first, best }
    }

    /// The best step: the outline's best point, or something in the buckets
    /// that could hold better.
    pub(super) fn refine(&mut self) {
        self.list();
        let (boundary, plan) = self.first;
        let frontier = self.ranking.frontier(boundary.bucket);
        self.best = Candidate { plan, cap: boundary.cap, frontier };
        for cap in self.outline.caps() {
            let mut boundary = Boundary { cap, bucket: 0 };
            while let Some(bucket) = self.next_open(boundary) {
                boundary.bucket = bucket;
                // The next boundary is known already.
                let last = self.outline.points(cap)[bucket + 1].drafts.saturating_sub(1);
                let last = last.min(self.outline.drafts_max());
                let mut sweep = Sweep::at(boundary, self.problem, self.times, self.outline, self.ranking);
                while sweep.drafts() < last && sweep.advance() {
                    let found = Candidate { plan: sweep.plan(), cap, frontier: sweep.frontier() };
                    keep_better(&mut self.best, found);
                }
                boundary.bucket += 1;
            }
        }
    }

    /// Lists the positions of all caps that were drawn.
    fn list(&mut self) {
        self.ranking.list(*self.outline.caps().end(), self.outline.starts());
    }

    fn next_open(&self, from: Boundary) -> Option<usize> {
        self.outline.next_open(self.times, self.ranking, from, self.best.plan.rate())
    }

    /// Writes the best step's lengths over zeros.
    pub(super) fn write(&self, lengths: &mut [u32]) {
        let Candidate { plan, cap, frontier } = self.best;
        self.ranking.count_before(frontier, cap, lengths);
        debug_assert_eq!(lengths.iter().sum::<u32>(), plan.drafts);
    }
}

/// Keeps the better of two steps. Of equals the smaller cap wins: it asks for fewer draft calls.
fn keep_better(best: &mut Candidate, new: Candidate) {
    if new.plan.beats(&best.plan) || (new.cap < best.cap && !best.plan.beats(&new.plan)) {
        *best = new;
    }
}
