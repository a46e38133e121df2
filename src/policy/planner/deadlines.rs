//! When a growing step starts to ask for more drafts of a request.

use super::Problem;
use crate::policy::survival::POSITIONS_MAX;

/// When the step gets longer than `at_us`, `row` must have the draft at `depth` (from 0).
/// A depth that the row does not have makes such a step infeasible.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    pub(super) at_us: f64,
    pub(super) depth: u16,
    pub(super) row: u16,
}

/// Lists the deadlines that any step worth examining would pass, earliest first.
pub(super) fn list(problem: &Problem<'_>, longest_us: f64, deadlines: &mut Vec<Deadline>) {
    deadlines.clear();
    let mut stop_us = longest_us;
    for (row, terms) in problem.rows.iter().enumerate() {
        let Some(bound) = terms.bound else { continue };
        let mut tokens = 1.0;
        let positions = (terms.positions as usize).min(POSITIONS_MAX);
        for depth in 0..=positions {
            let at_us = bound.deadline_us(tokens);
            if at_us > stop_us {
                break;
            }
            deadlines.push(Deadline { at_us, depth: depth as u16, row: row as u16 });
            if depth < positions {
                tokens += f64::from(problem.survival(row, depth));
            } else {
                stop_us = at_us;
            }
        }
    }
    deadlines.retain(|deadline| deadline.at_us <= stop_us);
    deadlines.sort_unstable_by(|a, b| a.at_us.total_cmp(&b.at_us).then(a.depth.cmp(&b.depth)));
}
