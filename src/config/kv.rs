//! `[kv]`: size of the KV caches.

use super::reader::{Integer, Section};
use super::render::{Entry, number};

const MEMORY_MIB_MAX: Integer = Integer::new("memory_mib_max", 64, 1, 16 << 20);
const TARGET_BLOCKS: Integer = Integer::new("target_blocks", 1024, 1, 1 << 24);
const GPU_MEMORY_PERCENT: Integer = Integer::new("gpu_memory_percent", 90, 1, 100);
const DRAFT_BLOCKS: Integer = Integer::new("draft_blocks", 1024, 1, 1 << 24);

/// How the size of the KV pools is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvSize {
    /// At most this many MiB for both pools together, split so that both hold the same number
    /// of tokens.
    MemoryMib(u64),
    /// Percent of the GPU memory that is free after weights and scratch memory are allocated,
    /// split the same way. CUDA only.
    GpuMemoryPercent(u32),
    /// An explicit number of blocks; `draft_blocks` defaults to `target_blocks`.
    Blocks {
        /// Blocks of the target's pool.
        target: u32,
        /// Blocks of the draft's pool.
        draft: u32,
    },
}

/// The paged KV caches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvConfig {
    /// Size of the KV pools.
    pub size: KvSize,
}

/// Number of blocks in each pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolBlocks {
    /// Blocks of the target's pool.
    pub target: u32,
    /// Blocks of the draft's pool; 0 without a draft model.
    pub draft: u32,
}

impl KvConfig {
    pub(super) fn read(mut section: Section<'_>) -> KvConfig {
        let percent = section.optional_integer(&GPU_MEMORY_PERCENT);
        let memory = section.optional_integer(&MEMORY_MIB_MAX);
        let target = section.optional_integer(&TARGET_BLOCKS);
        let draft = section.optional_integer(&DRAFT_BLOCKS);
        if [percent, memory, target].into_iter().flatten().count() > 1 {
            let (key, value) = match (percent, memory) {
                (Some(percent), _) => (GPU_MEMORY_PERCENT.name, percent),
                (None, memory) => (MEMORY_MIB_MAX.name, memory.unwrap_or_default()),
            };
            let advice = "keep one of gpu_memory_percent, memory_mib_max and target_blocks";
            section.reject(key, &number(value), "conflicts with another size", advice);
        }
        if let (Some(draft), None) = (draft, target) {
            let advice = "add target_blocks, or set another size instead";
            section.reject("draft_blocks", &number(draft), "requires target_blocks", advice);
        }
        let size = match (percent, memory, target) {
            (Some(percent), _, _) => KvSize::GpuMemoryPercent(percent as u32),
            (None, _, Some(target)) => {
                KvSize::Blocks { target: target as u32, draft: draft.unwrap_or(target) as u32 }
            }
            (None, memory, None) => KvSize::MemoryMib(memory.unwrap_or(MEMORY_MIB_MAX.default)),
        };
        section.finish();
        KvConfig { size }
    }

    pub(super) fn entries(&self) -> Vec<Entry> {
        match self.size {
            KvSize::MemoryMib(memory) => vec![Entry::integer(&MEMORY_MIB_MAX, memory)],
            KvSize::GpuMemoryPercent(percent) => vec![Entry::integer(&GPU_MEMORY_PERCENT, percent.into())],
            KvSize::Blocks { target, draft } => vec![
                Entry::integer(&TARGET_BLOCKS, u64::from(target)),
                Entry::integer(&DRAFT_BLOCKS, u64::from(draft)),
            ],
        }
    }

    /// Blocks of each pool, for models with these block sizes in bytes (`None` without a draft
    /// model). A pool may get 0 blocks if the memory does not hold one; the caller must reject
    /// that. Returns `None` for a share of GPU memory, which is known only on the device.
    pub fn pool_blocks(&self, target_block_bytes: u64, draft_block_bytes: Option<u64>) -> Option<PoolBlocks> {
        Some(match self.size {
            KvSize::GpuMemoryPercent(_) => return None,
            KvSize::Blocks { target, draft } => {
                PoolBlocks { target, draft: draft_block_bytes.map_or(0, |_| draft) }
            }
            KvSize::MemoryMib(mib) => {
                let pair_bytes = target_block_bytes.saturating_add(draft_block_bytes.unwrap_or(0)).max(1);
                let blocks = ((mib << 20) / pair_bytes).min(TARGET_BLOCKS.max) as u32;
                PoolBlocks { target: blocks, draft: draft_block_bytes.map_or(0, |_| blocks) }
            }
        })
    }
}
