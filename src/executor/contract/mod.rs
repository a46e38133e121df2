//! The batch contract: what the inputs of a [`Target`](super::Target) and a
//! [`Drafter`](super::Drafter) must satisfy.
//!
//! Every executor runs these checks before it touches a batch, so a scheduler that breaks a rule
//! fails on the shadow and in the simulator as it would on a GPU. A batch that passes fits the
//! memory that [`ExecutorInfo`] promises and addresses no KV slot outside of its pool. Backends
//! add only limits that [`ExecutorInfo`] does not describe.
//!
//! Checking runs on the critical path of a step: it allocates nothing once the buffers have
//! reached their size, and scans token and block lists without branches.
#![forbid(unsafe_code)]

mod block_set;
mod round;
#[cfg(test)]
mod tests;

use self::block_set::BlockSet;
use self::round::Round;
use crate::protocol::{
    BlockId, Compaction, DraftForest, DraftSeed, ExecutorError, ExecutorInfo, History, ModelRole, NodeId,
    RequestId, SequenceInput, TokenMask, VerifyRow,
};

/// Checks batches against an [`ExecutorInfo`]; holds the state of one drafting round.
#[derive(Clone, Debug)]
pub struct BatchContract {
    info: ExecutorInfo,
    /// Input tokens of the current batch so far.
    tokens: usize,
    /// Blocks that the current batch writes to.
    written: BlockSet,
    round: Round,
}

/// The rule that was broken, for [`ExecutorError::Malformed`].
type Checked = Result<(), String>;

impl BatchContract {
    /// The contract of an executor with these properties.
    pub fn new(info: &ExecutorInfo) -> BatchContract {
        let blocks = info.target_blocks.max(info.draft_blocks());
        BatchContract {
            info: info.clone(),
            tokens: 0,
            written: BlockSet::new(blocks),
            round: Round::default(),
        }
    }

    /// Checks the rows of [`Target::verify`](super::Target::verify).
    ///
    /// # Errors
    /// [`ExecutorError::Malformed`] names the request and the rule.
    pub fn verify(&mut self, rows: &[VerifyRow]) -> Result<(), ExecutorError> {
        self.begin(rows.len()).map_err(ExecutorError::Malformed)?;
        for row in rows {
            self.verify_row(row).map_err(|what| of_request(row.input.request, &what))?;
        }
        let sampling = rows.iter().filter(|row| row.samples());
        let sampled: u64 = sampling.map(|row| u64::from(row.drafts) + 1).sum();
        let most = self.info.sampled_rows_max;
        rule(sampled <= most.into(), || format!("{sampled} rows that are sampled, at most {most}"))
            .map_err(ExecutorError::Malformed)
    }

    /// Checks the moves of [`Target::compact`](super::Target::compact).
    ///
    /// # Errors
    /// [`ExecutorError::Malformed`] names the rule.
    pub fn compact(&mut self, moves: &[Compaction]) -> Result<(), ExecutorError> {
        self.begin(moves.len()).map_err(ExecutorError::Malformed)?;
        moves.iter().try_for_each(|one| self.compaction(one)).map_err(ExecutorError::Malformed)
    }

    /// Checks the seeds of [`Drafter::start`](super::Drafter::start) and begins a round with them.
    /// Refused seeds end the previous round as well.
    ///
    /// # Errors
    /// [`ExecutorError::Malformed`] names the request and the rule.
    pub fn start(&mut self, seeds: &[DraftSeed]) -> Result<(), ExecutorError> {
        self.round.clear();
        let needs = self.info.drafter.as_ref().ok_or_else(no_drafter)?;
        let pool = match needs.reads_hidden_states() {
            true => Some(self.info.target_blocks),
            false => Some(needs.kv_blocks).filter(|&blocks| blocks > 0),
        };
        let needs_tokens = needs.tokens;
        self.begin(seeds.len()).map_err(ExecutorError::Malformed)?;
        for seed in seeds {
            let checked = self.seed(seed, pool, needs_tokens);
            checked.map_err(|what| of_request(seed.input.request, &what))?;
        }
        seeds.iter().for_each(|seed| self.round.push(seed, self.info.block_tokens));
        Ok(())
    }

    /// Checks the nodes of [`Drafter::extend`](super::Drafter::extend) for a drafter that makes
    /// one proposal per node, and writes their seeds to `seeds`. Nodes are ascending, and each follows a
    /// node that the call before fed, or the input in the first call. Without
    /// [branches](crate::protocol::DrafterNeeds::branches) each is the choice for a seed of its own, and
    /// seeds ascend. A drafter of blocks is fed nothing: `seeds` stays empty.
    ///
    /// # Errors
    /// [`ExecutorError::Malformed`] names the rule; the round can be extended with other nodes.
    pub fn extend(
        &mut self,
        nodes: &[NodeId],
        forest: &DraftForest,
        seeds: &mut Vec<u32>,
    ) -> Result<(), ExecutorError> {
        seeds.clear();
        if self.info.drafter.as_ref().is_some_and(|needs| needs.block_tokens > 0) {
            return Ok(()); // its chains are complete from the start
        }
        self.begin(nodes.len()).map_err(ExecutorError::Malformed)?;
        for (index, &id) in nodes.iter().enumerate() {
            let before = index.checked_sub(1).map(|index| (nodes[index], seeds[index]));
            match self.extension(id, before, forest) {
                Ok(seed) => seeds.push(seed),
                Err(error) => {
                    nodes.iter().zip(seeds.drain(..)).for_each(|(&id, seed)| self.round.take_back(id, seed));
                    return Err(error);
                }
            }
        }
        self.round.extended();
        Ok(())
    }

