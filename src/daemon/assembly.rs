//! Builds the running engine from a config.

use std::sync::Arc;

use super::executor_plan::ExecutorPlan;
use super::served::EngineBackend;
use super::startup::{Assembled, OnPhase};
use super::{DaemonError, profiling};
use crate::actors::{DoorPolicy, Engine, EngineOptions, Polling};
use crate::config::{Config, DraftConfig, InfeasibleAction, LateAction};
use crate::drafting::NgramOptions;
use crate::executor::Executor;
use crate::model::{LoadedModel, ModelPair, load_pair};
use crate::policy::Policy;
use crate::policy::registry::{PolicyOptions, build as build_policy};
use crate::policy::specserve::SpecServeOptions;
use crate::policy::survival::POSITIONS_MAX;
use crate::protocol::{BLOCK_TOKENS, Clock, Micros, MonotonicClock};
use crate::scheduler::SchedulerLimits;
use crate::telemetry::MetricsConfig;
use crate::timing::cost_model::ROWS_MAX;

/// Loads the models and starts the engine. Blocks.
pub(super) fn assemble(config: &Config, on_phase: OnPhase<'_>) -> Assembled {
    assemble_with(config, on_phase, ExecutorPlan::build)
}

/// [`assemble`] with an executor from `build`, which runs on the device thread.
pub(super) fn assemble_with<B>(config: &Config, on_phase: OnPhase<'_>, build: B) -> Assembled
where
    B: FnOnce(ExecutorPlan, LoadedModel, Option<LoadedModel>) -> Result<Box<dyn Executor>, String>
        + Send
        + 'static,
{
    on_phase("loading the models");
    let draft = config.draft.as_ref().and_then(DraftConfig::model);
    let pair = load_pair(&config.target.model, draft)?;
    let plan = ExecutorPlan::of(config, &pair)?;
    if config.speculation.policy.needs_profile() {
        on_phase("loading or measuring the profile");
    }
    let profile = profiling::for_policy(config, &plan, &pair)?;
    let policy = build_policy(config.speculation.policy, profile.as_ref(), &policy_options(config))?;
    let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::start());
    let options = engine_options(config, policy, plan.polling(), clock);
    let ModelPair { target, draft } = pair;
    let weights = (target.loaded.clone(), draft.map(|model| model.loaded));
    on_phase("building the executor");
    let engine =
        Engine::start(move || build(plan, weights.0, weights.1), options).map_err(DaemonError::Start)?;
    let info = engine.handle().info();
    tracing::info!(
        backend = info.backend,
        device = info.device,
        target_blocks = info.target_blocks,
        draft_blocks = info.draft_blocks,
        policy = %config.speculation.policy,
        "engine started"
    );
    let served = EngineBackend::new(engine.handle().clone(), config, target);
    Ok((engine, served))
}

fn engine_options(
    config: &Config,
    policy: Box<dyn Policy>,
    polling: Polling,
    clock: Arc<dyn Clock>,
) -> EngineOptions {
    EngineOptions {
        limits: SchedulerLimits {
            running_requests_max: config.scheduler.running_requests_max,
            prefill_chunk_tokens_max: config.scheduler.prefill_chunk_tokens_max,
            batch_tokens_max: config.executor.batch_tokens_max,
            draft_tokens_max: config.speculation.draft_tokens_max,
            // the executor determines the number of blocks
            target_blocks: u32::MAX,
            draft_blocks: u32::MAX,
            lookup: lookup(config),
        },
        queue_requests_max: config.scheduler.queue_requests_max,
        queue_prompt_tokens_max: u32::try_from(config.scheduler.queue_prompt_tokens_max).unwrap_or(u32::MAX),
        door: DoorPolicy {
            refuse_infeasible: config.slo.infeasible == InfeasibleAction::Reject,
            refuse_late: config.slo.late == LateAction::Reject,
        },
        policy,
        metrics: MetricsConfig {
            model: config.target.name.clone(),
            policy: config.speculation.policy.to_string(),
            block_tokens: BLOCK_TOKENS,
            slos: config.slo.classes.iter().map(|class| class.slo).collect(),
        },
        clock,
        step_timeout: Micros::from(config.executor.step_timeout),
        polling,
    }
}

/// Options of prompt lookup, if it is the drafting method.
fn lookup(config: &Config) -> Option<NgramOptions> {
    matches!(config.draft, Some(DraftConfig::Ngram)).then(NgramOptions::default)
}

/// The config's limits that concern policies.
fn policy_options(config: &Config) -> PolicyOptions {
    PolicyOptions {
        specserve: SpecServeOptions {
            draft_tokens_max: config.speculation.draft_tokens_max.min(POSITIONS_MAX as u32),
            verify_rows_max: config.executor.batch_tokens_max.min(ROWS_MAX as u32),
            ..SpecServeOptions::default()
        },
        ..PolicyOptions::default()
    }
}
