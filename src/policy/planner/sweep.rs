//! One pass over the positions of a depth cap, in rank order.

use super::deadlines::Deadline;
use super::rank::{Ranking, depth_of, row_of};
use super::{Plan, Problem};
use crate::policy::survival::POSITIONS_MAX;

/// The best point of a sweep: all items up to `last` (packed), and the floors of the
/// first `fired` deadlines.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) plan: Plan,
    pub(super) last: Option<u64>,
    pub(super) fired: usize,
    pub(super) cap: usize,
}

/// What all sweeps of one problem share.
pub(super) struct Ground<'a> {
    pub(super) problem: &'a Problem<'a>,
    pub(super) ranking: &'a Ranking,
    pub(super) deadlines: &'a [Deadline],
    /// `Σ_r w_r`.
    pub(super) weight: f64,
    /// Depths that are drafted already.
    pub(super) drafted: usize,
    /// Most drafts by the row limit.
    pub(super) drafts_max: usize,
    /// Target time with `n` drafts, as far as there are drafts.
    pub(super) target_us: &'a [f64],
    /// What row `n + 1` adds to a draft call of `n` rows; a call is charged for one row at least.
    pub(super) call_us: &'a [f64],
}

/// Chosen are the items before `next` and those below their row's floor.
pub(super) struct Sweep<'a> {
    ground: &'a Ground<'a>,
    items: &'a [u64],
    floors: &'a mut [u8],
    cap: usize,
    next: usize,
    drafts: usize,
    value: f64,
    /// Priced time without the target's staircase.
    priced_us: f64,
    at_depth: [u32; POSITIONS_MAX],
    fired: usize,
    best: Option<Candidate>,
}

