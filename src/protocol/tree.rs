//! Trees of drafts: places of drafts, sets of them, and what became of them.
//!
//! A drafter's answer behind a node has two candidates: its choice, and the runner-up under the same
//! noise. A chain takes the choices alone.

use super::{Proposal, TokenId};

/// How a step's drafts may stand to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DraftShape {
    /// Each draft follows the one before.
    #[default]
    Chain,
    /// Runner-ups are drafts, too, and where the drafter can do it, drafts may follow them.
    Tree,
}

/// Where a draft stands in its row's tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DraftPlace {
    /// What it follows: 0 is the last committed token, `j > 0` the row's draft `j - 1`.
    pub parent: u32,
    /// Drafts before it on its path.
    pub depth: u32,
    /// 0 for the drafter's choice behind its parent, 1 for the runner-up.
    pub rank: u32,
}

impl DraftPlace {
    /// The parent's index in the row; `None` for the last committed token.
    pub fn parent_draft(self) -> Option<usize> {
        (self.parent as usize).checked_sub(1)
    }
}

/// A draft that the drafter may be fed next, so that it proposes what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenDraft {
    /// Index of its row among those that draft.
    pub row: u32,
    /// Its index in the row.
    pub draft: u32,
}

/// Some of a row's drafts, by their index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DraftSet(u64);

impl DraftSet {
    /// Most drafts of a row: those that a set, and an executor's ancestor masks, can hold.
    pub const DRAFTS_MAX: usize = 64;

    /// The first `count` drafts of a row.
    pub fn first(count: usize) -> DraftSet {
        DraftSet(if count >= 64 { u64::MAX } else { (1 << count) - 1 })
    }

    /// Adds a draft.
    ///
    /// # Panics
    /// In debug builds, for an index of [`DRAFTS_MAX`](Self::DRAFTS_MAX) or more.
    pub fn insert(&mut self, draft: usize) {
        debug_assert!(draft < DraftSet::DRAFTS_MAX, "draft {draft}");
        self.0 |= 1 << draft;
    }

    /// Whether it holds a draft.
    pub fn contains(self, draft: usize) -> bool {
        draft < DraftSet::DRAFTS_MAX && self.0 >> draft & 1 == 1
    }

    /// Whether it holds what a draft at this place follows.
    pub fn contains_parent(self, place: DraftPlace) -> bool {
        place.parent_draft().is_none_or(|parent| self.contains(parent))
    }

    /// How many it holds.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether it holds none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many drafts both sets hold.
    pub fn common(self, other: DraftSet) -> usize {
        DraftSet(self.0 & other.0).len()
    }

    /// The drafts, ascending.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..DraftSet::DRAFTS_MAX).filter(move |&draft| self.contains(draft))
    }
}

/// Proposals of one decoding sequence so far in this step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DraftedRow {
    /// Index into [`StepView::decoding`](super::StepView::decoding).
    pub decoding: u32,
    /// The drafts, parents before children. One that is a runner-up has the probability and the margin
    /// of the choice beside it, and that choice as its own runner-up.
    pub proposals: Vec<Proposal>,
    /// Where each stands in a tree; empty for a chain.
    pub places: Vec<DraftPlace>,
}

/// What became of a row's drafts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DraftOutcome {
    /// Those that the target verified; with each the one that it follows.
    pub verified: DraftSet,
    /// The accepted path.
    pub accepted: DraftSet,
    /// The target's own token behind the path; `None` for a row that failed.
    pub next: Option<TokenId>,
}

impl DraftOutcome {
    /// Whether the target verified a choice behind accepted drafts.
    pub fn examined(&self, draft: usize, place: DraftPlace) -> bool {
        place.rank == 0 && self.verified.contains(draft) && self.accepted.contains_parent(place)
    }
}

/// A drafter's answer at a place that the target reached, whose choice was wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WrongChoice<'a> {
    /// Drafts before it, from 0.
    pub depth: u32,
    /// The answer.
    pub proposal: &'a Proposal,
    /// Whether the runner-up is the target's token.
    pub runner_up_is_right: bool,
}

impl DraftedRow {
    /// A row whose proposals are a chain.
    pub fn chain(decoding: u32, proposals: Vec<Proposal>) -> DraftedRow {
        DraftedRow { decoding, proposals, places: Vec::new() }
    }

    /// Whether the row is a tree.
    pub fn is_tree(&self) -> bool {
        !self.places.is_empty()
    }

    /// Where a draft stands.
    ///
    /// # Panics
    /// For an index that a tree does not have.
    pub fn place(&self, draft: usize) -> DraftPlace {
        match self.is_tree() {
            true => self.places[draft],
            false => DraftPlace { parent: draft as u32, depth: draft as u32, rank: 0 },
        }
    }

