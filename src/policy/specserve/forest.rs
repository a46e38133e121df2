//! The trees of a step, for the planner: their drafts by falling survival, and what may follow those
//! that can be fed.

use std::ops::Range;

use super::option::{Hurdle, Next};
use crate::policy::survival::POSITIONS_MAX;
use crate::protocol::DraftSet;

/// The trees of a step. Keeps its memory from step to step.
#[derive(Debug, Default)]
pub(super) struct Forest {
    /// Survival of all drafts, tree by tree.
    survival: Vec<f32>,
    /// For each decoding request, where its tree is in it.
    trees: Vec<Range<usize>>,
    /// For each request, its best drafts as [keys](key), [`POSITIONS_MAX`] for each.
    ranked: Vec<u64>,
    /// For each request, how many of them there are.
    positions: Vec<u32>,
    /// For each request, the survival that a draft needs to be among the best that may be verified.
    floors: Vec<f32>,
    /// For each open draft, what may follow it.
    branches: Vec<Branch>,
    /// Forecast survival of the drafts of all branches.
    forecast: Vec<f32>,
    /// Keys of one tree, then the best survivals of one tree.
    keys: Vec<u64>,
    best: Vec<u32>,
}

/// What may follow an open draft.
#[derive(Clone, Debug, Default)]
struct Branch {
    request: usize,
    /// Of the next draft.
    next: Next,
    /// Where the survival of its drafts is.
    forecast: Range<usize>,
}

impl Forest {
    /// Begins with a step of so many decoding requests, none of which has a tree.
    pub(super) fn begin(&mut self, requests: usize) {
        self.survival.clear();
        self.trees.clear();
        self.trees.resize(requests, 0..0);
        self.ranked.resize(requests * POSITIONS_MAX, 0);
        self.positions.clear();
        self.positions.resize(requests, 0);
        self.floors.clear();
        self.floors.resize(requests, 0.0);
        self.branches.clear();
        self.forecast.clear();
    }

    /// Adds a request's tree, whose drafts' survival `measure` appends, and ranks at most `most` of them
    /// that survive with `least` or more.
    pub(super) fn add_tree(
        &mut self,
        request: usize,
        (least, most): (f32, usize),
        measure: impl FnOnce(&mut Vec<f32>),
    ) {
        let first = self.survival.len();
        measure(&mut self.survival);
        self.trees[request] = first..self.survival.len();
        let drafts = (0..).zip(&self.survival[first..]).filter(|&(_, &survival)| survival >= least);
        self.keys.clear();
        self.keys.extend(drafts.map(|(draft, &survival)| key(survival, draft)));
        self.keys.sort_unstable();
        self.keys.truncate(most.min(POSITIONS_MAX));
        self.ranked[request * POSITIONS_MAX..][..self.keys.len()].copy_from_slice(&self.keys);
        self.positions[request] = self.keys.len() as u32;
    }

    /// Survival of a draft of a request's tree.
    pub(super) fn survival(&self, request: usize, draft: usize) -> f32 {
        self.survival[self.trees[request].clone()][draft]
    }

    /// Survival of the least of a request's ranked drafts, if they are as many as may be verified; else 0.
    pub(super) fn least_made(&self, request: usize, most: usize) -> f32 {
        let made = self.made(request);
        if made.len() < most { 0.0 } else { made.last().map_or(0.0, |&key| survival_of(key)) }
    }

    fn made(&self, request: usize) -> &[u64] {
        &self.ranked[request * POSITIONS_MAX..][..self.positions[request] as usize]
    }

    /// Adds the branch of the next open draft: what is expected of its first draft, and the forecast
    /// survival of all its drafts, as far as it counts.
    pub(super) fn add_branch(&mut self, request: usize, next: Next, survival: impl Iterator<Item = f32>) {
        let first = self.forecast.len();
        self.forecast.extend(survival);
        self.branches.push(Branch { request, next, forecast: first..self.forecast.len() });
    }

    /// Cuts the branches that were added last, all those of one request, to drafts that are among the
    /// `most` best of its tree: more are not verified, so what would only push out better drafts is not
    /// worth a draft call.
    pub(super) fn hold_to_best(&mut self, branches: usize, most: usize) {
        let first = self.branches.len() - branches;
        let Some(&Branch { request, .. }) = self.branches.get(first) else { return };
        let least_made = self.least_made(request, most);
        let made = &self.ranked[request * POSITIONS_MAX..][..self.positions[request] as usize];
        let branches = &mut self.branches[first..];
        // survival is not negative, so its bits are in order
        self.best.clear();
        for branch in branches.iter() {
            let better = self.forecast[branch.forecast.clone()].iter().filter(|&&one| one > least_made);
            self.best.extend(better.map(|one| one.to_bits()));
        }
        let mut floor = least_made;
        if made.len() + self.best.len() > most && most > 0 {
            self.best.extend(made.iter().map(|&key| survival_of(key).to_bits()));
            let (_, least, _) = self.best.select_nth_unstable_by(most - 1, |a, b| b.cmp(a));
            floor = f32::from_bits(*least);
        }
        self.floors[request] = floor;
        for Branch { forecast, .. } in branches {
            let among_best = self.forecast[forecast.clone()].iter().take_while(|&&one| one >= floor);
            *forecast = forecast.start..forecast.start + among_best.count();
        }
    }

