//! `[kv]`: size of the KV caches.

use super::Backend;
use super::reader::{Integer, Section};
use super::render::{Entry, number};

const MEMORY_PERCENT: Integer = Integer::new("memory_percent", 50, 1, 100);
const MEMORY_MIB_MAX: Integer = Integer::new("memory_mib_max", 64, 1, 16 << 20);
const TARGET_BLOCKS: Integer = Integer::new("target_blocks", 1024, 1, 1 << 24);
const GPU_MEMORY_PERCENT: Integer = Integer::new("gpu_memory_percent", 90, 1, 100);
const DRAFT_BLOCKS: Integer = Integer::new("draft_blocks", 1024, 1, 1 << 24);

/// How the size of the KV pools is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvSize {
    /// Percent of the memory that is free beside the weights, split so that both pools hold the
    /// same number of tokens. CPU only.
    MemoryPercent(u32),
    /// At most this many MiB for both pools together, split the same way.
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

impl KvSize {
    /// The size without a `[kv]` section: what the machine has room for.
    fn default_on(backend: Backend) -> KvSize {
        match backend {
            Backend::Cpu => KvSize::MemoryPercent(MEMORY_PERCENT.default as u32),
            Backend::Cuda => KvSize::GpuMemoryPercent(GPU_MEMORY_PERCENT.default as u32),
        }
    }

    /// The key that makes the target's pool larger, as the operator writes it.
    pub fn key(self) -> &'static str {
        match self {
            KvSize::MemoryPercent(_) => "kv.memory_percent",
            KvSize::MemoryMib(_) => "kv.memory_mib_max",
            KvSize::GpuMemoryPercent(_) => "kv.gpu_memory_percent",
            KvSize::Blocks { .. } => "kv.target_blocks",
        }
    }
}

impl PoolBlocks {
    /// As many blocks of each pool as `bytes` hold, for models with these block sizes in bytes
    /// (`None` without a draft model).
    pub fn within(bytes: u64, target_block_bytes: u64, draft_block_bytes: Option<u64>) -> PoolBlocks {
        let pair_bytes = target_block_bytes.saturating_add(draft_block_bytes.unwrap_or(0)).max(1);
        let blocks = (bytes / pair_bytes).min(TARGET_BLOCKS.max) as u32;
        PoolBlocks { target: blocks, draft: draft_block_bytes.map_or(0, |_| blocks) }
    }
}

impl KvConfig {
    pub(super) fn read(mut section: Section<'_>, backend: Backend) -> KvConfig {
        let share = section.optional_integer(&MEMORY_PERCENT);
        let percent = section.optional_integer(&GPU_MEMORY_PERCENT);
        let memory = section.optional_integer(&MEMORY_MIB_MAX);
        let target = section.optional_integer(&TARGET_BLOCKS);
        let draft = section.optional_integer(&DRAFT_BLOCKS);
        let given = [
            (&MEMORY_PERCENT, share),
            (&GPU_MEMORY_PERCENT, percent),
            (&MEMORY_MIB_MAX, memory),
            (&TARGET_BLOCKS, target),
        ];
        let mut given = given.iter().filter_map(|(key, value)| Some((key.name, (*value)?)));
        if let (Some((key, value)), Some(_)) = (given.next(), given.next()) {
            let advice = "keep one of memory_percent, gpu_memory_percent, memory_mib_max and target_blocks";
            section.reject(key, &number(value), "conflicts with another size", advice);
        }
        if let (Some(draft), None) = (draft, target) {
            let advice = "add target_blocks, or set another size instead";
            section.reject("draft_blocks", &number(draft), "requires target_blocks", advice);
        }
        let size = match (share, percent, memory, target) {
            (Some(share), ..) => KvSize::MemoryPercent(share as u32),
            (_, Some(percent), ..) => KvSize::GpuMemoryPercent(percent as u32),
            (_, _, Some(memory), _) => KvSize::MemoryMib(memory),
            (.., Some(target)) => {
                KvSize::Blocks { target: target as u32, draft: draft.unwrap_or(target) as u32 }
            }
            (None, None, None, None) => KvSize::default_on(backend),
        };
        section.finish();
        KvConfig { size }
    }

    pub(super) fn entries(&self) -> Vec<Entry> {
        match self.size {
            KvSize::MemoryPercent(share) => vec![Entry::integer(&MEMORY_PERCENT, share.into())],
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
    /// that. Returns `None` for a share of memory, which is known only on the machine.
    pub fn pool_blocks(&self, target_block_bytes: u64, draft_block_bytes: Option<u64>) -> Option<PoolBlocks> {
        Some(match self.size {
            KvSize::MemoryPercent(_) | KvSize::GpuMemoryPercent(_) => return None,
            KvSize::Blocks { target, draft } => {
                PoolBlocks { target, draft: draft_block_bytes.map_or(0, |_| draft) }
            }
            KvSize::MemoryMib(mib) => PoolBlocks::within(mib << 20, target_block_bytes, draft_block_bytes),
        })
    }
}