impl<'a> Sweep<'a> {
    /// `items` are those above depth `cap`, ranked; `floors` are all zero. Every draft call
    /// of the cap is charged from the start, for one row at least.
    pub(super) fn new(
        ground: &'a Ground<'a>,
        items: &'a [u64],
        floors: &'a mut [u8],
        cap: usize,
    ) -> Sweep<'a> {
        let calls_us = ground.problem.draft.at(1) * (cap - ground.drafted) as f64;
        Sweep {
            ground,
            items,
            floors,
            cap,
            next: 0,
            drafts: 0,
            value: ground.weight,
            priced_us: ground.problem.priced_us + calls_us,
            at_depth: [0; POSITIONS_MAX],
            fired: 0,
            best: None,
        }
    }

    /// The best plan of this cap that keeps every bound.
    pub(super) fn run(mut self) -> Option<Candidate> {
        if self.run_until_a_deadline() {
            self.run_with_floors();
        }
        self.best
    }

    /// Takes items while no deadline has passed. Returns whether one has.
    ///
    /// No floor exists yet, so that this is [`advance`](Self::advance) with everything in
    /// registers: most sweeps never leave this loop.
    fn run_until_a_deadline(&mut self) -> bool {
        let ground = self.ground;
        let limit_us = match ground.deadlines.first() {
            Some(deadline) => deadline.at_us - ground.problem.unpriced_us,
            None => f64::INFINITY,
        };
        let mut best = self.plan();
        if best.priced_us > limit_us {
            return true;
        }
        let (mut value, mut priced_us, mut at_depth) = (self.value, self.priced_us, self.at_depth);
        let mut passed = false;
        for (place, (&item, &target_us)) in self.items.iter().zip(&ground.target_us[1..]).enumerate() {
            let depth = depth_of(item) % POSITIONS_MAX;
            let new_value = value + ground.ranking.value(ground.problem, item);
            let call_us = if depth < ground.drafted { 0.0 } else { ground.call_us[at_depth[depth] as usize] };
            let new_us = priced_us + call_us + self.query_us(item);
            let step_us = new_us + target_us;
            if step_us > limit_us {
                passed = true;
                break;
            }
            at_depth[depth] += 1;
            (value, priced_us) = (new_value, new_us);
            let drafts = place as u32 + 1;
            if new_value * best.priced_us > best.value_tokens * step_us {
                best = Plan { value_tokens: new_value, priced_us: step_us, drafts };
            }
            self.next = place + 1;
        }
        self.drafts = self.next;
        (self.value, self.priced_us, self.at_depth) = (value, priced_us, at_depth);
        self.keep(best, best.drafts as usize);
        passed
    }

    fn run_with_floors(&mut self) {
        let mut goal = self.drafts;
        while self.settle(goal).is_some() && self.drafts <= self.ground.drafts_max {
            let plan = self.plan();
            if self.best.is_none_or(|best| plan.beats(&best.plan)) {
                self.keep(plan, self.next);
            }
            goal = self.drafts + 1;
            while self.drafts < goal {
                if self.next == self.items.len() {
                    return;
                }
                self.advance();
            }
        }
    }

    fn keep(&mut self, plan: Plan, next: usize) {
        let last = next.checked_sub(1).map(|last| self.items[last]);
        self.best = Some(Candidate { plan, last, fired: self.fired, cap: self.cap });
    }

    /// Forces in what the step's length asks for, holding the number of drafts at `goal`
    /// where free items can be given back. `None` if a request has no draft left that
    /// would allow this step.
    fn settle(&mut self, goal: usize) -> Option<()> {
        while let Some(&deadline) = self.ground.deadlines.get(self.fired) {
            if deadline.at_us >= self.plan().priced_us + self.ground.problem.unpriced_us {
                break;
            }
            self.force(deadline)?;
            self.fired += 1;
            while self.drafts > goal && self.next > 0 {
                self.retract();
            }
        }
        Some(())
    }

    fn plan(&self) -> Plan {
        let problem = self.ground.problem;
        let priced_us = self.priced_us + problem.target.at(problem.rows.len() + self.drafts);
        Plan { value_tokens: self.value, priced_us, drafts: self.drafts as u32 }
    }

    /// Chooses the next item in rank order.
    fn advance(&mut self) {
        let item = self.items[self.next];
        self.next += 1;
        if depth_of(item) >= usize::from(self.floors[row_of(item)]) {
            self.add(item);
        }
    }

    /// Gives back the last chosen item, unless it is below its row's floor.
    fn retract(&mut self) {
        self.next -= 1;
        let item = self.items[self.next];
        if depth_of(item) >= usize::from(self.floors[row_of(item)]) {
            self.remove(item);
        }
    }

    fn force(&mut self, deadline: Deadline) -> Option<()> {
        let problem = self.ground.problem;
        let (row, depth) = (usize::from(deadline.row), usize::from(deadline.depth));
        if depth >= (problem.rows[row].positions as usize).min(self.cap) {
            return None;
        }
        self.floors[row] = depth as u8 + 1;
        let rank = self.ground.ranking.pack(problem, row, depth);
        if self.items[..self.next].last().is_none_or(|&last| rank > last) {
            self.add(rank);
        }
        Some(())
    }

    #[inline]
    fn add(&mut self, item: u64) {
        self.drafts += 1;
        self.value += self.ground.ranking.value(self.ground.problem, item);
        self.priced_us += self.query_us(item) + self.call_change(depth_of(item), 1);
    }

    fn remove(&mut self, item: u64) {
        self.drafts -= 1;
        self.value -= self.ground.ranking.value(self.ground.problem, item);
        self.priced_us += self.call_change(depth_of(item), -1) - self.query_us(item);
    }

    #[inline]
    fn query_us(&self, item: u64) -> f64 {
        if self.ground.ranking.priced {
            f64::from(self.ground.problem.rows[row_of(item)].query_us)
        } else {
            0.0
        }
    }

    /// Counts a row of the draft call at `depth` in or out; returns the change of its time.
    #[inline]
    fn call_change(&mut self, depth: usize, change: i32) -> f64 {
        if depth < self.ground.drafted {
            return 0.0;
        }
        let before = self.at_depth[depth];
        let after = before.saturating_add_signed(change);
        self.at_depth[depth] = after;
        let one_more_us = self.ground.call_us[before.min(after) as usize];
        if change > 0 { one_more_us } else { -one_more_us }
    }
}
