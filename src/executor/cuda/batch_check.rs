//! Limits of this backend that [`ExecutorInfo`](crate::protocol::ExecutorInfo) does not describe:
//! rows of logits, and tokens of trees. The rest is [`BatchContract`](crate::executor::BatchContract)'s.
#![forbid(unsafe_code)]

use super::options::VERIFY_ROWS_MAX;
use crate::protocol::{ExecutorError, VerifyRow};

/// Checks the sums over a verification's rows.
///
/// # Errors
/// [`ExecutorError::Malformed`] when more rows need logits, or belong to trees, than fit.
pub fn verify_sums(rows: &[VerifyRow], logit_rows_max: usize) -> Result<(), ExecutorError> {
    let sampled = rows.iter().filter(|row| row.samples());
    let logits: usize = sampled.map(|row| row.drafts as usize + 1).sum();
    ensure(logits <= logit_rows_max, || format!("{logits} rows need logits, at most {logit_rows_max}"))?;
    let trees = rows.iter().filter(|row| row.tree.is_some());
    let tree_tokens: usize = trees.map(|row| row.input.tokens.len()).sum();
    ensure(tree_tokens <= VERIFY_ROWS_MAX, || {
        format!("{tree_tokens} tokens of sequences with trees, at most {VERIFY_ROWS_MAX}")
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

    fn row(start: u32, tokens: usize, drafts: u32) -> VerifyRow {
        let input = SequenceInput {
            request: RequestId(7),
            tokens: vec![1; tokens],
            start,
            blocks: (0..4).map(BlockId).collect(),
            sampling: Arc::new(SamplingParams::greedy()),
            history: None,
        };
        VerifyRow { drafts, ..VerifyRow::decode(input) }
    }

    #[test]
    fn sums_over_the_batch_are_bounded() {
        let rows = vec![row(0, 5, 4), row(0, 5, 4)];
        assert!(verify_sums(&rows, 10).is_ok());
        assert!(verify_sums(&rows, 9).is_err());
    }
}
