//! The masks of a constrained sequence along its drafts.

use std::sync::Arc;

use crate::protocol::{ConstraintState, SequenceInput, TokenId, TokenMask, VerifyRow};

/// A constrained sequence behind its committed tokens or behind a draft, and what may follow there.
#[derive(Debug)]
struct Node {
    state: Box<dyn ConstraintState>,
    /// `None` until it was asked for.
    mask: Option<Option<Arc<TokenMask>>>,
}

impl Node {
    fn new(state: Box<dyn ConstraintState>) -> Node {
        Node { state, mask: None }
    }

    fn mask(&mut self) -> Option<&Arc<TokenMask>> {
        let state = &mut self.state;
        self.mask.get_or_insert_with(|| state.mask()).as_ref()
    }
}

/// The drafts of a constrained sequence: node 0 stands behind its committed tokens, node `j > 0`
/// behind its draft `j - 1`.
#[derive(Debug)]
pub(super) struct ConstrainedDrafts {
    nodes: Vec<Node>,
}

impl ConstrainedDrafts {
    /// Behind a row's committed tokens; `None` for a request without a constraint, and for a row
    /// without a history, which the executor refuses.
    pub fn of(input: &SequenceInput) -> Option<ConstrainedDrafts> {
        let constraint = input.sampling.constraint.as_ref()?;
        let history = input.history.as_ref()?;
        let output = &history.tokens[history.prompt_tokens as usize..];
        Some(ConstrainedDrafts { nodes: vec![Node::new(constraint.state(output))] })
    }

    /// The tokens that may follow a node; `None`: any.
    pub fn mask(&mut self, node: usize) -> Option<&Arc<TokenMask>> {
        self.nodes.get_mut(node)?.mask()
    }

    /// Whether some token may follow a node.
    pub fn goes_on(&mut self, node: usize) -> bool {
        self.mask(node).is_none_or(|mask| !mask.is_empty())
    }

    /// Adds the draft that follows a node; whether it is allowed.
    pub fn add(&mut self, parent: usize, token: TokenId) -> bool {
        let allowed = parent < self.nodes.len() && self.mask(parent).is_none_or(|mask| mask.allows(token));
        if allowed {
            let mut state = self.nodes[parent].state.fork();
            state.advance(token);
            self.nodes.push(Node::new(state));
        }
        allowed
    }

    /// The tokens that must follow the committed ones, as far as they are known.
    pub fn forced(&mut self) -> Vec<TokenId> {
        self.nodes[0].state.forced()
    }
}

/// Gives a row its masks, if its request is constrained: those behind its committed tokens and behind
/// the drafts that it verifies, which are these of `drafts`.
pub(super) fn constrain(row: &mut VerifyRow, drafts: Option<&mut ConstrainedDrafts>, order: &[u32]) {
    if !row.samples() {
        return;
    }
    let mut root = None;
    let drafts = match drafts {
        Some(drafts) => drafts,
        None => match ConstrainedDrafts::of(&row.input) {
            Some(alone) => root.insert(alone),
            None => return,
        },
    };
    let nodes = std::iter::once(0).chain(order.iter().map(|&draft| draft as usize + 1));
    row.masks.clear();
    row.masks.extend(nodes.map(|node| drafts.mask(node).cloned()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{BlockId, History, RequestId, SamplingParams, TokenConstraint};

    /// Each token is larger than the one before it; the first may be any of a hundred.
    #[derive(Clone, Debug)]
    struct Ascending(Option<TokenId>);

    impl TokenConstraint for Ascending {
        fn state(&self, output: &[TokenId]) -> Box<dyn ConstraintState> {
            assert!(output.is_sorted(), "asked for an output that it forbids: {output:?}");
            Box::new(Ascending(output.last().copied()))
        }
    }

    impl ConstraintState for Ascending {
        fn mask(&mut self) -> Option<Arc<TokenMask>> {
            let last = self.0?;
            Some(Arc::new(TokenMask::from_fn(100, |token| token > last)))
        }

        fn advance(&mut self, token: TokenId) {
            assert!(self.0.is_none_or(|last| token > last), "goes on by a token that it forbids");
            self.0 = Some(token);
        }

        fn fork(&self) -> Box<dyn ConstraintState> {
            Box::new(self.clone())
        }
    }

    fn row(constrained: bool, output: &[TokenId]) -> VerifyRow {
        let constraint = constrained.then(|| Arc::new(Ascending(None)) as Arc<dyn TokenConstraint>);
        VerifyRow::decode(SequenceInput {
            request: RequestId(1),
            tokens: vec![7],
            start: 5,
            blocks: vec![BlockId(0)],
            sampling: Arc::new(SamplingParams { constraint, ..SamplingParams::greedy() }),
            history: Some(History { tokens: [&[90, 3], output].concat(), prompt_tokens: 2 }),
        })
    }

    /// Drafts of `(parent, token)` behind this output, and which of them are allowed.
    fn drafts(output: &[TokenId], tree: &[(usize, TokenId)]) -> (ConstrainedDrafts, Vec<bool>) {
        let mut drafts = ConstrainedDrafts::of(&row(true, output).input).expect("it is constrained");
        let allowed = tree.iter().map(|&(parent, token)| drafts.add(parent, token)).collect();
        (drafts, allowed)
    }

    /// The lowest token that each mask of a row allows; `None` where there is no mask.
    fn lowest(row: &VerifyRow) -> Vec<Option<TokenId>> {
        row.masks.iter().map(|mask| mask.as_ref()?.allowed().next()).collect()
    }

    #[test]
    fn each_draft_has_the_mask_of_its_path() {
        // 10 and 20 follow the output, 15 follows 10, 30 follows that
        let (mut drafts, allowed) = drafts(&[4, 8], &[(0, 10), (0, 20), (1, 15), (3, 30)]);
        assert_eq!(allowed, [true; 4]);
        let mut row = row(true, &[4, 8]);
        constrain(&mut row, Some(&mut drafts), &[0, 2, 1, 3]);
        assert_eq!(lowest(&row), [Some(9), Some(11), Some(16), Some(21), Some(31)]);
    }

    #[test]
    fn a_forbidden_draft_is_not_added_and_nothing_follows_it() {
        let (mut chain, allowed) = drafts(&[4, 8], &[(0, 10), (1, 10), (2, 20)]);
        assert_eq!(allowed, [true, false, false]);
        assert_eq!(chain.mask(1).and_then(|mask| mask.allowed().next()), Some(11));
        assert!(chain.mask(2).is_none(), "there is no such node");
    }

    #[test]
    fn a_draft_that_nothing_may_follow_is_known_as_such() {
        let (mut drafts, allowed) = drafts(&[4], &[(0, 98), (1, 99)]);
        assert_eq!(allowed, [true, true]);
        assert!(drafts.goes_on(0) && drafts.goes_on(1) && !drafts.goes_on(2));
    }

    #[test]
    fn a_row_without_drafts_has_one_mask_and_none_where_any_token_may_come() {
        let mut ahead = row(true, &[4, 8]);
        constrain(&mut ahead, None, &[]);
        assert_eq!(lowest(&ahead), [Some(9)]);
        let mut first = row(true, &[]);
        constrain(&mut first, None, &[]);
        assert_eq!(first.masks, [None]);
    }

    #[test]
    fn rows_that_are_free_or_do_not_sample_get_none() {
        for mut row in [row(false, &[4, 8]), VerifyRow { next: Some(9), ..row(true, &[4, 8]) }] {
            constrain(&mut row, None, &[]);
            assert!(row.masks.is_empty());
        }
    }
}
