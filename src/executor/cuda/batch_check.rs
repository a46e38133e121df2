//! What a batch must be like. One that passes can't make a kernel touch memory that is not
//! the pool's, and fits the memory that was set aside.
#![forbid(unsafe_code)]

use super::options::VERIFY_ROWS_MAX;
use crate::protocol::{
    Compaction, ExecutorError, ExecutorInfo, ModelRole, SequenceInput, TokenMask, VerifyRow,
};

/// The bounds, and the state of checking one batch.
pub struct BatchCheck<'a> {
    info: &'a ExecutorInfo,
    blocks: u32,
    tokens: usize,
}

impl<'a> BatchCheck<'a> {
    /// Begins a batch of `sequences` sequences.
    ///
    /// # Errors
    /// [`ExecutorError::Malformed`] when there are too many, or the model is missing.
    pub fn begin(
        info: &'a ExecutorInfo,
        role: ModelRole,
        sequences: usize,
    ) -> Result<BatchCheck<'a>, ExecutorError> {
        let most = info.batch_sequences_max as usize;
        ensure(sequences <= most, || format!("{sequences} sequences, at most {most}"))?;
        let blocks = match role {
            ModelRole::Target => info.target_blocks,
            ModelRole::Draft => info.draft_blocks(),
        };
        ensure(blocks > 0, || "there is no draft model".to_owned())?;
        Ok(BatchCheck { info, blocks, tokens: 0 })
    }

    /// Checks one sequence's input.
    ///
    /// # Errors
    /// [`ExecutorError::Malformed`] says which rule it breaks.
    pub fn input(&mut self, input: &SequenceInput) -> Result<(), ExecutorError> {
        let request = input.request;
        let end = input.start as usize + input.tokens.len();
        let (context, vocab) = (self.info.context_tokens_max as usize, self.info.vocab_size);
        ensure(!input.tokens.is_empty(), || format!("request {request}: no input tokens"))?;
        ensure(end <= context, || format!("request {request}: position {end} of a context of {context}"))?;
        ensure(largest(&input.tokens) < vocab, || {
            format!("request {request}: a token outside of the vocabulary")
        })?;
        self.tokens += input.tokens.len();
        let most = self.info.batch_tokens_max as usize;
        ensure(self.tokens <= most, || format!("more than {most} input tokens"))?;
        self.blocks(&input.blocks, end).map_err(|what| malformed(format!("request {request}: {what}")))
    }

    /// Checks one row of a verification.
    ///
    /// # Errors
    /// [`ExecutorError::Malformed`] says which rule it breaks.
    pub fn row(&mut self, row: &VerifyRow) -> Result<(), ExecutorError> {
        self.input(&row.input)?;
        let request = row.input.request;
        let (drafts, most) = (row.drafts as usize, self.info.draft_tokens_max as usize);
        ensure(drafts <= most, || format!("request {request}: {drafts} drafts, at most {most}"))?;
        ensure(drafts < row.input.tokens.len(), || {
            format!("request {request}: drafts without a committed token before them")
        })?;
        ensure(row.sample || drafts == 0, || format!("request {request}: drafts that are not verified"))?;
        if let Some(parents) = &row.tree {
            let ordered = parents.iter().enumerate().all(|(draft, &parent)| parent as usize <= draft);
            ensure(parents.len() == drafts && ordered, || {
                format!("request {request}: a tree whose parents do not stand before their children")
            })?;
        }
        Ok(())
    }

    /// Checks one compaction.
    ///
    /// # Errors
    /// [`ExecutorError::Malformed`] says which rule it breaks.
    pub fn compaction(&self, compaction: &Compaction) -> Result<(), ExecutorError> {
        let path = &compaction.path;
        let most = self.info.draft_tokens_max as usize;
        ensure(path.len() <= most, || format!("a path of {} places, at most {most}", path.len()))?;
        ensure(path.windows(2).all(|pair| pair[0] < pair[1]), || "a path that does not ascend".to_owned())?;
        let Some(&last) = path.last() else { return Ok(()) };
        ensure((last as usize) < most, || format!("place {last} of at most {most} drafts"))?;
        let end = compaction.first as usize + last as usize + 1;
        self.blocks(&compaction.blocks, end).map_err(malformed)
    }

    fn blocks(&self, blocks: &[u32], end: usize) -> Result<(), String> {
        let needed = end.div_ceil(self.info.block_tokens as usize);
        if blocks.len() < needed {
            return Err(format!("{} blocks for {end} positions", blocks.len()));
        }
        match largest(&blocks[..needed]) {
            block if block >= self.blocks => Err(format!("block {block} of a pool of {}", self.blocks)),
            _ => Ok(()),
        }
    }
}

/// The largest of some numbers, 0 of none. Without an early end, so that it runs many abreast.
fn largest(numbers: &[u32]) -> u32 {
    numbers.iter().fold(0, |most, &number| most.max(number))
}

/// Checks the sums over a verification's rows.
///
/// # Errors
/// [`ExecutorError::Malformed`] when more rows need logits, or belong to trees, than fit.
pub fn verify_sums(rows: &[VerifyRow], logit_rows_max: usize) -> Result<(), ExecutorError> {
    let sampled = rows.iter().filter(|row| row.sample);
    let logits: usize = sampled.map(|row| row.drafts as usize + 1).sum();
    ensure(logits <= logit_rows_max, || format!("{logits} rows need logits, at most {logit_rows_max}"))?;
    let trees = rows.iter().filter(|row| row.tree.is_some());
    let tree_tokens: usize = trees.map(|row| row.input.tokens.len()).sum();
    ensure(tree_tokens <= VERIFY_ROWS_MAX, || {
        format!("{tree_tokens} tokens of sequences with trees, at most {VERIFY_ROWS_MAX}")
    })
}