    /// Answers of the drafter at a depth, of which the row's drafts are the candidates.
    pub fn answers_at(&self, depth: usize) -> usize {
        match self.is_tree() {
            true => {
                let is_answer = |place: &&DraftPlace| place.rank == 0 && place.depth as usize == depth;
                self.places.iter().filter(is_answer).count()
            }
            false => usize::from(self.proposals.len() > depth),
        }
    }

    /// Adds the [answers](Self::answers_at) at each depth to `counts`, as far as it goes.
    pub fn count_answers(&self, counts: &mut [usize]) {
        if !self.is_tree() {
            counts.iter_mut().take(self.proposals.len()).for_each(|count| *count += 1);
        }
        for place in self.places.iter().filter(|place| place.rank == 0) {
            if let Some(count) = counts.get_mut(place.depth as usize) {
                *count += 1;
            }
        }
    }

    /// The path of the drafter's own choices, from the committed tokens on: each with its depth.
    pub fn choices(&self) -> impl Iterator<Item = (usize, &Proposal)> {
        let mut end = 0;
        self.proposals.iter().enumerate().filter_map(move |(draft, proposal)| {
            let place = self.place(draft);
            let goes_on = place.rank == 0 && place.parent == end;
            goes_on.then(|| {
                end = draft as u32 + 1;
                (place.depth as usize, proposal)
            })
        })
    }

    /// Drafts on the longest path.
    pub fn depth(&self) -> usize {
        match self.is_tree() {
            true => self.places.iter().map(|place| place.depth as usize + 1).max().unwrap_or(0),
            false => self.proposals.len(),
        }
    }

    /// The members of `set` whose ancestors are members, too, at most `limit` and the first ones first.
    pub fn rooted(&self, set: DraftSet, limit: usize) -> DraftSet {
        let mut rooted = DraftSet::default();
        for draft in 0..self.proposals.len().min(DraftSet::DRAFTS_MAX) {
            if rooted.len() < limit && set.contains(draft) && rooted.contains_parent(self.place(draft)) {
                rooted.insert(draft);
            }
        }
        rooted
    }

    /// The drafts of a [rooted](Self::rooted) set in the order in which the target is given them: first
    /// the path of choices, which is the likeliest, so that its keys and values stay where they are;
    /// then the others. Parents stand before their children.
    pub fn verification_order(&self, set: DraftSet) -> Vec<u32> {
        if !self.is_tree() {
            return set.iter().map(|draft| draft as u32).collect();
        }
        let mut order = Vec::with_capacity(set.len());
        let mut path = DraftSet::default();
        let mut end = 0;
        for draft in set.iter() {
            let place = self.place(draft);
            if place.parent == end && place.rank == 0 {
                end = draft as u32 + 1;
                path.insert(draft);
                order.push(draft as u32);
            }
        }
        order.extend(set.iter().filter(|&draft| !path.contains(draft)).map(|draft| draft as u32));
        order
    }

