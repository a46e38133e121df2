//! The masks of a constrained sequence along its drafts.

use std::sync::Arc;

use crate::protocol::{SamplingParams, SequenceInput, TokenId, TokenMask, VerifyRow};

/// The output of a constrained sequence, drafts included, and what may follow it.
#[derive(Debug)]
pub(super) struct ConstrainedPath {
    sampling: Arc<SamplingParams>,
    output: Vec<TokenId>,
    mask: Option<Arc<TokenMask>>,
}

impl ConstrainedPath {
    /// At the end of a row's committed tokens; `None` for a request without a constraint, and for
    /// a row without a history, which the executor refuses.
    pub fn of(input: &SequenceInput) -> Option<ConstrainedPath> {
        let constraint = input.sampling.constraint.as_ref()?;
        let history = input.history.as_ref()?;
        let output = history.tokens[history.prompt_tokens as usize..].to_vec();
        let mask = constraint.mask(&output);
        Some(ConstrainedPath { sampling: Arc::clone(&input.sampling), output, mask })
    }

    /// The tokens that may come next; `None`: any.
    pub fn mask(&self) -> Option<&Arc<TokenMask>> {
        self.mask.as_ref()
    }

    /// The path that goes on by a token; `None` if it is forbidden.
    pub fn advanced(&self, token: TokenId) -> Option<ConstrainedPath> {
        if self.mask.as_ref().is_some_and(|mask| !mask.allows(token)) {
            return None;
        }
        let output = [&self.output[..], &[token]].concat();
        let mask = self.sampling.constraint.as_ref().and_then(|constraint| constraint.mask(&output));
        Some(ConstrainedPath { sampling: Arc::clone(&self.sampling), output, mask })
    }
}

/// Gives a row its masks, if its request is constrained.
pub(super) fn constrain(row: &mut VerifyRow) {
    if !row.samples() {
        return;
    }
    let Some(root) = ConstrainedPath::of(&row.input) else { return };
    let drafts = &row.input.tokens[row.input.tokens.len() - row.drafts as usize..];
    // behind a forbidden draft nothing is accepted, so it and what follows it have no path and no mask
    let mut paths = vec![Some(root)];
    for (draft, &token) in drafts.iter().enumerate() {
        let parent = row.tree.as_ref().map_or(draft, |parents| parents[draft] as usize);
        let path = paths[parent].as_ref().and_then(|path| path.advanced(token));
        paths.push(path);
    }
    row.masks.clear();
    row.masks.extend(paths.iter().map(|path| path.as_ref().and_then(ConstrainedPath::mask).cloned()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{BlockId, History, RequestId, TokenConstraint};

    /// Each token is larger than the one before it; the first may be any.
    #[derive(Debug)]
    struct Ascending;

    impl TokenConstraint for Ascending {
        fn mask(&self, output: &[TokenId]) -> Option<Arc<TokenMask>> {
            assert!(output.is_sorted(), "asked for an output that it forbids: {output:?}");
            let last = *output.last()?;
            Some(Arc::new(TokenMask::from_fn(100, |token| token > last)))
        }
    }

    fn row(constrained: bool, output: &[TokenId], drafts: &[TokenId]) -> VerifyRow {
        let constraint = constrained.then(|| Arc::new(Ascending) as Arc<dyn TokenConstraint>);
        let prompt = [90, 3];
        let input = SequenceInput {
            request: RequestId(1),
            tokens: [&[7], drafts].concat(),
            start: 5,
            blocks: vec![BlockId(0)],
            sampling: Arc::new(SamplingParams { constraint, ..SamplingParams::greedy() }),
            history: Some(History { tokens: [&prompt, output].concat(), prompt_tokens: 2 }),
        };
        VerifyRow { drafts: drafts.len() as u32, ..VerifyRow::decode(input) }
    }

    /// The lowest token that each node's mask allows; `None` where there is no mask.
    fn lowest(mut row: VerifyRow) -> Vec<Option<TokenId>> {
        constrain(&mut row);
        assert!(row.masks_fit(100));
        row.masks.iter().map(|mask| mask.as_ref()?.allowed().next()).collect()
    }

    #[test]
    fn each_node_has_the_mask_of_its_path() {
        assert_eq!(lowest(row(true, &[4, 8], &[10, 20])), [Some(9), Some(11), Some(21)]);
        assert_eq!(lowest(row(true, &[], &[10, 20])), [None, Some(11), Some(21)]);
        assert_eq!(lowest(row(true, &[4, 8], &[])), [Some(9)]);
    }

    #[test]
    fn behind_a_forbidden_draft_there_are_no_masks() {
        assert_eq!(lowest(row(true, &[4, 8], &[10, 10, 20])), [Some(9), Some(11), None, None]);
    }

    #[test]
    fn a_draft_of_a_tree_has_the_mask_of_its_own_path() {
        // 10 and 20 follow the output, 15 follows 10, 15 follows 20 (forbidden), 30 follows that
        let tree = |parents: &[u32]| VerifyRow {
            tree: Some(parents.to_vec()),
            ..row(true, &[4, 8], &[10, 20, 15, 15, 30])
        };
        let expected = [Some(9), Some(11), Some(21), Some(16), None, None];
        assert_eq!(lowest(tree(&[0, 0, 1, 2, 4])), expected);
    }

    #[test]
    fn rows_that_are_free_or_do_not_sample_get_none() {
        assert_eq!(lowest(row(false, &[4, 8], &[10, 20])), []);
        assert_eq!(lowest(VerifyRow { next: Some(9), ..row(true, &[4, 8], &[]) }), []);
    }
}
