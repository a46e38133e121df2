//! A small engine over one executor: prefill, then drafting and verification in lockstep.

use std::sync::Arc;

use specserve::executor::{DraftChains, Executor};
use specserve::protocol::{
    BlockId, DraftSeed, History, Proposal, RequestId, SamplingParams, SequenceInput, TokenId, Verdict,
    VerifyRow,
};

/// A sequence and its progress.
#[derive(Clone, Debug)]
pub struct Sequence {
    pub id: u64,
    pub tokens: Vec<TokenId>,
    pub prompt_tokens: usize,
    pub sampling: Arc<SamplingParams>,
    pub blocks: Vec<BlockId>,
    /// Tokens in the target's KV cache.
    pub target_cached: usize,
    /// Tokens in the draft's KV cache.
    pub draft_cached: usize,
}

impl Sequence {
    /// Creates a sequence with its own blocks for `tokens_max` tokens.
    pub fn new(id: u64, prompt: &[TokenId], sampling: SamplingParams, tokens_max: usize) -> Sequence {
        let count = tokens_max.div_ceil(16) as u32;
        Sequence {
            id,
            tokens: prompt.to_vec(),
            prompt_tokens: prompt.len(),
            sampling: Arc::new(sampling),
            blocks: (0..count).map(|block| BlockId(id as u32 * count + block)).collect(),
            target_cached: 0,
            draft_cached: 0,
        }
    }

    pub fn output(&self) -> &[TokenId] {
        &self.tokens[self.prompt_tokens..]
    }

    /// The committed tokens from `from` on, then `drafts`.
    pub fn input(&self, from: usize, drafts: &[TokenId]) -> SequenceInput {
        let mut tokens = self.tokens[from..].to_vec();
        tokens.extend_from_slice(drafts);
        let history = self
            .sampling
            .needs_history()
            .then(|| History { tokens: self.tokens.clone(), prompt_tokens: self.prompt_tokens as u32 });
        SequenceInput {
            request: RequestId(self.id),
            tokens,
            start: from as u32,
            blocks: self.blocks.clone(),
            sampling: Arc::clone(&self.sampling),
            history,
        }
    }

    pub fn verify_row(&self, drafts: &[TokenId]) -> VerifyRow {
        let input = self.input(self.target_cached, drafts);
        VerifyRow { drafts: drafts.len() as u32, ..VerifyRow::decode(input) }
    }

    /// Commits the verdict of a chain.
    pub fn commit(&mut self, verdict: &Verdict, drafted: usize) {
        assert!(verdict.finite && verdict.tokens.len() == verdict.accepted as usize + 1);
        let before = self.tokens.len();
        self.tokens.extend_from_slice(&verdict.tokens);
        self.target_cached = self.tokens.len() - 1;
        if drafted > 0 {
            // The draft model has seen all its proposals except the last.
            self.draft_cached = before + (verdict.accepted as usize).min(drafted - 1);
        }
    }
}

/// Proposes `length` tokens for each sequence.
pub fn draft(executor: &mut dyn Executor, sequences: &[Sequence], length: usize) -> Vec<Vec<TokenId>> {
    let mut drafts = vec![Vec::new(); sequences.len()];
    if length == 0 {
        return drafts;
    }
    let rows: Vec<DraftSeed> = sequences
        .iter()
        .map(|sequence| DraftSeed {
            row: 0,
            input: sequence.input(sequence.draft_cached, &[]),
            limit: 8,
            mask: None,
        })
        .collect();
    let keep: Vec<u32> = (0..sequences.len() as u32).collect();
    let mut proposals: Vec<Proposal> = Vec::new();
    let mut chains = DraftChains::default();
    let drafter = executor.drafter().expect("a draft model");
    for step in 0..length {
        match step {
            0 => chains.start(drafter, &rows, &mut proposals),
            _ => chains.extend(drafter, &keep, &mut proposals),
        }
        .expect("the draft runs");
        for (draft, proposal) in drafts.iter_mut().zip(&proposals) {
            assert!(proposal.finite && (0.0..=1.0).contains(&proposal.probability));
            draft.push(proposal.token);
        }
    }
    drafts
}

/// Generates `count` tokens for each sequence with `length` drafts per step; returns how many
/// drafts were accepted and how many verified.
pub fn generate(
    executor: &mut dyn Executor,
    sequences: &mut [Sequence],
    length: usize,
    count: usize,
) -> (usize, usize) {
    let (mut accepted, mut verified) = (0, 0);
    let mut first = true;
    while sequences.iter().any(|sequence| sequence.output().len() < count) {
        let drafts = match first {
            true => vec![Vec::new(); sequences.len()],
            false => draft(executor, sequences, length),
        };
        first = false;
        let rows: Vec<VerifyRow> =
            sequences.iter().zip(&drafts).map(|(sequence, draft)| sequence.verify_row(draft)).collect();
        let mut verdicts = Vec::new();
        executor.target().verify(&rows, &mut verdicts).expect("the target runs");
        for ((sequence, draft), verdict) in sequences.iter_mut().zip(&drafts).zip(&verdicts) {
            sequence.commit(verdict, draft.len());
            accepted += verdict.accepted as usize;
            verified += draft.len();
        }
    }
    for sequence in sequences {
        sequence.tokens.truncate(sequence.prompt_tokens + count);
    }
    (accepted, verified)
}