    /// The wrong choices at the places that the target reached, given what became of the row: the
    /// target's token is known there whether or not the candidates were verified.
    pub fn wrong_choices(&self, outcome: DraftOutcome) -> impl Iterator<Item = WrongChoice<'_>> {
        let answers = self.proposals.iter().take(DraftSet::DRAFTS_MAX).enumerate();
        answers.filter_map(move |(draft, proposal)| {
            let place = self.place(draft);
            if place.rank > 0 || !outcome.accepted.contains_parent(place) {
                return None;
            }
            let token = self.token_behind(place.parent, outcome)?;
            (token != proposal.token).then_some(WrongChoice {
                depth: place.depth,
                proposal,
                runner_up_is_right: token == proposal.runner_up,
            })
        })
    }

    /// The target's token behind a node of the accepted path.
    fn token_behind(&self, parent: u32, outcome: DraftOutcome) -> Option<TokenId> {
        let child = outcome.accepted.iter().find(|&draft| self.place(draft).parent == parent);
        child.map_or(outcome.next, |draft| Some(self.proposals.get(draft)?.token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proposal(token: TokenId, runner_up: TokenId) -> Proposal {
        Proposal { token, runner_up, finite: true, ..Proposal::default() }
    }

    fn place(parent: u32, depth: u32, rank: u32) -> DraftPlace {
        DraftPlace { parent, depth, rank }
    }

    /// Choice 1 and runner-up 2; behind 1 stand 3 and 4, behind 2 stands 5, behind 3 stands 6.
    fn tree() -> DraftedRow {
        DraftedRow {
            decoding: 0,
            proposals: [(1, 2), (2, 1), (3, 4), (4, 3), (5, 0), (6, 0)].map(|(a, b)| proposal(a, b)).to_vec(),
            places: vec![
                place(0, 0, 0),
                place(0, 0, 1),
                place(1, 1, 0),
                place(1, 1, 1),
                place(2, 1, 0),
                place(3, 2, 0),
            ],
        }
    }

    fn set(drafts: &[usize]) -> DraftSet {
        let mut set = DraftSet::default();
        drafts.iter().for_each(|&draft| set.insert(draft));
        set
    }

    #[test]
    fn sets_hold_what_was_put_in_up_to_the_last_of_sixty_four() {
        let odd = set(&[1, 5, 63]);
        assert_eq!(odd.iter().collect::<Vec<_>>(), [1, 5, 63]);
        assert!(odd.contains(63) && !odd.contains(0) && !odd.contains(64));
        assert_eq!((odd.len(), odd.common(set(&[5, 6, 63])), odd.is_empty()), (3, 2, false));
        assert_eq!(DraftSet::first(3), set(&[0, 1, 2]));
        assert_eq!(
            (DraftSet::first(0).len(), DraftSet::first(64).len(), DraftSet::first(99).len()),
            (0, 64, 64)
        );
    }

    #[test]
    fn what_has_lost_an_ancestor_or_exceeds_the_limit_is_dropped() {
        let rooted = |drafts: &[usize], limit| tree().rooted(set(drafts), limit).iter().collect::<Vec<_>>();
        assert_eq!(rooted(&[0, 1, 2, 3, 4, 5], 9), [0, 1, 2, 3, 4, 5]);
        assert_eq!(rooted(&[0, 1, 2, 3, 4, 5], 4), [0, 1, 2, 3]);
        assert_eq!(rooted(&[1, 2, 4, 5], 9), [1, 4]);
        assert_eq!(rooted(&[0, 5, 40], 9), [0]);
        let chain = DraftedRow::chain(0, vec![proposal(1, 2); 3]);
        assert_eq!(chain.rooted(set(&[0, 2]), 9), set(&[0]));
    }

    #[test]
    fn the_path_of_choices_is_verified_first() {
        let order = |drafts: &[usize]| tree().verification_order(set(drafts));
        assert_eq!(order(&[0, 1, 2, 3, 4, 5]), [0, 2, 5, 1, 3, 4]);
        assert_eq!(order(&[0, 1, 4]), [0, 1, 4]);
        assert_eq!(order(&[1, 4]), [1, 4]);
        assert_eq!(DraftedRow::chain(0, vec![proposal(1, 2); 3]).verification_order(set(&[0, 1])), [0, 1]);
    }

    #[test]
    fn a_tree_counts_its_answers_and_its_depth() {
        let (tree, chain) = (tree(), DraftedRow::chain(0, vec![proposal(1, 2); 2]));
        assert_eq!([0, 1, 2, 3].map(|depth| tree.answers_at(depth)), [1, 2, 1, 0]);
        assert_eq!([0, 1, 2].map(|depth| chain.answers_at(depth)), [1, 1, 0]);
        let mut counts = [0; 3];
        [&tree, &chain].into_iter().for_each(|row| row.count_answers(&mut counts));
        assert_eq!(counts, [2, 3, 1]);
        assert_eq!((tree.depth(), chain.depth()), (3, 2));
        let choices =
            |row: &DraftedRow| row.choices().map(|(depth, one)| (depth, one.token)).collect::<Vec<_>>();
        assert_eq!(choices(&tree), [(0, 1), (1, 3), (2, 6)]);
        assert_eq!(choices(&chain), [(0, 1), (1, 1)]);
    }

    #[test]
    fn a_choice_is_known_to_be_wrong_wherever_the_target_came_by() {
        let seen = |accepted: &[usize], next| {
            let outcome = DraftOutcome { accepted: set(accepted), next, ..DraftOutcome::default() };
            let row = tree();
            row.wrong_choices(outcome)
                .map(|wrong| (wrong.depth, wrong.runner_up_is_right))
                .collect::<Vec<_>>()
        };
        // 1, then 4 in place of 3
        assert_eq!(seen(&[0, 3], Some(9)), [(1, true)]);
        // 2 in place of 1, then something else than 5
        assert_eq!(seen(&[1], Some(9)), [(0, true), (1, false)]);
        assert_eq!(seen(&[0, 2, 5], Some(9)), []);
        assert_eq!(seen(&[], Some(7)), [(0, false)]);
        assert_eq!(seen(&[], None), [], "a row that failed says nothing");
        let chain = DraftedRow::chain(0, vec![proposal(1, 2), proposal(3, 4)]);
        let outcome = DraftOutcome { accepted: set(&[0]), next: Some(4), ..DraftOutcome::default() };
        let wrong: Vec<_> = chain.wrong_choices(outcome).map(|wrong| wrong.runner_up_is_right).collect();
        assert_eq!(wrong, [true], "the second, which need not have been verified");
    }
}
