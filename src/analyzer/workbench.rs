//! Builds the batches that are measured: scattered blocks, tokens of a text.

use std::sync::Arc;

use super::grid::Shape;
use crate::protocol::{
    BlockId, DraftSeed, ExecutorInfo, ModelRole, RequestId, SamplingParams, SequenceInput, TokenId, VerifyRow,
};
use crate::random::SplitMix64;

/// Tokens of each sequence that fills the caches before anything is measured.
const FILL_TOKENS: u32 = 256;

/// What batches are made from.
pub struct Workbench {
    target_blocks: Vec<BlockId>,
    draft_blocks: Vec<BlockId>,
    /// Most proposals of one call.
    drafts_per_call: u32,
    block_tokens: u32,
    text: Vec<TokenId>,
    sampling: Arc<SamplingParams>,
}

impl Workbench {
    pub fn new(info: &ExecutorInfo, text: Vec<TokenId>, sampling: Arc<SamplingParams>) -> Workbench {
        Workbench {
            target_blocks: scattered(info.target_blocks),
            draft_blocks: scattered(info.draft_blocks()),
            drafts_per_call: super::drafts_per_call(info),
            block_tokens: info.block_tokens,
            text,
            sampling,
        }
    }

    /// The target's batch of a shape.
    pub fn verify_rows(&self, shape: &Shape) -> Vec<VerifyRow> {
        let inputs = self.inputs(shape);
        let drafts = shape.queries().saturating_sub(1);
        // Alone it stands for a prompt in one chunk, which ends in a first token.
        let next = self.text.first().copied().filter(|_| shape.rows > 0);
        let prefill = inputs.prefill.map(|input| VerifyRow::prefill(input, next));
        let decoding = inputs.decoding.into_iter();
        decoding.map(|input| VerifyRow { drafts, ..VerifyRow::decode(input) }).chain(prefill).collect()
    }

    /// The drafter's batch of a shape.
    pub fn draft_seeds(&self, shape: &Shape) -> Vec<DraftSeed> {
        let (inputs, limit) = (self.inputs(shape).decoding, self.drafts_per_call);
        (0..).zip(inputs).map(|(row, input)| DraftSeed { row, input, limit, mask: None }).collect()
    }

    /// The pass of the target that computes the hidden states which the draft head reads in a round of
    /// this shape: of the token before each row's last, and of as many more before the first one's.
    pub fn states(&self, shape: &Shape) -> Vec<VerifyRow> {
        let seeds = self.inputs(shape).decoding.into_iter();
        let rows = (0..).zip(seeds).map(|(number, seed)| {
            let more = if number == 0 { shape.prefill_tokens } else { 0 };
            let next = seed.tokens.first().copied();
            let input = self.input(number, &seed.blocks, seed.start - 1 - more, more + 1);
            VerifyRow::prefill(input, next)
        });
        rows.collect()
    }

    /// Inputs of single sequences that together write every block of both caches, the draft's
    /// first, because that is soon done: memory that was never written reads faster than
    /// memory that was.
    pub fn fill(&self, info: &ExecutorInfo) -> Vec<(ModelRole, SequenceInput)> {
        let most = FILL_TOKENS.min(info.batch_tokens_max).min(info.context_tokens_max);
        let blocks_each = (most / self.block_tokens).max(1) as usize;
        let mut inputs = Vec::new();
        for (model, blocks) in
            [(ModelRole::Draft, &self.draft_blocks), (ModelRole::Target, &self.target_blocks)]
        {
            for (number, blocks) in blocks.chunks(blocks_each).enumerate() {
                let tokens = most.min(blocks.len() as u32 * self.block_tokens);
                inputs.push((model, self.input(number, blocks, 0, tokens)));
            }
        }
        inputs
    }

    fn inputs(&self, shape: &Shape) -> Inputs {
        let mut blocks = match shape.model {
            ModelRole::Target => self.target_blocks.as_slice(),
            ModelRole::Draft if shape.head_calls.is_some() => self.target_blocks.as_slice(),
            ModelRole::Draft => self.draft_blocks.as_slice(),
        };
        let mut take = |positions: u32| {
            let (mine, rest) = blocks.split_at(positions.div_ceil(self.block_tokens) as usize);
            blocks = rest;
            mine
        };
        let decoding = (0..shape.sequences as usize)
            .map(|number| {
                let blocks = take(shape.positions());
                let catches_up = shape.model == ModelRole::Draft && shape.head_calls.is_none() && number == 0;
                let missed = if catches_up { shape.prefill_tokens } else { 0 };
                self.input(number, blocks, shape.context_tokens - 1 - missed, shape.queries() + missed)
            })
            .collect();
        let prefill = (shape.prefill_positions() > 0).then(|| {
            let blocks = take(shape.prefill_positions());
            self.input(shape.sequences as usize, blocks, shape.prefill_done_tokens, shape.prefill_tokens)
        });
        Inputs { decoding, prefill }
    }

    /// A sequence that reads the text from an offset of its own.
    fn input(&self, number: usize, blocks: &[BlockId], start: u32, tokens: u32) -> SequenceInput {
        let from = number * 37 + start as usize;
        SequenceInput {
            request: RequestId(number as u64),
            tokens: (0..tokens as usize).map(|index| self.text[(from + index) % self.text.len()]).collect(),
            start,
            blocks: blocks.to_vec(),
            sampling: Arc::clone(&self.sampling),
            history: None,
        }
    }
}

struct Inputs {
    decoding: Vec<SequenceInput>,
    prefill: Option<SequenceInput>,
}

/// All blocks of a pool in an order that looks like that of a daemon that has run for a while.
fn scattered(blocks: u32) -> Vec<BlockId> {
    let mut order: Vec<BlockId> = (0..blocks).map(BlockId).collect();
    shuffle(&mut order, 0x5CA7);
    order
}

/// A permutation that depends on `seed` alone (Fisher–Yates).
pub fn shuffle<T>(values: &mut [T], seed: u64) {
    let mut random = SplitMix64::new(seed);
    for last in (1..values.len()).rev() {
        values.swap(last, random.below(last as u64 + 1) as usize);
    }
}
