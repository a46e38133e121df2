//! `[kv]`: how much memory the key-value caches take.

use super::reader::{Integer, Section};
use super::render::{Entry, number};

const MEMORY_MIB_MAX: Integer = Integer::new("memory_mib_max", 64, 1, 16 << 20);
const TARGET_BLOCKS: Integer = Integer::new("target_blocks", 1024, 1, 1 << 24);
const GPU_MEMORY_PERCENT: Integer = Integer::new("gpu_memory_percent", 90, 1, 100);
const DRAFT_BLOCKS: Integer = Integer::new("draft_blocks", 1024, 1, 1 << 24);

/// The pools' size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvSize {
    /// At most so many MiB for both pools together, split so that both hold the
    /// same number of tokens.
    MemoryMib(u64),
    /// So many percent of the GPU memory that is free once weights and scratch memory are in
    /// place, split likewise. CUDA only.
    GpuMemoryPercent(u32),
    /// So many blocks each; as many for the draft as for the target where the config names one.
    Blocks {
        /// Blocks of the target's pool.
        target: u32,
        /// Blocks of the draft's pool.
        draft: u32,
    },
}

/// The paged caches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvConfig {
    /// Size of the pools.
    pub size: KvSize,
}

/// Blocks of each pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolBlocks {
    /// The target's.
    pub target: u32,
    /// The draft's; 0 without a draft model.
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
            section.reject(key, &number(value), "contradicts another size", advice);
        }
        if let (Some(draft), None) = (draft, target) {
            let advice = "add target_blocks, or give another size in their place";
            section.reject("draft_blocks", &number(draft), "stands without target_blocks", advice);
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

    /// Blocks of each pool, for models whose blocks have these sizes in bytes
    /// (`None`: no draft model). A pool may come out with 0 blocks when the memory
    /// does not hold one; the caller refuses that. `None` for a share of a GPU's memory,
    /// which only the GPU can tell.
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
