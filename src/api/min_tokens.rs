//! `min_tokens`: no stop token before so many output tokens.

use std::sync::Arc;

use crate::protocol::{ConstraintState, TokenConstraint, TokenId, TokenMask};

/// Forbids the stop tokens at the beginning of an output, as long as another token may come.
#[derive(Debug)]
pub struct MinTokens {
    /// Output tokens before which the stop tokens are forbidden.
    tokens: usize,
    /// All tokens but the stop tokens.
    others: Arc<TokenMask>,
    /// What else the output must look like.
    rest: Option<Arc<dyn TokenConstraint>>,
}

impl MinTokens {
    /// The constraint of a request whose output must also fit `rest`. It is `rest` alone if no stop
    /// token would be forbidden.
    pub fn constraint(
        min_tokens: u32,
        stop_tokens: &[TokenId],
        vocab_size: u32,
        rest: Option<Arc<dyn TokenConstraint>>,
    ) -> Option<Arc<dyn TokenConstraint>> {
        if min_tokens == 0 || stop_tokens.is_empty() {
            return rest;
        }
        let others = TokenMask::from_fn(vocab_size, |token| !stop_tokens.contains(&token));
        Some(Arc::new(MinTokens { tokens: min_tokens as usize, others: Arc::new(others), rest }))
    }
}

impl TokenConstraint for MinTokens {
    fn state(&self, output: &[TokenId]) -> Box<dyn ConstraintState> {
        Box::new(Beginning {
            missing: self.tokens.saturating_sub(output.len()),
            others: self.others.clone(),
            rest: self.rest.as_ref().map(|rest| rest.state(output)),
        })
    }
}

/// An output that lacks so many tokens.
#[derive(Debug)]
struct Beginning {
    missing: usize,
    others: Arc<TokenMask>,
    rest: Option<Box<dyn ConstraintState>>,
}

impl ConstraintState for Beginning {
    /// Where the rest allows stop tokens alone, the output is complete, and longer it cannot get.
    fn mask(&mut self) -> Option<Arc<TokenMask>> {
        let rest = self.rest.as_mut().and_then(|rest| rest.mask());
        if self.missing == 0 {
            return rest;
        }
        let Some(rest) = rest else { return Some(self.others.clone()) };
        let both = rest.and(&self.others);
        Some(if both.is_empty() { rest } else { Arc::new(both) })
    }

    fn advance(&mut self, token: TokenId) {
        self.missing = self.missing.saturating_sub(1);
        self.rest.iter_mut().for_each(|rest| rest.advance(token));
    }

    fn fork(&self) -> Box<dyn ConstraintState> {
        let rest = self.rest.as_ref().map(|rest| rest.fork());
        Box::new(Beginning { missing: self.missing, others: self.others.clone(), rest })
    }

    fn forced(&mut self) -> Vec<TokenId> {
        self.rest.as_mut().map(|rest| rest.forced()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(constraint: &dyn TokenConstraint, output: &[TokenId]) -> Option<Vec<TokenId>> {
        constraint.mask(output).map(|mask| mask.allowed().collect())
    }

    #[test]
    fn stop_tokens_are_forbidden_until_the_least_output_is_there() {
        let constraint = MinTokens::constraint(2, &[1, 3], 5, None).expect("something is forbidden");
        for output in [&[0][..], &[]] {
            assert_eq!(allowed(&*constraint, output), Some(vec![0, 2, 4]));
        }
        assert_eq!(allowed(&*constraint, &[0, 0]), None);
        let mut state = constraint.state(&[]);
        state.advance(0);
        assert!(state.fork().mask().is_some(), "one token of two");
        state.advance(0);
        assert_eq!(state.mask(), None);
    }

    #[test]
    fn without_a_least_output_or_stop_tokens_there_is_no_constraint() {
        assert!(MinTokens::constraint(0, &[1], 5, None).is_none());
        assert!(MinTokens::constraint(9, &[], 5, None).is_none());
    }

    /// Token 2, and where there is one, token 1, which stops.
    #[derive(Debug)]
    struct TwoThenStop;

    impl TokenConstraint for TwoThenStop {
        fn state(&self, output: &[TokenId]) -> Box<dyn ConstraintState> {
            Box::new(Behind(output.len()))
        }
    }

    #[derive(Clone, Debug)]
    struct Behind(usize);

    impl ConstraintState for Behind {
        fn mask(&mut self) -> Option<Arc<TokenMask>> {
            let allows = |token| match token {
                1 => self.0 > 0,
                2 => self.0 < 3,
                _ => false,
            };
            Some(Arc::new(TokenMask::from_fn(5, allows)))
        }

        fn advance(&mut self, _: TokenId) {
            self.0 += 1;
        }

        fn fork(&self) -> Box<dyn ConstraintState> {
            Box::new(self.clone())
        }
    }

    #[test]
    fn both_constraints_hold_and_a_complete_output_may_end_early() {
        let both = MinTokens::constraint(9, &[1], 5, Some(Arc::new(TwoThenStop))).expect("two of them");
        assert_eq!(allowed(&*both, &[]), Some(vec![2]));
        assert_eq!(allowed(&*both, &[2]), Some(vec![2]), "it may go on, so it must");
        assert_eq!(allowed(&*both, &[2, 2, 2]), Some(vec![1]), "nothing but the end is left");
        let late = MinTokens::constraint(1, &[1], 5, Some(Arc::new(TwoThenStop))).expect("two of them");
        assert_eq!(allowed(&*late, &[2]), Some(vec![1, 2]));
    }
}
