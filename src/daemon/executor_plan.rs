//! Plans the executor before its thread exists.

#[cfg(feature = "cuda")]
use std::time::Duration;

use super::{DaemonError, host_memory};
use crate::actors::Polling;
use crate::analyzer::Machine;
use crate::config::{Backend, Config, KvSize, PoolBlocks};
use crate::executor::Executor;
use crate::executor::cpu::{
    CpuExecutor, CpuOptions, device_description, hidden_state_bytes, kv_block_bytes, packed_bytes,
};
use crate::model::{DraftWeights, LoadedModel, ModelPair, ModelSpec};
use crate::protocol::{BLOCK_TOKENS, blocks_for};

/// With a GPU, the host's threads poll for each other: for jobs longer than the actors take
/// between two steps, for results longer than steps usually take. A CPU executor needs the
/// cores that polling would occupy.
#[cfg(feature = "cuda")]
const GPU_POLLING: Polling = Polling { job: Duration::from_micros(500), answer: Duration::from_millis(50) };

/// A planned executor.
#[derive(Clone, Debug)]
pub(super) enum ExecutorPlan {
    /// The CPU backend.
    Cpu(CpuOptions),
    /// The CUDA backend.
    #[cfg(feature = "cuda")]
    Cuda(crate::executor::cuda::CudaOptions),
}

impl ExecutorPlan {
    /// Plans the configured executor for these models.
    pub(super) fn of(config: &Config, pair: &ModelPair) -> Result<ExecutorPlan, DaemonError> {
        match config.executor.backend {
            Backend::Cpu => cpu(config, pair),
            #[cfg(feature = "cuda")]
            Backend::Cuda => cuda(config, pair),
            #[cfg(not(feature = "cuda"))]
            Backend::Cuda => Err(DaemonError::Start(
                "executor.backend is \"cuda\" but this binary was built without CUDA; build with --features cuda"
                    .to_owned(),
            )),
        }
    }

    /// How long the engine and device threads poll for each other.
    pub(super) fn polling(&self) -> Polling {
        match self {
            ExecutorPlan::Cpu(_) => Polling::NONE,
            #[cfg(feature = "cuda")]
            ExecutorPlan::Cuda(_) => GPU_POLLING,
        }
    }

    /// The machine that the executor will run on.
    pub(super) fn machine(&self) -> Result<Machine, DaemonError> {
        match self {
            ExecutorPlan::Cpu(options) => Ok(Machine {
                backend: Backend::Cpu.name().to_owned(),
                device: device_description(options.threads),
                driver: String::new(),
                threads: options.threads as u32,
            }),
            #[cfg(feature = "cuda")]
            ExecutorPlan::Cuda(options) => {
                let gpu = crate::executor::cuda::driver::probe(options.ordinal);
                let gpu = gpu.map_err(|error| DaemonError::Start(error.to_string()))?;
                Ok(Machine {
                    backend: Backend::Cuda.name().to_owned(),
                    device: gpu.name,
                    driver: gpu.driver_api,
                    threads: 1,
                })
            }
        }
    }

    /// Builds the executor. Must be called on the device thread.
    pub(super) fn build(
        self,
        target: LoadedModel,
        draft: Option<DraftWeights>,
    ) -> Result<Box<dyn Executor>, String> {
        match self {
            ExecutorPlan::Cpu(options) => {
                let executor = CpuExecutor::new(options, target, draft);
                let mut executor = executor.map_err(|error| error.to_string())?;
                // this thread computes as well; unpinned it may share a core with a compute thread
                executor.pin_caller();
                executor.warm_up().map_err(|error| error.to_string())?;
                Ok(Box::new(executor))
            }
            #[cfg(feature = "cuda")]
            ExecutorPlan::Cuda(options) => {
                let executor = crate::executor::cuda::CudaExecutor::new(&target, draft.as_ref(), options);
                let mut executor = executor.map_err(|error| error.to_string())?;
                executor.warm_up().map_err(|error| error.to_string())?;
                Ok(Box::new(executor))
            }
        }
    }
}

fn cpu(config: &Config, pair: &ModelPair) -> Result<ExecutorPlan, DaemonError> {
    let blocks = cpu_pools(config, pair)?;
    let draft_model = pair.draft.as_ref().and_then(DraftWeights::model);
    if blocks.target == 0 || (draft_model.is_some() && blocks.draft == 0) {
        let key = config.kv.size.key();
        let advice = format!("the KV memory does not hold one block of each model; raise {key}");
        return Err(DaemonError::Start(advice));
    }
    let threads = match config.executor.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    Ok(ExecutorPlan::Cpu(CpuOptions {
        threads,
        target_blocks: blocks.target,
        draft_blocks: blocks.draft,
        block_tokens: BLOCK_TOKENS,
        batch_tokens_max: config.executor.batch_tokens_max,
        batch_sequences_max: config.executor.batch_sequences_max,
        draft_tokens_max: config.speculation.draft_tokens_max,
    }))
}

/// What to assume of a machine that does not say how much memory is free, in bytes.
const UNKNOWN_MEMORY_BYTES: u64 = 2 << 30;

