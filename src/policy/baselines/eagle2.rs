//! `eagle2:N`: EAGLE-2's dynamic trees (Li et al., EMNLP 2024, arXiv 2406.16858) with a fixed budget,
//! and `sglang-tree`, the same with SGLang's defaults.
//!
//! Each level of the tree is drafted behind the likeliest nodes of the level before, and of all nodes
//! the likeliest `N` are verified. How wide and how deep a tree grows is fixed: `sglang-tree` has five
//! levels, feeds up to four nodes of each and verifies seven drafts, which with the last committed token
//! is SGLang's `--speculative-num-steps 5 --speculative-eagle-topk 4 --speculative-num-draft-tokens 8`.
//! `eagle2` feeds two nodes of a level, and goes as deep as the drafts allowed per step suffice for.
//! Neither looks at load or objectives. Not kept: more than two children of a node, of which the
//! releases have 10 and 4, since a drafter here proposes two.

use super::draft_everywhere;
use crate::policy::{Policy, Scratch};
use crate::protocol::{DraftSet, DraftShape, DraftedRow, OpenDraft, Step, StepDecision, StepView};

/// Nodes of a level that `eagle2` feeds.
const WIDTH: u32 = 2;

/// See the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eagle2 {
    name: String,
    /// Drafts of a sequence that are verified.
    verified: u32,
    /// Most drafts that are made for it, as a [decision](StepDecision::drafts) counts them.
    drafts: u32,
    width: u32,
    levels: u32,
}

impl Eagle2 {
    /// `eagle2:N`, which makes up to `draft_tokens_max` drafts and at least `N`.
    pub fn with_budget(verified: u32, draft_tokens_max: u32) -> Eagle2 {
        let drafts = draft_tokens_max.max(verified);
        let levels = 1 + (drafts - 1).div_ceil(WIDTH);
        Eagle2 { name: format!("eagle2:{verified}"), verified, drafts, width: WIDTH, levels }
    }

    /// `sglang-tree`, which makes up to `draft_tokens_max` drafts.
    pub fn sglang(draft_tokens_max: u32) -> Eagle2 {
        Eagle2 { name: "sglang-tree".to_owned(), verified: 7, drafts: draft_tokens_max, width: 4, levels: 5 }
    }
}

impl Policy for Eagle2 {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn plan(&self, view: &StepView, _: &mut Scratch) -> StepDecision {
        StepDecision { shape: DraftShape::Tree, ..draft_everywhere(view, self.drafts) }
    }

    fn expand(
        &self,
        _: Step<'_>,
        rows: &[DraftedRow],
        open: &[OpenDraft],
        scratch: &mut Scratch,
        keep: &mut Vec<u32>,
    ) {
        scratch.paths.widen(rows, open, (self.width as usize, self.levels), keep);
    }

    fn choose(&self, _: Step<'_>, rows: &[DraftedRow], scratch: &mut Scratch, chosen: &mut Vec<DraftSet>) {
        scratch.paths.rank(rows);
        let from = chosen.len();
        chosen.resize(from + rows.len(), DraftSet::default());
        for of_row in scratch.paths.order.chunk_by(|a, b| a.row == b.row) {
            for candidate in of_row.iter().take(self.verified as usize) {
                candidate.take(&mut chosen[from..]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::paths::tests::tree;
    use super::*;
    use crate::protocol::DecodeView;

    fn view() -> StepView {
        StepView { decoding: vec![DecodeView::example()], ..StepView::default() }
    }

    #[test]
    fn it_grows_as_deep_as_its_drafts_suffice_for_two_nodes_a_level() {
        let depths = [(16, 16), (8, 16), (8, 8), (1, 1)].map(|(n, most)| Eagle2::with_budget(n, most).levels);
        assert_eq!(depths, [9, 9, 5, 1]);
        let decision = Eagle2::with_budget(4, 6).plan(&view(), &mut Scratch::default());
        assert_eq!((decision.shape, decision.drafts), (DraftShape::Tree, vec![6]));
    }

    #[test]
    fn of_all_nodes_the_likeliest_are_verified() {
        let nodes = [(0, 0, 0, 0.6), (0, 0, 1, 0.6), (1, 1, 0, 0.5), (1, 1, 1, 0.5)];
        let rows = [tree(0, &nodes), tree(1, &nodes)];
        let (view, granted) = (view(), StepDecision::default());
        let mut chosen = vec![DraftSet::first(1)];
        let step = Step { view: &view, granted: &granted };
        Eagle2::with_budget(3, 8).choose(step, &rows, &mut Scratch::default(), &mut chosen);
        let sets: Vec<Vec<usize>> = chosen.iter().map(|set| set.iter().collect()).collect();
        assert_eq!(sets, [vec![0], vec![0, 1, 2], vec![0, 1, 2]], "what was there stays");
    }
}
