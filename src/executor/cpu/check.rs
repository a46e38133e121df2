//! What a batch and the options must be like. A batch that passes can't make the kernels
//! touch memory that is not theirs.
#![forbid(unsafe_code)]

use crate::model::ModelSpec;
use crate::protocol::{
    BlockId, Compaction, DraftSeed, ExecutorError, ExecutorInfo, ModelRole, SequenceInput, VerifyRow,
};

use super::kernels::STEP;
use super::{CpuError, CpuOptions, DRAFT_TOKENS_MAX, InstructionSet};

/// Checks the options, and that target and draft go together.
pub(crate) fn options(
    options: &CpuOptions,
    target: &ModelSpec,
    draft: Option<&ModelSpec>,
    set: InstructionSet,
) -> Result<(), CpuError> {
    let bad = |what: String| Err(CpuError::Options(what));
    let draft_blocks = draft.map_or(1, |_| options.draft_blocks);
    let counts = [
        ("threads", options.threads as u64),
        ("target_blocks", options.target_blocks.into()),
        ("draft_blocks", draft_blocks.into()),
        ("block_tokens", options.block_tokens.into()),
        ("batch_tokens_max", options.batch_tokens_max.into()),
        ("batch_sequences_max", options.batch_sequences_max.into()),
    ];
    if let Some((name, _)) = counts.iter().find(|(_, count)| *count == 0) {
        return bad(format!("{name} is 0"));
    }
    if !(options.block_tokens as usize).is_multiple_of(STEP) {
        return bad(format!("block_tokens is {}, not a multiple of {STEP}", options.block_tokens));
    }
    if options.draft_tokens_max > DRAFT_TOKENS_MAX {
        return bad(format!(
            "draft_tokens_max is {}, more than {DRAFT_TOKENS_MAX}",
            options.draft_tokens_max
        ));
    }
    if !InstructionSet::available().contains(&set) {
        return bad(format!("this processor has no {}", set.name()));
    }
    match draft {
        Some(draft) if draft.vocab_size != target.vocab_size => {
            let sizes = (target.vocab_size, draft.vocab_size);
            Err(CpuError::Unsupported(format!("target and draft have {} and {} tokens", sizes.0, sizes.1)))
        }
        _ => Ok(()),
    }
}

/// The bounds of a batch, and the state of checking one.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    info: ExecutorInfo,
    /// Tokens of the current batch so far.
    tokens: usize,
    /// Blocks of the pool that the current batch uses.
    blocks: u32,
    /// Number of the current batch.
    batch: u64,
    /// Per block: the last batch that writes to it.
    written_in: Vec<u64>,
}

impl Bounds {
    pub(crate) fn new(info: &ExecutorInfo) -> Bounds {
        let blocks = info.target_blocks.max(info.draft_blocks()) as usize;
        Bounds { info: info.clone(), tokens: 0, blocks: 0, batch: 0, written_in: vec![0; blocks] }
    }

    /// Begins a batch of `sequences` sequences.
    pub(crate) fn begin(&mut self, model: ModelRole, sequences: usize) -> Result<(), ExecutorError> {
        let most = self.info.batch_sequences_max as usize;
        ensure(sequences <= most, || format!("{sequences} sequences, at most {most}"))?;
        self.batch += 1;
        self.tokens = 0;
        self.blocks = match model {
            ModelRole::Target => self.info.target_blocks,
            ModelRole::Draft => self.info.draft_blocks(),
        };
        Ok(())
    }

    /// Checks one sequence of the batch.
    pub(crate) fn input(&mut self, input: &SequenceInput) -> Result<(), ExecutorError> {
        let who = input.request;
        ensure(!input.tokens.is_empty(), || format!("request {who}: no input tokens"))?;
        let vocab = self.info.vocab_size;
        let outside = input.tokens.iter().find(|&&token| token >= vocab);
        ensure(outside.is_none(), || format!("request {who}: a token is outside the vocabulary of {vocab}"))?;
        self.positions(&input.blocks, input.start, input.tokens.len())
            .map_err(|error| of_request(error, input))
    }

    /// Checks that a sequence may write `count` positions from `start` on.
    pub(crate) fn positions(
        &mut self,
        blocks: &[BlockId],
        start: u32,
        count: usize,
    ) -> Result<(), ExecutorError> {
        self.tokens += count;
        let (tokens, most) = (self.tokens, self.info.batch_tokens_max as usize);
        ensure(tokens <= most, || format!("{tokens} input tokens, at most {most}"))?;
        let (end, context) = (start as usize + count, self.info.context_tokens_max as usize);
        ensure(end <= context, || format!("{end} positions, the context has {context}"))?;
        self.block_table(blocks, end)?;
        let block_tokens = self.info.block_tokens as usize;
        for &block in &blocks[start as usize / block_tokens..end.div_ceil(block_tokens)] {
            let written = std::mem::replace(&mut self.written_in[block as usize], self.batch);
            ensure(written != self.batch, || format!("two inputs write to block {block}"))?;
        }
        Ok(())
    }

