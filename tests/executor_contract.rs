//! The contract suite on every executor that needs no GPU; `cuda_executor` runs it on one.

#[path = "common/contract_suite.rs"]
mod contract_suite;

use std::sync::Arc;

use specserve::drafting::{NgramOptions, WithPromptLookup};
use specserve::executor::cpu::{CpuExecutor, CpuOptions};
use specserve::executor::{Executor, ShadowExecutor, ShadowOptions};
use specserve::model::random::{
    RandomHeadOptions, RandomOptions, random_block_head, random_eagle3, random_model, small_spec,
};
use specserve::model::{DraftHead, DraftWeights, LoadedModel};
use specserve::protocol::{BLOCK_TOKENS, DrafterNeeds, ExecutorInfo, ExecutorMemory};
use specserve::simulate::virtual_executor::{
    AcceptanceOptions, TimeError, VOCAB_SIZE, VirtualClock, VirtualExecutor, VirtualOptions,
};
use specserve::timing::profile::Profile;

/// Tight bounds, each of which can be exceeded alone.
fn info(vocab_size: u32) -> ExecutorInfo {
    ExecutorInfo {
        backend: "test".to_owned(),
        device: "none".to_owned(),
        vocab_size,
        context_tokens_max: 512,
        block_tokens: BLOCK_TOKENS,
        target_blocks: 40,
        drafter: Some(DrafterNeeds::kv_cache(40)),
        batch_tokens_max: 72,
        batch_sequences_max: 6,
        draft_tokens_max: 4,
        sampled_rows_max: u32::MAX,
        memory: ExecutorMemory::default(),
    }
}

/// A draft model whose drafts may be a tree.
fn branching() -> DrafterNeeds {
    DrafterNeeds { branches: true, ..DrafterNeeds::kv_cache(40) }
}

fn shadow() -> ShadowExecutor {
    ShadowExecutor::new(ShadowOptions { info: info(1000), ..ShadowOptions::small(1, 1) })
}

fn cpu(draft: impl Into<DraftWeights>) -> CpuExecutor {
    let info = info(96);
    let options = CpuOptions {
        threads: 2,
        target_blocks: info.target_blocks,
        draft_blocks: info.draft_blocks(),
        block_tokens: info.block_tokens,
        batch_tokens_max: info.batch_tokens_max,
        batch_sequences_max: info.batch_sequences_max,
        draft_tokens_max: info.draft_tokens_max,
    };
    CpuExecutor::new(options, model(1), Some(draft.into())).expect("the models fit the executor")
}

fn model(seed: u64) -> LoadedModel {
    random_model(&small_spec(96), seed, RandomOptions::default())
}

fn head_options() -> RandomHeadOptions {
    RandomHeadOptions { layers: vec![0, 1], ..RandomHeadOptions::default() }
}

fn simulated() -> VirtualExecutor {
    let profile = Profile::from_toml(include_str!("../profiles/tiny-cpu.toml")).expect("a profile");
    let options = VirtualOptions {
        info: ExecutorInfo { drafter: Some(branching()), ..info(VOCAB_SIZE) },
        cost: profile.cost_model().expect("a cost model"),
        error: TimeError::NONE,
        acceptance: AcceptanceOptions::geometric(0.5),
        seed: 9,
    };
    VirtualExecutor::new(options, Arc::new(VirtualClock::default()))
}

#[test]
fn the_cpu_executor_keeps_the_contract() {
    contract_suite::check_target(&mut cpu(model(2)));
    contract_suite::check_drafter(&mut cpu(model(2)));
}

#[test]
fn the_cpu_executor_keeps_the_contract_with_a_head_that_drafts_chains() {
    let head = || DraftHead::Eagle3(Box::new(random_eagle3(&small_spec(96), 3, &head_options())));
    contract_suite::check_target(&mut cpu(head()));
    contract_suite::check_drafter(&mut cpu(head()));
}

#[test]
fn the_cpu_executor_keeps_the_contract_with_a_head_that_drafts_blocks() {
    let head = || DraftHead::Block(Box::new(random_block_head(&small_spec(96), 4, &head_options())));
    assert_eq!(cpu(head()).info().draft_tokens_max, 4, "a block of five drafts five, four are verified");
    contract_suite::check_target(&mut cpu(head()));
    contract_suite::check_block_drafter(&mut cpu(head()));
}

#[test]
fn the_shadow_keeps_the_contract() {
    contract_suite::check_target(&mut shadow());
    contract_suite::check_drafter(&mut shadow());
    let branching = ExecutorInfo { drafter: Some(branching()), ..info(1000) };
    let options = ShadowOptions { info: branching, ..ShadowOptions::small(1, 1) };
    contract_suite::check_drafter(&mut ShadowExecutor::new(options));
}

#[test]
fn the_virtual_executor_keeps_the_contract() {
    contract_suite::check_target(&mut simulated());
    contract_suite::check_drafter(&mut simulated());
}

#[test]
fn an_executor_with_prompt_lookup_keeps_the_targets_contract() {
    let mut executor = WithPromptLookup::new(Box::new(shadow()), NgramOptions::default());
    assert_eq!(executor.info().drafter, Some(DrafterNeeds::tokens()));
    contract_suite::check_target(&mut executor);
}