    /// For each request, the survival of its ranked drafts.
    pub(super) fn requests(&self) -> impl Iterator<Item = impl Iterator<Item = f32> + '_> {
        (0..self.positions.len()).map(|request| self.made(request).iter().map(|&key| survival_of(key)))
    }

    /// The branches that have drafts: the request of each, and the survival of its drafts.
    pub(super) fn grown(&self) -> impl Iterator<Item = (usize, &[f32])> {
        let grown = self.branches.iter().filter(|branch| !branch.forecast.is_empty());
        grown.map(|branch| (branch.request, &self.forecast[branch.forecast.clone()]))
    }

    /// For each open draft, whether its branch has drafts, and with it the branch's number among those
    /// that do.
    pub(super) fn grown_numbers(&self) -> impl Iterator<Item = Option<usize>> + '_ {
        let mut grown = 0..;
        self.branches.iter().map(move |branch| if branch.forecast.is_empty() { None } else { grown.next() })
    }

    /// Whether the first draft of an open draft's branch clears the hurdle, and may turn out to be among
    /// the best of its tree; `weights` are those of the requests.
    pub(super) fn clears(&self, hurdle: &Hurdle, open: usize, weight: impl Fn(usize) -> f32) -> bool {
        let Branch { request, next, .. } = self.branches[open];
        let weight = weight(request);
        let marginal_value = hurdle.marginal_value.max(weight * self.floors[request]);
        Hurdle { marginal_value, ..*hurdle }.is_cleared_by(weight, next)
    }

    /// The first `count` of a request's ranked drafts.
    pub(super) fn best_drafts(&self, request: usize, count: u32) -> DraftSet {
        let mut drafts = DraftSet::default();
        let ranked = &self.ranked[request * POSITIONS_MAX..][..count as usize];
        ranked.iter().for_each(|&key| drafts.insert(key as u32 as usize));
        drafts
    }
}

/// A number that is the smaller, the likelier a draft survives; of equals the first draft comes first,
/// so that none comes before what it follows.
fn key(survival: f32, draft: u32) -> u64 {
    u64::from(!survival.to_bits()) << 32 | u64::from(draft)
}

fn survival_of(key: u64) -> f32 {
    f32::from_bits(!((key >> 32) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two requests, of which the second has a tree.
    fn forest(survival: &[f32], most: usize) -> Forest {
        let mut forest = Forest::default();
        forest.begin(2);
        forest.add_tree(1, (0.01, most), |all| all.extend_from_slice(survival));
        forest
    }

    fn ranked(forest: &Forest) -> Vec<Vec<f32>> {
        forest.requests().map(Iterator::collect).collect()
    }

    #[test]
    fn drafts_are_ranked_by_survival_and_equals_by_their_order() {
        let forest = forest(&[0.5, 0.2, 0.005, 0.5, 0.3], 4);
        assert_eq!(ranked(&forest), [vec![], vec![0.5, 0.5, 0.3, 0.2]]);
        let best = |count| forest.best_drafts(1, count).iter().collect::<Vec<_>>();
        assert_eq!((best(1), best(2), best(3)), (vec![0], vec![0, 3], vec![0, 3, 4]));
        assert_eq!((forest.survival(1, 2), forest.survival(1, 4)), (0.005, 0.3));
    }

    #[test]
    fn branches_are_cut_to_drafts_that_may_be_verified() {
        let mut forest = forest(&[0.9, 0.4, 0.2], 4);
        for branch in [&[0.8, 0.3, 0.1][..], &[0.35, 0.05], &[0.01]] {
            forest.add_branch(1, Next::default(), branch.iter().copied());
        }
        forest.hold_to_best(3, 4);
        // the four best are 0.9, 0.8, 0.4 and 0.35
        let grown: Vec<_> = forest.grown().collect();
        assert_eq!(grown, [(1, &[0.8][..]), (1, &[0.35][..])]);
        assert_eq!(forest.grown_numbers().collect::<Vec<_>>(), [Some(0), Some(1), None]);
        let sure = |mean| Next { mean, spread: 0.0 };
        let clears = |forest: &mut Forest, mean| {
            forest.branches[2].next = sure(mean);
            forest.clears(&Hurdle { marginal_value: 0.1, price: 0.0 }, 2, |_| 1.0)
        };
        assert!(clears(&mut forest, 0.36) && !clears(&mut forest, 0.34), "held to the fourth best");
    }

    #[test]
    fn where_there_is_room_for_all_drafts_all_branches_stay_whole() {
        let mut forest = forest(&[0.9, 0.4], 8);
        forest.add_branch(1, Next::default(), [0.3, 0.02].into_iter());
        forest.hold_to_best(1, 8);
        assert_eq!(forest.grown().collect::<Vec<_>>(), [(1, &[0.3, 0.02][..])]);
    }

    #[test]
    fn a_full_tree_lets_only_better_drafts_grow() {
        let mut forest = forest(&[0.9, 0.4], 2);
        forest.add_branch(1, Next::default(), [0.6, 0.39].into_iter());
        forest.add_branch(1, Next::default(), [0.3].into_iter());
        forest.hold_to_best(2, 2);
        assert_eq!(forest.grown().collect::<Vec<_>>(), [(1, &[0.6][..])]);
    }
}
