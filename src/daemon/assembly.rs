//! Builds the running engine from a config.

use std::sync::Arc;

use super::DaemonError;
use super::executor_plan::ExecutorPlan;
use super::models::load_models;
use super::profiling::{TimeSource, for_drafter};
use super::served::EngineBackend;
use super::startup::{Assembled, OnPhase};
use crate::actors::{AdmissionPolicy, Engine, EngineOptions, EngineParts, Polling};
use crate::config::{Config, DraftConfig, InfeasibleAction};
use crate::drafting::{NgramOptions, WithPromptLookup};
use crate::executor::Executor;
use crate::model::{DraftWeights, LoadedModel, ModelPair};
use crate::pacing::{LateAction, Pacer, ServiceOrder};
use crate::policy::registry::{PolicyOptions, build as build_policy};
use crate::policy::specserve::SpecServeOptions;
use crate::policy::survival::POSITIONS_MAX;
use crate::protocol::{BLOCK_TOKENS, Clock, Micros, MonotonicClock};
use crate::scheduler::SchedulerLimits;
use crate::telemetry::MetricsConfig;
use crate::timing::cost_model::ROWS_MAX;
use crate::timing::profile::Profile;

/// Loads the models and starts the engine. Blocks.
pub(super) fn assemble(config: &Config, on_phase: OnPhase<'_>) -> Assembled {
    assemble_with(config, on_phase, ExecutorPlan::build)
}

/// [`assemble`] with an executor from `build`, which runs on the device thread.
pub(super) fn assemble_with<B>(config: &Config, on_phase: OnPhase<'_>, build: B) -> Assembled
where
    B: FnOnce(ExecutorPlan, LoadedModel, Option<DraftWeights>) -> Result<Box<dyn Executor>, String>
        + Send
        + 'static,
{
    on_phase.show("loading the models");
    let pair = load_models(config)?;
    let plan = ExecutorPlan::of(config, &pair)?;
    let times = TimeSource::of(config, &plan, &pair)?;
    let options = engine_options(config, plan.polling(), Arc::new(MonotonicClock::start()));
    let ModelPair { target, draft } = pair;
    let weights = (target.loaded.clone(), draft);
    on_phase.show("building the executor");
    let phase = on_phase.clone();
    let drafts = (config.draft.clone(), config.speculation.policy, policy_options(config));
    let (order, late) = (config.scheduler.order, config.slo.late);
    let engine = Engine::start(
        move || {
            let mut executor = build(plan, weights.0, weights.1)?;
            let (draft, policy, options) = drafts;
            let profile = times.resolve(executor.as_mut(), &phase).map_err(|error| error.to_string())?;
            let profile = for_drafter(profile, draft.as_ref());
            let learner =
                build_policy(policy, profile.as_ref(), &options).map_err(|error| error.to_string())?;
            let pacer = pacer(order, late, profile.as_ref())?;
            Ok(EngineParts { executor: with_drafter(executor, draft.as_ref()), learner, pacer })
        },
        options,
    );
    let engine = engine.map_err(DaemonError::Start)?;
    let info = engine.handle().info();
    tracing::info!(
        backend = info.backend,
        device = info.device,
        target_blocks = info.target_blocks,
        draft_blocks = info.draft_blocks(),
        policy = %config.speculation.policy,
        order = config.scheduler.order.name(),
        "engine started"
    );
    let served = EngineBackend::new(engine.handle().clone(), config, target);
    Ok((engine, served))
}

fn engine_options(config: &Config, polling: Polling, clock: Arc<dyn Clock>) -> EngineOptions {
    EngineOptions {
        limits: SchedulerLimits {
            running_requests_max: config.scheduler.running_requests_max,
            prefill_chunk_tokens_max: config.scheduler.prefill_chunk_tokens_max,
            batch_tokens_max: config.executor.batch_tokens_max,
            draft_tokens_max: config.speculation.draft_tokens_max,
            sampled_rows_max: u32::MAX,
            // the executor says how many blocks there are, and what its drafter needs
            target_blocks: u32::MAX,
            drafter: None,
        },
        queue_requests_max: config.scheduler.queue_requests_max,
        queue_prompt_tokens_max: u32::try_from(config.scheduler.queue_prompt_tokens_max).unwrap_or(u32::MAX),
        refusals: AdmissionPolicy {
            refuse_infeasible: config.slo.infeasible == InfeasibleAction::Reject,
            refuse_late: config.slo.late == LateAction::Reject,
        },
        metrics: MetricsConfig {
            model: config.target.name.clone(),
            policy: config.speculation.policy.to_string(),
            block_tokens: BLOCK_TOKENS,
            slos: config.slo.classes.iter().map(|class| class.slo).collect(),
        },
        clock,
        step_timeout: Micros::from(config.executor.step_timeout),
        queue_wait_max: Micros::from(config.scheduler.queue_wait_max),
        polling,
    }
}

/// What serves by slack, if that is the order.
fn pacer(order: ServiceOrder, late: LateAction, profile: Option<&Profile>) -> Result<Option<Pacer>, String> {
    match (order, profile) {
        (ServiceOrder::Fifo, _) => Ok(None),
        (ServiceOrder::Slo, None) => Err("the order slo needs a profile".to_owned()),
        (ServiceOrder::Slo, Some(profile)) => {
            let cost = profile.cost_model().map_err(|error| error.to_string())?;
            Ok(Some(Pacer::new(cost).with_late(late)))
        }
    }
}

/// The executor with the configured drafter: prompt lookup, or its own draft model.
fn with_drafter(executor: Box<dyn Executor>, draft: Option<&DraftConfig>) -> Box<dyn Executor> {
    match draft {
        Some(DraftConfig::Ngram) => Box::new(WithPromptLookup::new(executor, NgramOptions::default())),
        _ => executor,
    }
}

/// The config's limits that concern policies.
fn policy_options(config: &Config) -> PolicyOptions {
    PolicyOptions {
        specserve: SpecServeOptions {
            draft_tokens_max: config.speculation.draft_tokens_max.min(POSITIONS_MAX as u32),
            verify_rows_max: config.executor.batch_tokens_max.min(ROWS_MAX as u32),
            shape: config.speculation.shape,
            ..SpecServeOptions::default()
        },
        ..PolicyOptions::default()
    }
}