/// Checks that a row has a mask for each node or none at all.
///
/// # Errors
/// [`ExecutorError::Malformed`].
pub fn masks_fit(row: &VerifyRow, info: &ExecutorInfo) -> Result<(), ExecutorError> {
    ensure(row.masks_fit(info.vocab_size), || {
        let (request, masks, drafts) = (row.input.request, row.masks.len(), row.drafts);
        format!("request {request}: {masks} masks for {drafts} drafts, or of another vocabulary")
    })
}

/// Checks that a mask is for the model's vocabulary: the kernels read all of its words.
///
/// # Errors
/// [`ExecutorError::Malformed`].
pub fn mask_fits(mask: &TokenMask, info: &ExecutorInfo) -> Result<(), ExecutorError> {
    let sizes = (mask.vocab_size(), info.vocab_size);
    ensure(sizes.0 == sizes.1, || format!("a mask for {} tokens of {}", sizes.0, sizes.1))
}

fn malformed(what: String) -> ExecutorError {
    ExecutorError::Malformed(what)
}

/// Fails with a lazily made text unless a rule holds.
///
/// # Errors
/// [`ExecutorError::Malformed`].
pub fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), ExecutorError> {
    if holds { Ok(()) } else { Err(malformed(what())) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::protocol::{RequestId, RowRole, SamplingParams};

    fn info() -> ExecutorInfo {
        ExecutorInfo {
            backend: "cuda".to_owned(),
            device: "test".to_owned(),
            vocab_size: 100,
            context_tokens_max: 64,
            block_tokens: 16,
            target_blocks: 8,
            drafter: None,
            batch_tokens_max: 40,
            batch_sequences_max: 2,
            draft_tokens_max: 4,
        }
    }

    fn row(start: u32, tokens: usize, drafts: u32) -> VerifyRow {
        let input = SequenceInput {
            request: RequestId(7),
            tokens: vec![1; tokens],
            start,
            blocks: vec![0, 1, 2, 3],
            sampling: Arc::new(SamplingParams::greedy()),
            history: None,
        };
        VerifyRow { input, role: RowRole::Decode, drafts, tree: None, sample: true, masks: Vec::new() }
    }

    fn refused(row: &VerifyRow) -> String {
        let info = info();
        let mut check = BatchCheck::begin(&info, ModelRole::Target, 1).expect("one sequence fits");
        match check.row(row) {
            Err(ExecutorError::Malformed(what)) => what,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    #[test]
    fn a_good_row_passes_and_each_broken_rule_is_named() {
        let info = info();
        let mut check = BatchCheck::begin(&info, ModelRole::Target, 2).expect("two sequences fit");
        assert_eq!(check.row(&row(59, 5, 4)), Ok(()));
        assert!(refused(&row(0, 0, 0)).contains("no input tokens"));
        assert!(refused(&row(60, 5, 4)).contains("context of 64"));
        assert!(refused(&row(0, 41, 0)).contains("more than 40"));
        assert!(refused(&row(0, 6, 5)).contains("5 drafts, at most 4"));
        assert!(refused(&row(0, 2, 2)).contains("without a committed token"));
        let mut bad = row(0, 2, 0);
        bad.input.tokens[1] = 100;
        assert!(refused(&bad).contains("vocabulary"));
        bad = row(0, 17, 0);
        bad.input.blocks = vec![0];
        assert!(refused(&bad).contains("1 blocks for 17"));
        bad.input.blocks = vec![0, 8];
        assert!(refused(&bad).contains("block 8 of a pool of 8"));
        bad = row(0, 3, 2);
        bad.tree = Some(vec![0, 2]);
        assert!(refused(&bad).contains("parents"));
    }

    #[test]
    fn masks_of_another_shape_are_refused() {
        let (info, mask) = (info(), |vocab_size| Some(Arc::new(TokenMask::none(vocab_size))));
        let with = |masks| VerifyRow { masks, ..row(0, 3, 1) };
        assert_eq!(masks_fit(&with(Vec::new()), &info), Ok(()));
        assert_eq!(masks_fit(&with(vec![None, mask(100)]), &info), Ok(()));
        assert!(masks_fit(&with(vec![mask(100)]), &info).is_err());
        assert!(masks_fit(&with(vec![None, mask(99)]), &info).is_err());
        assert!(mask_fits(&TokenMask::none(99), &info).is_err());
    }

    #[test]
    fn too_many_sequences_and_a_missing_draft_are_refused() {
        let info = info();
        assert!(BatchCheck::begin(&info, ModelRole::Target, 3).is_err());
        assert!(BatchCheck::begin(&info, ModelRole::Draft, 1).is_err());
    }

    #[test]
    fn a_compaction_stays_inside_its_blocks() {
        let info = info();
        let check = BatchCheck::begin(&info, ModelRole::Target, 1).expect("fits");
        let good = Compaction { blocks: vec![0, 1], first: 28, path: vec![0, 3] };
        assert_eq!(check.compaction(&good), Ok(()));
        assert!(check.compaction(&Compaction { first: 29, ..good.clone() }).is_err());
        assert!(check.compaction(&Compaction { path: vec![1, 1], ..good.clone() }).is_err());
        assert!(check.compaction(&Compaction { path: vec![4], ..good }).is_err());
    }

    #[test]
    fn sums_over_the_batch_are_bounded() {
        let rows = vec![row(0, 5, 4), row(0, 5, 4)];
        assert!(verify_sums(&rows, 10).is_ok());
        assert!(verify_sums(&rows, 9).is_err());
    }
}