    /// Notes that a call feeds a node; returns its seed. `before`: the node before it and its seed.
    fn extension(
        &mut self,
        id: NodeId,
        before: Option<(NodeId, u32)>,
        forest: &DraftForest,
    ) -> Result<u32, ExecutorError> {
        let seed = self.round.seed_of(id, forest, &self.info).map_err(ExecutorError::Malformed)?;
        let in_order = match self.branches() {
            true => before.is_none_or(|(last, _)| last < id),
            false => before.is_none_or(|(_, last)| last < seed),
        };
        if !in_order {
            let what = format!("node {} of seed {seed} is out of order or a second one", id.0);
            return Err(ExecutorError::Malformed(what));
        }
        let (request, place) = self.round.next_input(seed);
        self.next_input(seed, place).map_err(|what| of_request(request, &what))?;
        self.mask(forest.mask(id).map(AsRef::as_ref)).map_err(|what| of_request(request, &what))?;
        self.round.feed(id, seed);
        Ok(seed)
    }

    fn branches(&self) -> bool {
        self.info.drafter.as_ref().is_some_and(|needs| needs.branches)
    }

    /// Checks the input of [`Executor::logits`](super::Executor::logits).
    ///
    /// # Errors
    /// [`ExecutorError::Malformed`] names the request and the rule.
    pub fn logits(&mut self, model: ModelRole, input: &SequenceInput) -> Result<(), ExecutorError> {
        let pool = match model {
            ModelRole::Target => self.info.target_blocks,
            ModelRole::Draft => self.info.draft_blocks(),
        };
        if model == ModelRole::Draft && !self.info.has_draft_model() {
            return Err(no_draft_model());
        }
        self.begin(1).map_err(ExecutorError::Malformed)?;
        self.input(input, Some(pool)).map_err(|what| of_request(input.request, &what))
    }

    fn begin(&mut self, sequences: usize) -> Checked {
        self.tokens = 0;
        self.written.clear();
        let most = self.info.batch_sequences_max as usize;
        rule(sequences <= most, || format!("{sequences} sequences, at most {most}"))
    }

    /// One sequence's input; `pool` is the number of blocks in the model's pool, `None` for a
    /// drafter without one.
    fn input(&mut self, input: &SequenceInput, pool: Option<u32>) -> Checked {
        rule(!input.tokens.is_empty(), || "no input tokens".to_owned())?;
        let vocab = self.info.vocab_size;
        rule(largest(input.tokens.iter().copied()) < vocab, || {
            format!("a token is outside the vocabulary of {vocab}")
        })?;
        self.count(input.tokens.len())?;
        let end = input.start as usize + input.tokens.len();
        self.within_context(end)?;
        match pool {
            Some(pool) => {
                self.block_table(&input.blocks, end, pool)?;
                self.write(&input.blocks, input.start as usize, end)
            }
            None => Ok(()),
        }
    }

    fn count(&mut self, tokens: usize) -> Checked {
        self.tokens += tokens;
        let (tokens, most) = (self.tokens, self.info.batch_tokens_max as usize);
        rule(tokens <= most, || format!("{tokens} input tokens in the batch, at most {most}"))
    }

    fn within_context(&self, end: usize) -> Checked {
        let context = self.info.context_tokens_max as usize;
        rule(end <= context, || format!("{end} positions, the context has {context}"))
    }

    /// The blocks are in the pool and cover `end` positions.
    fn block_table(&self, blocks: &[BlockId], end: usize, pool: u32) -> Checked {
        let (covered, held) = (self.slots(blocks.len()), self.slots(pool as usize));
        rule(end <= covered, || format!("{end} positions, the blocks cover {covered}"))?;
        rule(end <= held, || format!("{end} positions, the pool holds {held}"))?;
        let block = largest(blocks.iter().map(|block| block.0));
        rule(block < pool, || format!("block {block} is outside the pool of {pool}"))
    }

    fn slots(&self, blocks: usize) -> usize {
        blocks * self.info.block_tokens as usize
    }

    /// Notes the blocks of positions `[start, end)`, which the table covers, as written.
    fn write(&mut self, blocks: &[BlockId], start: usize, end: usize) -> Checked {
        let block_tokens = self.info.block_tokens as usize;
        for &block in &blocks[start / block_tokens..end.div_ceil(block_tokens)] {
            rule(self.written.insert(block), || format!("two inputs write to block {block}"))?;
        }
        Ok(())
    }

