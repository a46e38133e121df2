//! The limit of this backend that [`ExecutorInfo`](crate::protocol::ExecutorInfo) does not describe:
//! tokens of trees. The rest is [`BatchContract`](crate::executor::BatchContract)'s.
#![forbid(unsafe_code)]

use super::options::VERIFY_ROWS_MAX;
use crate::protocol::{ExecutorError, VerifyRow};

/// Checks the tokens of all sequences with trees.
///
/// # Errors
/// [`ExecutorError::Malformed`] when there are more than fit.
pub fn tree_tokens(rows: &[VerifyRow]) -> Result<(), ExecutorError> {
    let trees = rows.iter().filter(|row| row.tree.is_some());
    let tokens: usize = trees.map(|row| row.input.tokens.len()).sum();
    ensure(tokens <= VERIFY_ROWS_MAX, || {
        format!("{tokens} tokens of sequences with trees, at most {VERIFY_ROWS_MAX}")
    })
}

/// Fails with a lazily made text unless a rule holds.
///
/// # Errors
/// [`ExecutorError::Malformed`].
pub fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), ExecutorError> {
    if holds { Ok(()) } else { Err(ExecutorError::Malformed(what())) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::protocol::{BlockId, RequestId, SamplingParams, SequenceInput};

    fn tree(tokens: usize) -> VerifyRow {
        let input = SequenceInput {
            request: RequestId(7),
            tokens: vec![1; tokens],
            start: 0,
            blocks: (0..4).map(BlockId).collect(),
            sampling: Arc::new(SamplingParams::greedy()),
            history: None,
        };
        VerifyRow { drafts: 1, tree: Some(vec![0]), ..VerifyRow::decode(input) }
    }

    #[test]
    fn tokens_of_trees_are_bounded_over_the_batch() {
        assert!(tree_tokens(&[tree(1000), tree(24)]).is_ok());
        assert!(tree_tokens(&[tree(1000), tree(25)]).is_err());
        let chain = VerifyRow { tree: None, ..tree(25) };
        assert!(tree_tokens(&[tree(1000), chain]).is_ok(), "chains have the prefill kernel");
    }
}
