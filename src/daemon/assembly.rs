//! From a config to a running engine.

use std::sync::Arc;
use std::time::Duration;

use super::DaemonError;
use super::served::ServedEngine;
use crate::actors::{DoorPolicy, Engine, EngineOptions};
use crate::config::{Backend, Config, Infeasible, Late, PolicySpec};
use crate::executor::Executor;
use crate::executor::cpu::{CpuExecutor, CpuOptions, kv_block_bytes};
use crate::kv::BLOCK_TOKENS;
use crate::model::{LoadedModel, ModelPair, ModelSpec, load_pair};
use crate::policy::{Fixed, Policy};
use crate::scheduler::SchedulerLimits;
use crate::telemetry::MetricsConfig;
use crate::time::{Clock, Micros, MonotonicClock};

/// Polling costs a core that a CPU executor needs; a GPU's host thread has one to spare.
const CPU_DEVICE_SPIN: Duration = Duration::ZERO;

/// Loads the models and starts the engine. Blocks.
pub(super) fn assemble(config: &Config) -> Result<(Engine, ServedEngine), DaemonError> {
    let draft = config.draft.as_ref().map(|draft| &draft.model);
    let ModelPair { target, draft } = load_pair(&config.target.model, draft)?;
    let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::start());
    let options = engine_options(config, clock);
    let executor =
        ExecutorPlan::new(config, &target.loaded.spec, draft.as_ref().map(|model| &model.loaded.spec))?;
    let weights = (target.loaded.clone(), draft.map(|model| model.loaded));
    let engine =
        Engine::start(move || executor.build(weights.0, weights.1), options).map_err(DaemonError::Start)?;
    let info = engine.handle().info();
    tracing::info!(
        backend = info.backend,
        device = info.device,
        target_blocks = info.target_blocks,
        draft_blocks = info.draft_blocks,
        "the engine runs"
    );
    let served = ServedEngine::new(engine.handle().clone(), config, target);
    Ok((engine, served))
}

fn engine_options(config: &Config, clock: Arc<dyn Clock>) -> EngineOptions {
    EngineOptions {
        limits: SchedulerLimits {
            running_requests_max: config.scheduler.running_requests_max,
            prefill_chunk_tokens_max: config.scheduler.prefill_chunk_tokens_max,
            batch_tokens_max: config.executor.batch_tokens_max,
            draft_tokens_max: config.speculation.draft_tokens_max,
            // the executor says how many blocks there are
            target_blocks: u32::MAX,
            draft_blocks: u32::MAX,
            lookup: None,
        },
        queue_requests_max: config.scheduler.queue_requests_max,
        queue_prompt_tokens_max: u32::try_from(config.scheduler.queue_prompt_tokens_max).unwrap_or(u32::MAX),
        door: DoorPolicy {
            refuse_infeasible: config.slo.infeasible == Infeasible::Reject,
            refuse_late: config.slo.late == Late::Reject,
        },
        policy: policy(config.speculation.policy),
        metrics: MetricsConfig {
            model: config.target.name.clone(),
            policy: config.speculation.policy.to_string(),
            block_tokens: BLOCK_TOKENS,
            slos: config.slo.classes.iter().map(|class| class.slo).collect(),
        },
        clock,
        step_timeout: Micros::from(config.executor.step_timeout),
        device_spin: CPU_DEVICE_SPIN,
    }
}

fn policy(spec: PolicySpec) -> Box<dyn Policy> {
    match spec {
        PolicySpec::None => Box::new(Fixed::NONE),
        PolicySpec::Fixed { draft_tokens } => Box::new(Fixed { draft_tokens }),
    }
}

/// How the executor is to be built, once it is on its thread.
struct ExecutorPlan {
    backend: Backend,
    options: CpuOptions,
}

impl ExecutorPlan {
    fn new(
        config: &Config,
        target: &ModelSpec,
        draft: Option<&ModelSpec>,
    ) -> Result<ExecutorPlan, DaemonError> {
        let blocks = config.kv.pool_blocks(
            kv_block_bytes(target, BLOCK_TOKENS),
            draft.map(|draft| kv_block_bytes(draft, BLOCK_TOKENS)),
        );
        if blocks.target == 0 || (draft.is_some() && blocks.draft == 0) {
            let advice =
                "the KV caches' memory does not hold one block of each model: raise kv.memory_mib_max";
            return Err(DaemonError::Start(advice.to_owned()));
        }
        let threads = match config.executor.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        Ok(ExecutorPlan {
            backend: config.executor.backend,
            options: CpuOptions {
                threads,
                target_blocks: blocks.target,
                draft_blocks: blocks.draft,
                block_tokens: BLOCK_TOKENS,
                batch_tokens_max: config.executor.batch_tokens_max,
                batch_sequences_max: config.executor.batch_sequences_max,
                draft_tokens_max: config.speculation.draft_tokens_max,
            },
        })
    }

    fn build(self, target: LoadedModel, draft: Option<LoadedModel>) -> Result<Box<dyn Executor>, String> {
        match self.backend {
            Backend::Cpu => {
                let executor =
                    CpuExecutor::new(self.options, target, draft).map_err(|error| error.to_string())?;
                // this thread computes, too: unpinned it may share a core with its own helpers
                executor.pin_caller();
                Ok(Box::new(executor))
            }
        }
    }
}
