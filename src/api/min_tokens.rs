//! `min_tokens`: no stop token before so many output tokens.

use std::sync::Arc;

use crate::protocol::{TokenConstraint, TokenId, TokenMask};

/// Forbids the stop tokens at the beginning of an output.
#[derive(Debug)]
pub struct MinTokens {
    /// Output tokens before which the stop tokens are forbidden.
    tokens: usize,
    /// All tokens but the stop tokens.
    others: Arc<TokenMask>,
}

impl MinTokens {
    /// The constraint of a request, or `None` if nothing would be forbidden.
    pub fn constraint(
        min_tokens: u32,
        stop_tokens: &[TokenId],
        vocab_size: u32,
    ) -> Option<Arc<dyn TokenConstraint>> {
        if min_tokens == 0 || stop_tokens.is_empty() {
            return None;
        }
        let others = TokenMask::from_fn(vocab_size, |token| !stop_tokens.contains(&token));
        Some(Arc::new(MinTokens { tokens: min_tokens as usize, others: Arc::new(others) }))
    }
}

impl TokenConstraint for MinTokens {
    fn mask(&self, output: &[TokenId]) -> Option<Arc<TokenMask>> {
        (output.len() < self.tokens).then(|| self.others.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_tokens_are_forbidden_until_the_least_output_is_there() {
        let constraint = MinTokens::constraint(2, &[1, 3], 5).expect("something is forbidden");
        for output in [&[0][..], &[]] {
            let mask = constraint.mask(output).expect("a mask");
            assert_eq!(mask.allowed().collect::<Vec<_>>(), [0, 2, 4]);
        }
        assert_eq!(constraint.mask(&[0, 0]), None);
    }

    #[test]
    fn without_a_least_output_or_stop_tokens_there_is_no_constraint() {
        assert!(MinTokens::constraint(0, &[1], 5).is_none());
        assert!(MinTokens::constraint(9, &[], 5).is_none());
    }
}