fn cpu_pools(config: &Config, pair: &ModelPair) -> Result<PoolBlocks, DaemonError> {
    let (target_block_bytes, draft_block_bytes) =
        block_bytes(pair, |spec| kv_block_bytes(spec, BLOCK_TOKENS));
    let KvSize::MemoryPercent(percent) = config.kv.size else {
        let advice = "kv.gpu_memory_percent requires the CUDA backend; set kv.memory_percent instead";
        let blocks = config.kv.pool_blocks(target_block_bytes, draft_block_bytes);
        return blocks.ok_or_else(|| DaemonError::Start(advice.to_owned()));
    };
    let draft = pair.draft.iter().flat_map(DraftWeights::matrices);
    let weight_bytes = packed_bytes(pair.target.loaded.matrices().into_iter().chain(draft));
    let head = pair.draft.as_ref().and_then(DraftWeights::head);
    let state_bytes = head.map_or(0, |head| hidden_state_bytes(head, config.executor.batch_tokens_max));
    let available_bytes = host_memory::available_bytes().unwrap_or(UNKNOWN_MEMORY_BYTES);
    let share_bytes = share_of_rest(available_bytes, weight_bytes + state_bytes, percent);
    let share_bytes = share_bytes.map_err(DaemonError::Start)?;
    let blocks = PoolBlocks::within(share_bytes, target_block_bytes, draft_block_bytes);
    // more than all running requests can fill is of no use but as a prefix cache
    let context_blocks = blocks_for(pair.target.loaded.spec.context_tokens_max as u32);
    let useful = context_blocks.saturating_mul(config.scheduler.running_requests_max);
    Ok(PoolBlocks { target: blocks.target.min(useful), draft: blocks.draft.min(useful) })
}

/// Bytes of a block of the target's pool, and of the pool of a draft model. A draft head has its
/// keys and values in the target's blocks.
fn block_bytes(pair: &ModelPair, of: impl Fn(&ModelSpec) -> u64) -> (u64, Option<u64>) {
    let target = of(&pair.target.loaded.spec);
    match &pair.draft {
        None => (target, None),
        Some(DraftWeights::Model(model)) => (target, Some(of(&model.spec))),
        Some(DraftWeights::Head(head)) => (target + of(head.spec()), None),
    }
}

/// `percent` of what the weights leave of the free memory, in bytes.
fn share_of_rest(available_bytes: u64, weight_bytes: u64, percent: u32) -> Result<u64, String> {
    match available_bytes.checked_sub(weight_bytes) {
        Some(rest_bytes) if rest_bytes > 0 => Ok(rest_bytes / 100 * u64::from(percent)),
        _ => Err(format!(
            "the weights take {} MiB and {} MiB of memory are free, which leaves no room for a KV cache; free \
             memory, choose a smaller model, or set kv.memory_mib_max to start all the same",
            weight_bytes >> 20,
            available_bytes >> 20
        )),
    }
}

#[cfg(feature = "cuda")]
fn cuda(config: &Config, pair: &ModelPair) -> Result<ExecutorPlan, DaemonError> {
    use crate::executor::cuda::forward::kv_block_elements;
    use crate::executor::cuda::{CudaOptions, KvBudget};

    // the cache holds bf16
    let kv_block_bytes = |spec: &ModelSpec| 2 * kv_block_elements(spec) as u64;
    let (target_block_bytes, draft_block_bytes) = block_bytes(pair, kv_block_bytes);
    let kv = match config.kv.size {
        KvSize::GpuMemoryPercent(percent) => KvBudget::MemoryFraction(f64::from(percent) / 100.0),
        _ => {
            let blocks = config.kv.pool_blocks(target_block_bytes, draft_block_bytes).ok_or_else(|| {
                let advice = "kv.memory_percent requires the CPU backend; set kv.gpu_memory_percent instead";
                DaemonError::Start(advice.to_owned())
            })?;
            KvBudget::Blocks { target: blocks.target, draft: blocks.draft }
        }
    };
    Ok(ExecutorPlan::Cuda(CudaOptions {
        ordinal: config.executor.gpu,
        kv,
        batch_tokens_max: config.executor.batch_tokens_max,
        batch_sequences_max: config.executor.batch_sequences_max,
        draft_tokens_max: config.speculation.draft_tokens_max,
        ..CudaOptions::default()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caches_share_what_the_weights_leave_of_the_free_memory() {
        assert_eq!(share_of_rest(1000, 200, 50), Ok(400));
        let error = share_of_rest(1 << 30, 2 << 30, 50).expect_err("there is no room");
        assert!(error.contains("take 2048 MiB and 1024 MiB of memory are free"), "{error}");
    }

    #[test]
    fn a_small_models_caches_hold_no_more_than_its_running_requests_can_fill() {
        let config = Config::parse(
            "[target]\nmodel = \"embedded:tiny\"\n[draft]\nmodel = \"embedded:tiny\"\n[scheduler]\nrunning_requests_max = 2",
        );
        let config = config.expect("valid");
        let pair = super::super::models::load_models(&config).expect("embedded");
        let pools = cpu_pools(&config, &pair).expect("there is memory");
        assert_eq!(pools, PoolBlocks { target: 2 * 2048 / BLOCK_TOKENS, draft: 2 * 2048 / BLOCK_TOKENS });
    }

    #[test]
    fn a_draft_heads_cache_is_part_of_the_targets_blocks() {
        let head = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tiny/dspark");
        let text = format!(
            "[target]\nmodel = \"embedded:tiny\"\n[draft]\nmodel = \"{head}\"\n[kv]\nmemory_mib_max = 64"
        );
        let config = Config::parse(&text).expect("valid");
        let pair = super::super::models::load_models(&config).expect("both load");
        // 16 tokens, keys and values in f32: six layers of two heads of 64, and two of the head's
        let block_bytes = (6 + 2) * 2 * 2 * 64 * 16 * 4;
        let pools = cpu_pools(&config, &pair).expect("there is memory");
        assert_eq!(pools, PoolBlocks { target: (64 << 20) / block_bytes, draft: 0 });
    }
}
