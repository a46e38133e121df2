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

    /// Goes on by a token; `false`, and nothing changes, if it is forbidden.
    pub fn advance(&mut self, token: TokenId) -> bool {
        if self.mask.as_ref().is_some_and(|mask| !mask.allows(token)) {
            return false;
        }
        self.output.push(token);
        self.mask = self.sampling.constraint.as_ref().and_then(|constraint| constraint.mask(&self.output));
        true
    }
}

/// Gives a row its masks, if its request is constrained. Its drafts are a chain.
pub(super) fn constrain(row: &mut VerifyRow) {
    if !row.samples() {
        return;
    }
    let Some(mut path) = ConstrainedPath::of(&row.input) else { return };
    debug_assert!(row.tree.is_none(), "a step drafts chains");
    let nodes = row.drafts as usize + 1;
    row.masks.clear();
    row.masks.push(path.mask().cloned());
    for &draft in &row.input.tokens[row.input.tokens.len() + 1 - nodes..] {
        if !path.advance(draft) {
            break;
        }
        row.masks.push(path.mask().cloned());
    }
    row.masks.resize(nodes, None); // behind a forbidden draft nothing is accepted
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
    fn rows_that_are_free_or_do_not_sample_get_none() {
        assert_eq!(lowest(row(false, &[4, 8], &[10, 20])), []);
        assert_eq!(lowest(VerifyRow { next: Some(9), ..row(true, &[4, 8], &[]) }), []);
    }
}
