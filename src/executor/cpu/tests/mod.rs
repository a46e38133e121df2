//! The executor as its callers see it, on small random models.
#![forbid(unsafe_code)]

mod batches;
mod construction;
mod drafts;
mod heads;
#[cfg(target_os = "linux")]
mod memory;
mod not_finite;
mod plain;
mod reference;

use std::sync::Arc;

use super::verifying::target_pass;
use super::*;
use crate::executor::DraftChains;
use crate::model::random::{RandomOptions, random_model, small_spec};
use crate::protocol::{BlockId, RequestId, SamplingParams, TokenId};

const VOCAB: usize = 96;

fn options(threads: usize) -> CpuOptions {
    CpuOptions {
        threads,
        target_blocks: 64,
        draft_blocks: 64,
        block_tokens: 16,
        batch_tokens_max: 600,
        batch_sequences_max: 40,
        draft_tokens_max: 64,
    }
}

fn target() -> LoadedModel {
    random_model(&small_spec(VOCAB), 1, RandomOptions::default())
}

fn executor(threads: usize) -> CpuExecutor {
    let draft = random_model(&small_spec(VOCAB), 2, RandomOptions::default());
    CpuExecutor::new(options(threads), target(), Some(draft.into())).unwrap()
}

/// Tokens of a text of its own for each seed.
fn text(seed: u32, len: u32) -> Vec<TokenId> {
    (0..len).map(|i| (i * i * 7 + i * 13 + seed * 29 + 5) % VOCAB as u32).collect()
}

fn input(blocks: &[u32], tokens: &[TokenId], start: u32) -> SequenceInput {
    SequenceInput {
        request: RequestId(7),
        tokens: tokens.to_vec(),
        start,
        blocks: blocks.iter().copied().map(BlockId).collect(),
        sampling: Arc::new(SamplingParams::greedy()),
        history: None,
    }
}

fn chain(blocks: &[u32], tokens: &[TokenId], start: u32, drafts: u32) -> VerifyRow {
    VerifyRow { drafts, ..VerifyRow::decode(input(blocks, tokens, start)) }
}

/// The logits at every node where the target samples, in order.
fn all_logits(executor: &mut CpuExecutor, rows: &[VerifyRow]) -> Vec<Vec<f32>> {
    let count = executor.target.forward(&executor.workers.pool, &target_pass(rows), None).unwrap();
    (0..count)
        .map(|one| executor.target.logits(&executor.workers.pool, one..one + 1).unwrap().row(0).to_vec())
        .collect()
}

fn verify(executor: &mut CpuExecutor, rows: &[VerifyRow]) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    executor.verify(rows, &mut verdicts).unwrap();
    verdicts
}