    fn verify_row(&mut self, row: &VerifyRow) -> Checked {
        self.input(&row.input, Some(self.info.target_blocks))?;
        let (drafts, tokens) = (row.drafts as usize, row.input.tokens.len());
        let most = self.info.draft_tokens_max as usize;
        rule(drafts <= most, || format!("{drafts} drafts, at most {most}"))?;
        rule(drafts < tokens, || format!("{drafts} drafts among {tokens} input tokens"))?;
        rule(row.samples() || drafts == 0, || "drafts in a row that does not sample".to_owned())?;
        rule(row.masks_fit(self.info.vocab_size), || {
            format!("{} masks for {drafts} drafts, or of another vocabulary", row.masks.len())
        })?;
        if let Some(parents) = &row.tree {
            tree(parents, drafts)?;
        }
        let vocab = self.info.vocab_size;
        rule(row.next.is_none_or(|next| next < vocab), || {
            format!("the next token is outside the vocabulary of {vocab}")
        })?;
        if row.samples() { self.history(&row.input, tokens - drafts, false) } else { Ok(()) }
    }

    fn seed(&mut self, seed: &DraftSeed, pool: Option<u32>, needs_tokens: bool) -> Checked {
        self.input(&seed.input, pool)?;
        let (limit, most) = (seed.limit, self.info.draft_tokens_max);
        rule(limit <= most, || format!("up to {limit} proposals, at most {most}"))?;
        self.mask(seed.mask.as_deref())?;
        if limit > 0 { self.history(&seed.input, seed.input.tokens.len(), needs_tokens) } else { Ok(()) }
    }

    /// Kernels read every word of a mask.
    fn mask(&self, mask: Option<&TokenMask>) -> Checked {
        let (vocab, size) = (self.info.vocab_size, mask.map(TokenMask::vocab_size));
        rule(size.is_none_or(|size| size == vocab), || format!("a mask for another vocabulary than {vocab}"))
    }

    /// The history, where it is needed, ends with the last of the `committed` inputs.
    fn history(&self, input: &SequenceInput, committed: usize, always: bool) -> Checked {
        if !always && !input.sampling.needs_history() {
            return Ok(());
        }
        let Some(History { tokens, prompt_tokens }) = &input.history else {
            let reader = if always { "drafter needs" } else { "penalties need" };
            return Err(format!("its {reader} a history"));
        };
        let (len, end) = (tokens.len(), input.start as usize + committed);
        rule(len == end, || format!("a history of {len} tokens, {end} are committed"))?;
        rule(*prompt_tokens as usize <= len, || format!("a prompt of {prompt_tokens} of {len} tokens"))?;
        let vocab = self.info.vocab_size;
        rule(largest(tokens.iter().copied()) < vocab, || {
            format!("a token of the history is outside the vocabulary of {vocab}")
        })
    }

    /// The single token that the next call feeds to a seed of the round.
    fn next_input(&mut self, seed: u32, place: u32) -> Checked {
        self.count(1)?;
        self.within_context(place as usize + 1)?;
        if !self.info.has_draft_model() && !self.info.has_draft_head() {
            return Ok(());
        }
        let block = self.round.block(seed, place, self.info.block_tokens);
        let block = block.ok_or_else(|| format!("no block for position {place}"))?;
        let is_own = self.round.writes(seed, block);
        rule(is_own || self.written.insert(block), || format!("two inputs write to block {block}"))
    }

    fn compaction(&mut self, one: &Compaction) -> Checked {
        let ascending = one.path.windows(2).all(|pair| pair[0] < pair[1]);
        rule(ascending, || format!("path {:?} is not ascending", one.path))?;
        let Some(&last) = one.path.last() else { return Ok(()) };
        let most = self.info.draft_tokens_max;
        rule(last < most, || format!("draft {last} of a path, at most {most} drafts"))?;
        let (first, end) = (one.first as usize, one.first as usize + last as usize + 1);
        self.within_context(end)?;
        self.block_table(&one.blocks, end, self.info.target_blocks)?;
        self.write(&one.blocks, first, end)
    }
}

/// One parent per draft, each before its children.
fn tree(parents: &[u32], drafts: usize) -> Checked {
    rule(parents.len() == drafts, || format!("{} parents for {drafts} drafts", parents.len()))?;
    let early = parents.iter().enumerate().find(|&(draft, &parent)| parent as usize > draft);
    match early {
        Some((draft, _)) => Err(format!("draft {draft} stands before its parent")),
        None => Ok(()),
    }
}

/// The largest of some numbers, 0 of none. Without an early exit, so that it vectorizes.
fn largest(numbers: impl Iterator<Item = u32>) -> u32 {
    numbers.fold(0, u32::max)
}

fn rule(holds: bool, broken: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(broken()) }
}

#[cold]
fn of_request(request: RequestId, what: &str) -> ExecutorError {
    ExecutorError::Malformed(format!("request {request}: {what}"))
}

/// The error of a call that runs a draft model where there is none.
pub(crate) fn no_draft_model() -> ExecutorError {
    ExecutorError::Malformed("there is no draft model".to_owned())
}

/// The error of a call that needs a drafter where there is none.
pub(crate) fn no_drafter() -> ExecutorError {
    ExecutorError::Malformed("there is no drafter".to_owned())
}
