//! A run: arrivals from a workload, steps on the virtual executor, the daemon's own engine core.

use std::sync::Arc;

use super::classes;
use super::collect::Collector;
use super::{Report, Settings};
use crate::engine::{EngineCore, Finished};
use crate::executor::Executor;
use crate::pacing::{Pacer, ServiceOrder};
use crate::policy::{Learner, Scratch};
use crate::protocol::{Clock, ExecutorError, GenerationRequest, Micros, RequestId, SamplingParams, TokenId};
use crate::replay::Arrival;
use crate::scheduler::Scheduler;
use crate::simulate::virtual_executor::{VirtualClock, VirtualExecutor, VirtualOptions};
use crate::step::{self, SpeculationFault, StepPlan};

/// A run could not go on.
#[derive(Debug, thiserror::Error)]
pub enum SimulationError {
    /// The policy or the scheduler asked the executor for what no executor does.
    #[error("a step failed: {0}")]
    Step(#[from] ExecutorError),
    /// The policy panicked. The daemon would go on without it; a simulation of it is worth
    /// nothing.
    #[error("{0}")]
    Speculation(SpeculationFault),
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
    Ok(run.collector.into_report(settings.order, &run.core, run.clock.now()))
}

struct Run<'a> {
    settings: &'a Settings,
    workload: &'a [Arrival],
    /// The index of each one's class.
    classes: Arc<[u8]>,
    /// How many of them have arrived.
    arrived: usize,
    core: EngineCore,
    executor: VirtualExecutor,
    scratch: Scratch,
    clock: Arc<VirtualClock>,
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
        let scheduler = Scheduler::new(settings.limits.clone().within(executor.info()));
        let scheduler = match settings.order {
            ServiceOrder::Fifo => scheduler,
            ServiceOrder::Slo => scheduler.paced(Pacer::new(settings.cost.clone()).with_late(settings.late)),
        };
        let last_arrival = workload.last().map_or(Micros::ZERO, |last| last.at);
        let classes: Arc<[u8]> = classes::assign(&settings.classes, workload.len(), settings.seed).into();
        Run {
            workload,
            arrived: 0,
            core: EngineCore::new(scheduler, learner),
            executor,
            scratch: Scratch::default(),
            clock,
            sampling: Arc::new(SamplingParams {
                temperature: settings.temperature,
                ..SamplingParams::greedy()
            }),
            stop_tokens: Arc::new([]),
            collector: Collector::new(&settings.classes, classes.clone(), last_arrival),
            classes,
            settings,
        }
    }

    fn finish(&mut self) -> Result<(), SimulationError> {
        loop {
            self.take_arrivals();
            let plan = self.core.begin(self.clock.now());
            self.collector.deliveries(&self.core.take_refused(), self.clock.now());
            if let Some(plan) = plan {
                self.step(plan)?;
            } else if let Some(next) = self.workload.get(self.arrived) {
                self.clock.advance_to(next.at);
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
                && self.core.scheduler().check_size(arrival.prompt_tokens, arrival.output_tokens).is_ok();
            let admitted = fits && self.core.scheduler().gauges().waiting < self.settings.queue_requests_max;
            self.collector.arrival(id, arrival.at, admitted);
            if admitted {
                self.core.enqueue(self.request(id, arrival));
            }
        }
    }

    fn request(&self, id: RequestId, arrival: &Arrival) -> GenerationRequest {
        let index = self.classes[id.0 as usize];
        let class = &self.settings.classes[usize::from(index)];
        GenerationRequest {
            id,
            prompt: VirtualExecutor::prompt(id, arrival.prompt_tokens),
            max_tokens: arrival.output_tokens,
            sampling: self.sampling.clone(),
            stop_tokens: self.stop_tokens.clone(),
            slo: class.slo,
            class: index,
            weight: class.weight,
            arrival: arrival.at,
        }
    }

    fn step(&mut self, plan: StepPlan) -> Result<(), SimulationError> {
        let clock: &VirtualClock = &self.clock;
        let result = step::run(&mut self.executor, plan, &mut self.scratch, clock)?;
        result.check(self.executor.info().vocab_size)?;
        if let Some(fault) = result.fault {
            return Err(SimulationError::Speculation(fault));
        }
        self.executor.spend_host_time();
        let now = self.clock.now();
        let Some(finished) = self.core.finish(result, now) else { return Ok(()) };
        let Finished { deliveries, report, plan, .. } = finished;
        drop(plan);
        let learned = self.core.settle(&report);
        if let Some(fault) = learned.fault {
            return Err(SimulationError::Speculation(fault));
        }
        self.collector.step(&report, learned.predicted, now);
        self.collector.deliveries(&deliveries, now);
        Ok(())
    }
}
