//! Which depth caps can hold the optimum: cheap bounds before an exact sweep.
//!
//! Sweeping a cap costs as much as all its positions. Most caps are ruled out by an upper
//! bound: with `c` draft calls and `n` drafts a step is worth at most what the best `n`
//! positions of any depth are worth, and at most all positions above the cap.

use super::sweep::{Candidate, Ground};
use crate::policy::survival::POSITIONS_MAX;

/// Numbers of drafts that are ruled out together.
const CHUNK: usize = 32;

/// Sums that the bounds are made of.
#[derive(Debug, Default)]
pub(super) struct Caps {
    /// Value of the best `n` positions.
    best: Vec<f64>,
    /// Value of all positions above each cap, and how many they are.
    all: [(f64, usize); POSITIONS_MAX + 1],
}

impl Caps {
    pub(super) fn prepare(&mut self, ground: &Ground<'_>, deepest: usize, items: &[u64]) {
        let problem = ground.problem;
        self.best.clear();
        let mut value = 0.0;
        self.best.push(value);
        for &item in &items[..ground.target_us.len() - 1] {
            value += ground.ranking.value(problem, item);
            self.best.push(value);
        }
        self.sum_depths(ground, deepest);
    }

    fn sum_depths(&mut self, ground: &Ground<'_>, deepest: usize) {
        let problem = ground.problem;
        let (mut value, mut count) = (0.0, 0);
        self.all[0] = (value, count);
        for depth in 0..deepest {
            let survival = &problem.survival[depth * problem.rows.len()..];
            for (terms, &survival) in problem.rows.iter().zip(survival) {
                if depth < terms.positions as usize {
                    value += f64::from(terms.weight * survival);
                    count += 1;
                }
            }
            self.all[depth + 1] = (value, count);
        }
    }

    /// The cap that is best when every position above it is taken, as far as rows allow: a
    /// guess, made to rule out as many of the others as possible.
    pub(super) fn favourite(&self, ground: &Ground<'_>, deepest: usize) -> usize {
        let problem = ground.problem;
        let call_us = problem.draft.at(problem.rows.len());
        let rate = |cap: usize| {
            let (all, count) = self.all[cap];
            let drafts = count.min(self.best.len() - 1);
            let calls_us = call_us * (cap - ground.drafted) as f64;
            (ground.weight + self.best[drafts].min(all))
                / (problem.priced_us + ground.target_us[drafts] + calls_us)
        };
        let better = |best: usize, cap: usize| if rate(cap) > rate(best) { cap } else { best };
        (ground.drafted..=deepest).fold(ground.drafted, better)
    }

    /// Whether a sweep of `cap` could find a plan at least as good as `best`.
    pub(super) fn may_beat(&self, ground: &Ground<'_>, cap: usize, best: &Candidate) -> bool {
        // Context prices can make the rank differ from the value: then nothing is ruled out.
        if ground.ranking.priced {
            return true;
        }
        let problem = ground.problem;
        let fixed_us = problem.priced_us + problem.draft.at(1) * (cap - ground.drafted) as f64;
        let rate = best.plan.rate();
        let (all, count) = self.all[cap];
        let last = count.min(self.best.len() - 1);
        let reaches = |value: f64, target_us: f64| {
            ground.weight + value.min(all) >= rate * (fixed_us + target_us) * (1.0 - 1e-9)
        };
        // The value at a chunk's end and the time at its start bound the whole chunk.
        (0..=last).step_by(CHUNK).any(|from| {
            let to = (from + CHUNK - 1).min(last);
            reaches(self.best[to], ground.target_us[from])
                && (from..=to).any(|drafts| reaches(self.best[drafts], ground.target_us[drafts]))
        })
    }
}
