//! Options and models that an executor is not built from.

use super::*;
use crate::model::{ModelSource, load_pair};

#[test]
fn options_out_of_range_are_refused() {
    let with = |change: fn(&mut CpuOptions)| {
        let mut options = options(1);
        change(&mut options);
        CpuExecutor::new(options, target(), None).err().map(|error| error.to_string())
    };
    assert_eq!(with(|_| ()), None);
    for (change, expected) in [
        ((|o| o.threads = 0) as fn(&mut CpuOptions), "threads is 0"),
        (|o| o.block_tokens = 24, "block_tokens is 24"),
        (|o| o.target_blocks = 0, "target_blocks is 0"),
        (|o| o.draft_tokens_max = 65, "draft_tokens_max is 65"),
    ] {
        let error = with(change).expect("refused");
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
}

#[test]
fn models_that_do_not_fit_are_refused() {
    let mut spec = small_spec(VOCAB);
    spec.hidden_size = 40;
    let narrow = random_model(&spec, 1, RandomOptions::default());
    assert!(matches!(CpuExecutor::new(options(1), narrow, None), Err(CpuError::Unsupported(_))));
    let other = random_model(&small_spec(VOCAB + 1), 1, RandomOptions::default());
    assert!(matches!(
        CpuExecutor::new(options(1), target(), Some(other.into())),
        Err(CpuError::Unsupported(_))
    ));
}

/// What an executor of the embedded target says of its memory, with the drafter in this folder of
/// `assets/tiny`, or without one.
fn tiny_memory(draft: Option<&str>) -> ExecutorMemory {
    let folder = |name| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny").join(name);
    let draft = draft.map(|name| ModelSource::Directory(folder(name)));
    let pair = load_pair(&ModelSource::EmbeddedTiny, draft.as_ref()).unwrap();
    let options = CpuOptions { draft_blocks: 48, ..options(1) };
    CpuExecutor::new(options, pair.target.loaded, pair.draft).unwrap().info().memory
}

/// Bytes of a layer's matrices in bf16. Every output count below is a whole number of panels, so
/// nothing is padded.
fn layer_bytes(hidden: u64, inputs: u64, qkv: u64, mlp: u64) -> u64 {
    2 * (inputs * qkv + hidden * hidden + 3 * hidden * mlp)
}

/// Bytes of keys and values in f32, of heads that are 64 wide, in blocks of 16 tokens.
fn pool_bytes(blocks: u64, layers: u64, kv_heads: u64) -> u64 {
    blocks * 16 * layers * 2 * kv_heads * 64 * 4
}

/// Of the embedded target alone, with 64 blocks: six layers, and the output head.
fn tiny_target() -> ExecutorMemory {
    ExecutorMemory {
        target_weights: 6 * layer_bytes(384, 384, 640, 1024) + 2 * 4096 * 384,
        target_kv: pool_bytes(64, 6, 2),
        ..ExecutorMemory::default()
    }
}

#[test]
fn an_executor_tells_the_memory_of_its_target() {
    assert_eq!(tiny_memory(None), tiny_target());
}

#[test]
fn a_draft_model_has_weights_and_a_pool_of_its_own() {
    let expected = ExecutorMemory {
        draft_weights: 3 * layer_bytes(128, 128, 256, 384) + 2 * 4096 * 128,
        draft_kv: pool_bytes(48, 3, 1),
        ..tiny_target()
    };
    assert_eq!(tiny_memory(Some("draft")), expected);
}

/// The hidden states before three layers of the target: of a step's 600 tokens and the 1024 that may
/// wait, in rows that are padded by 16 numbers.
const TINY_STATES: u64 = (600 + 1024) * (3 * 384 + 16) * 4;

#[test]
fn an_eagle3_heads_keys_and_values_are_as_many_as_the_targets_blocks() {
    // the attention reads the embedding beside the state; the output head has half of the tokens
    let (fusion, output_head) = (2 * 384 * 3 * 384, 2 * 2048 * 384);
    let expected = ExecutorMemory {
        draft_weights: layer_bytes(384, 2 * 384, 640, 768) + fusion + output_head,
        draft_kv: pool_bytes(64, 1, 2),
        hidden_states: TINY_STATES,
        ..tiny_target()
    };
    assert_eq!(tiny_memory(Some("eagle3")), expected);
}

#[test]
fn a_dspark_head_has_blocks_for_what_it_drafts_beside_the_targets() {
    // the output head is the target's
    let (fusion, markov) = (2 * 384 * 3 * 384, 2 * 4096 * 64);
    // 256 rows go through the layers together: 36 sequences of seven, each with a block
    let expected = ExecutorMemory {
        draft_weights: 2 * layer_bytes(384, 384, 640, 512) + fusion + markov,
        draft_kv: pool_bytes(64 + 36, 2, 2),
        hidden_states: TINY_STATES,
        ..tiny_target()
    };
    assert_eq!(tiny_memory(Some("dspark")), expected);
}
