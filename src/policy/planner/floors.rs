//! Drafts that a step of some length must give to requests with a bound.

use super::rank::Ranking;
use super::{Problem, Row};

/// Rows whose shortest deadline is kept.
const GROUP_ROWS: usize = 8;

/// A row at its floor.
#[derive(Clone, Copy, Debug)]
struct Floor {
    /// Longest step that the row allows; infinite without a bound.
    until_us: f64,
    /// Expected tokens.
    tokens: f64,
    drafts: u32,
}

/// The least drafts of each row; they only rise while a step grows.
#[derive(Debug, Default)]
pub(super) struct Floors {
    rows: Vec<Floor>,
    /// The shortest deadline of each group of rows, and of all.
    group_until_us: Vec<f64>,
    soonest_us: f64,
    /// Longest step, and deepest cap, that floors have been raised for.
    raised_for: (f64, usize),
    /// Positions below the floors, in the order in which they were asked for.
    pub(super) asked: Vec<u64>,
}

/// A row has no draft left that would allow the step.
#[derive(Debug)]
pub(super) struct BoundUnmet;

impl Floors {
    /// No floors yet.
    pub(super) fn reset(&mut self, problem: &Problem<'_>) {
        let limit_us = |row: &Row| row.bound.map_or(f64::INFINITY, |bound| bound.deadline_us(1.0));
        let floor = |row| Floor { until_us: limit_us(row), tokens: 1.0, drafts: 0 };
        self.rows.clear();
        self.rows.extend(problem.rows.iter().map(floor));
        self.group_until_us.clear();
        self.group_until_us.extend(self.rows.chunks(GROUP_ROWS).map(shortest));
        self.find_soonest();
        self.asked.clear();
        self.raised_for = (0.0, 0);
    }

    /// Takes floors back, unless all of them are needed by a step of `step_us` at `cap`, too.
    pub(super) fn reset_for(&mut self, problem: &Problem<'_>, cap: usize, step_us: f64) {
        if step_us < self.raised_for.0 || cap < self.raised_for.1 {
            self.reset(problem);
        }
    }

    /// Least drafts of a row.
    pub(super) fn drafts(&self, row: usize) -> u32 {
        self.rows[row].drafts
    }

    /// Whether the floors allow a step of `step_us`.
    pub(super) fn allow(&self, step_us: f64) -> bool {
        step_us <= self.soonest_us
    }

    /// Raises floors, at most to `cap`, until they allow a step of `step_us`.
    pub(super) fn raise(
        &mut self,
        problem: &Problem<'_>,
        ranking: &Ranking,
        cap: usize,
        step_us: f64,
    ) -> Result<(), BoundUnmet> {
        self.raised_for = (self.raised_for.0.max(step_us), self.raised_for.1.max(cap));
        let groups = self.rows.chunks_mut(GROUP_ROWS).zip(problem.rows.chunks(GROUP_ROWS));
        for (group, ((floors, rows), until_us)) in groups.zip(&mut self.group_until_us).enumerate() {
            if *until_us >= step_us {
                continue;
            }
            for (index, (floor, terms)) in floors.iter_mut().zip(rows).enumerate() {
                while floor.until_us < step_us {
                    let (row, depth) = (group * GROUP_ROWS + index, floor.drafts as usize);
                    let bound = terms.bound.filter(|_| depth < cap.min(terms.positions as usize));
                    let bound = bound.ok_or(BoundUnmet)?;
                    floor.drafts += 1;
                    floor.tokens += f64::from(problem.survival(row, depth));
                    floor.until_us = bound.deadline_us(floor.tokens);
                    self.asked.push(ranking.item(row, depth));
                }
            }
            *until_us = shortest(floors);
        }
        self.find_soonest();
        Ok(())
    }

    fn find_soonest(&mut self) {
        self.soonest_us = self.group_until_us.iter().copied().fold(f64::INFINITY, lesser);
    }
}

fn shortest(floors: &[Floor]) -> f64 {
    floors.iter().map(|floor| floor.until_us).fold(f64::INFINITY, lesser)
}

/// The lesser of two numbers, neither of which is NaN.
fn lesser(a: f64, b: f64) -> f64 {
    if b < a { b } else { a }
}
