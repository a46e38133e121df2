//! The loop that the daemon's actors share among themselves, in one place.

use std::sync::Arc;

use super::collect::Collector;
use super::{Report, Settings};
use crate::executor::Executor;
use crate::policy::{Learner, Scratch};
use crate::protocol::{Clock, ExecutorError, GenerationRequest, Micros, RequestId, SamplingParams, TokenId};
use crate::replay::Arrival;
use crate::scheduler::Scheduler;
use crate::simulate::virtual_executor::{VirtualClock, VirtualExecutor, VirtualOptions};
use crate::step::{StepPlan, Stepped, draft_round, verify_round};

/// A run could not go on.
#[derive(Debug, thiserror::Error)]
pub enum SimulationError {
    /// The policy or the scheduler asked the executor for what no executor does.
    #[error("a step failed: {0}")]
    Step(#[from] ExecutorError),
}

/// Serves `workload` (in order of arrival) with the policy of `learner` until the last request is done.
///
/// # Errors
/// [`SimulationError::Step`]: a defect of the policy or of the scheduler.
pub fn simulate(
    workload: &[Arrival],
    settings: &Settings,
    learner: Box<dyn Learner>,
) -> Result<Report, SimulationError> {
    let mut run = Run::new(workload, settings, learner);
    run.finish()?;
    Ok(run.collector.into_report(&*run.learner, &run.scheduler.gauges(), run.clock.now()))
}

struct Run<'a> {
    settings: &'a Settings,
    workload: &'a [Arrival],
    /// How many of them have arrived.
    arrived: usize,
    scheduler: Scheduler,
    executor: VirtualExecutor,
    clock: Arc<VirtualClock>,
    learner: Box<dyn Learner>,
    scratch: Scratch,
    sampling: Arc<SamplingParams>,
    stop_tokens: Arc<[TokenId]>,
    collector: Collector,
}

impl<'a> Run<'a> {
    fn new(workload: &'a [Arrival], settings: &'a Settings, learner: Box<dyn Learner>) -> Run<'a> {
        let clock = Arc::new(VirtualClock::default());
        let options = VirtualOptions {
            info: settings.executor_info(),
            cost: settings.cost.clone(),
            error: settings.error,
            acceptance: settings.draft.options(workload),
            seed: settings.seed,
        };
        let executor = VirtualExecutor::new(options, clock.clone());
        let last_arrival = workload.last().map_or(Micros::ZERO, |last| last.at);
        Run {
            workload,
            arrived: 0,
            scheduler: Scheduler::new(settings.limits.clone().within(executor.info())),
            executor,
            clock,
            learner,
            scratch: Scratch::default(),
            sampling: Arc::new(SamplingParams {
                temperature: settings.temperature,
                ..SamplingParams::greedy()
            }),
            stop_tokens: Arc::new([]),
            collector: Collector::new(workload.len(), settings.slo, last_arrival),
            settings,
        }
    }

    fn finish(&mut self) -> Result<(), SimulationError> {
        let mut step_started = self.clock.now();
        loop {
            self.take_arrivals();
            let now = self.clock.now();
            if let Some(plan) = self.scheduler.plan(now, &self.learner.snapshot()) {
                self.step(plan, step_started)?;
                step_started = self.clock.now();
            } else if let Some(next) = self.workload.get(self.arrived) {
                self.clock.advance_to(next.at);
                step_started = self.clock.now();
            } else {
                return Ok(());
            }
        }
    }

    /// Everything that has arrived by now waits, or is refused.
    fn take_arrivals(&mut self) {
        let now = self.clock.now();
        while let Some(arrival) = self.workload.get(self.arrived).filter(|arrival| arrival.at <= now) {
            let id = RequestId(self.arrived as u64);
            self.arrived += 1;
            let total = arrival.prompt_tokens.saturating_add(arrival.output_tokens);
            let fits = total <= self.settings.context_tokens_max
                && self.scheduler.check_size(arrival.prompt_tokens, arrival.output_tokens).is_ok();
            let admitted = fits && self.scheduler.gauges().waiting < self.settings.queue_requests_max;
            self.collector.arrival(arrival.at, admitted);
            if admitted {
                self.scheduler.enqueue(self.request(id, arrival));
            }
        }
    }

    fn request(&self, id: RequestId, arrival: &Arrival) -> GenerationRequest {
        GenerationRequest {
            id,
            prompt: VirtualExecutor::prompt(id, arrival.prompt_tokens),
            max_tokens: arrival.output_tokens,
            sampling: self.sampling.clone(),
            stop_tokens: self.stop_tokens.clone(),
            slo: self.settings.slo,
            class: 0,
            arrival: arrival.at,
        }
    }

    fn step(&mut self, plan: StepPlan, started: Micros) -> Result<(), SimulationError> {
        let clock: &VirtualClock = &self.clock;
        let mut drafted = draft_round(&mut self.executor, plan, &mut self.scratch, clock)?;
        let verified = drafted.select(&mut self.scratch);
        let Stepped { outcome, mut report, mut plan } =
            verify_round(&mut self.executor, drafted, verified, clock)?;
        self.executor.spend_host_time();
        let now = self.clock.now();
        report.step_time = now - started;
        let deliveries = self.scheduler.commit(outcome, now);
        self.scheduler.recycle(&mut plan);
        // With the step's snapshot gone, the learner updates its knowledge in place.
        drop(plan);
        self.collector.step(&report, self.learner.predict(&report), now);
        self.collector.deliveries(&deliveries, now);
        self.learner.observe(&report);
        Ok(())
    }
}
