//! Walking through the positions within a cap in rank order, from a boundary on.

use super::outline::{Boundary, Outline};
use super::rank::Ranking;
use super::{Plan, Problem, Times};
use crate::policy::survival::POSITIONS_MAX;

/// Chosen are the positions within the cap before the frontier.
pub(super) struct Sweep<'a> {
    problem: &'a Problem<'a>,
    times: &'a Times,
    ranking: &'a mut Ranking,
    cap: usize,
    /// Index in the list of the first position that has not been looked at.
    next: usize,
    /// The bucket around it, and where that begins and ends.
    bucket: usize,
    extent: (usize, usize),
    frontier: u64,
    drafts: u32,
    value: f64,
    /// Priced time without the target's staircase.
    other_us: f64,
    /// Rows of each draft call to come.
    call_rows: [u32; POSITIONS_MAX],
}

impl<'a> Sweep<'a> {
    /// A sweep that stands at a boundary.
    pub(super) fn at(
        boundary: Boundary,
        problem: &'a Problem<'a>,
        times: &'a Times,
        outline: &Outline,
        ranking: &'a mut Ranking,
    ) -> Sweep<'a> {
        let point = outline.points(boundary.cap)[boundary.bucket];
        let bucket = boundary.bucket.min(ranking.buckets() - 1);
        let extent = ranking.sort(bucket);
        Sweep {
            problem,
            times,
            cap: boundary.cap,
            next: if bucket == boundary.bucket { extent.0 } else { extent.1 },
            bucket,
            extent,
            frontier: ranking.frontier(boundary.bucket),
            drafts: point.drafts,
            value: point.value,
            other_us: point.other_us,
            call_rows: outline.call_rows(boundary),
            ranking,
        }
    }

    /// Chosen positions.
    pub(super) fn drafts(&self) -> u32 {
        self.drafts
    }

    /// See [`Ranking::count_before`].
    pub(super) fn frontier(&self) -> u64 {
        self.frontier
    }

    /// The step with what is chosen.
    pub(super) fn plan(&self) -> Plan {
        let priced_us = self.other_us + self.times.target_us(self.drafts);
        Plan { value_tokens: self.value, priced_us, drafts: self.drafts }
    }

    /// Chooses one more position, the next in rank order. Returns whether there was one.
    pub(super) fn advance(&mut self) -> bool {
        loop {
            while self.next == self.extent.1 {
                if self.bucket + 1 == self.ranking.buckets() {
                    return false;
                }
                self.bucket += 1;
                self.extent = self.ranking.sort(self.bucket);
            }
            let item = self.ranking.at(self.next);
            self.next += 1;
            self.frontier = item + 1;
            if self.ranking.level(item) <= self.cap {
                self.add(item);
                return true;
            }
        }
    }

    fn add(&mut self, item: u64) {
        self.drafts += 1;
        self.value += self.ranking.value(self.problem, item);
        self.other_us += self.ranking.query_us(item) + self.call_change(self.ranking.level(item), 1);
    }

    /// Counts a row of a draft call to come in or out; returns the change of its time.
    fn call_change(&mut self, level: usize, change: i32) -> f64 {
        let Some(call) = level.checked_sub(1) else { return 0.0 };
        let before = self.call_rows[call];
        let after = before.saturating_add_signed(change);
        self.call_rows[call] = after;
        self.times.call_us(after) - self.times.call_us(before)
    }
}