    /// Checks a row of a drafting batch.
    pub(crate) fn seed(&mut self, seed: &DraftSeed) -> Result<(), ExecutorError> {
        self.input(&seed.input)?;
        has_history(&seed.input, seed.limit > 0)
    }

    /// Checks a row of a verification batch.
    pub(crate) fn verify_row(&mut self, row: &VerifyRow) -> Result<(), ExecutorError> {
        self.input(&row.input)?;
        let fail = |what: String| of_request(ExecutorError::Malformed(what), &row.input);
        let (drafts, tokens) = (row.drafts as usize, row.input.tokens.len());
        let most = self.info.draft_tokens_max as usize;
        if drafts > most {
            return Err(fail(format!("{drafts} drafts, at most {most}")));
        }
        if drafts >= tokens {
            return Err(fail(format!("{drafts} drafts among {tokens} input tokens")));
        }
        if drafts > 0 && !row.sample {
            return Err(fail("drafts in a row that does not sample".into()));
        }
        if let Some(parents) = &row.tree {
            if parents.len() != drafts {
                return Err(fail(format!("{} parents for {drafts} drafts", parents.len())));
            }
            if let Some(node) = (0..drafts).find(|&node| parents[node] as usize > node) {
                return Err(fail(format!("draft {node} stands before its parent")));
            }
        }
        if !row.masks_fit(self.info.vocab_size) {
            return Err(fail(format!(
                "{} masks for {drafts} drafts, or of another vocabulary",
                row.masks.len()
            )));
        }
        has_history(&row.input, row.sample)
    }

    /// Checks a move of the target's cache.
    pub(crate) fn compaction(&self, one: &Compaction) -> Result<(), ExecutorError> {
        let ascending = one.path.windows(2).all(|pair| pair[0] < pair[1]);
        ensure(ascending, || format!("path {:?} is not ascending", one.path))?;
        let Some(&last) = one.path.last() else { return Ok(()) };
        let (end, context) = (one.first as usize + last as usize + 1, self.info.context_tokens_max as usize);
        ensure(end <= context, || format!("{end} positions, the context has {context}"))?;
        let target = Bounds { blocks: self.info.target_blocks, written_in: Vec::new(), ..self.clone() };
        target.block_table(&one.blocks, end)
    }

    /// Checks that the blocks are in the pool and cover `end` positions.
    fn block_table(&self, blocks: &[BlockId], end: usize) -> Result<(), ExecutorError> {
        let (covered, pool) = (blocks.len() * self.info.block_tokens as usize, self.blocks);
        ensure(end <= covered, || format!("{end} positions, the blocks cover {covered}"))?;
        let held = pool as usize * self.info.block_tokens as usize;
        ensure(end <= held, || format!("{end} positions, the pool holds {held}"))?;
        let outside = blocks.iter().find(|&&block| block >= pool);
        ensure(outside.is_none(), || format!("a block is outside the pool of {pool}"))
    }
}

/// Checks that kept rows are ascending indices below `rows`.
pub(crate) fn keep(keep: &[u32], rows: usize) -> Result<(), ExecutorError> {
    let ascending = keep.windows(2).all(|pair| pair[0] < pair[1]);
    ensure(ascending, || format!("kept rows {keep:?} are not ascending"))?;
    let inside = keep.last().is_none_or(|&last| (last as usize) < rows);
    ensure(inside, || format!("kept rows {keep:?} of a round with {rows}"))
}

/// What a call that needs a draft model says where there is none.
pub(crate) fn no_draft() -> ExecutorError {
    ExecutorError::Malformed("there is no draft model".into())
}

fn has_history(input: &SequenceInput, samples: bool) -> Result<(), ExecutorError> {
    let missing = samples && input.sampling.needs_history() && input.history.is_none();
    ensure(!missing, || format!("request {}: its penalties or constraint need a history", input.request))
}

fn of_request(error: ExecutorError, input: &SequenceInput) -> ExecutorError {
    match error {
        ExecutorError::Malformed(what) => {
            ExecutorError::Malformed(format!("request {}: {what}", input.request))
        }
        other => other,
    }
}

/// `Ok` if `holds`, else a malformed batch.
pub(crate) fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), ExecutorError> {
    if holds { Ok(()) } else { Err(ExecutorError::Malformed(what())) }
}
