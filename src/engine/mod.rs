//! The engine core: scheduler and learner behind one step loop, without threads or actors.
//!
//! ```text
//! begin(now) ──► StepPlan ──► step::run (device) ──► StepResult ──► finish(result, now) ──► Finished
//!    ▲                                                                                        │
//!    └──────────────────────────────── settle(finished) ◄─────────────────────────────────────┘
//! ```
//! The daemon's batch builder, the simulator, tests and benches all drive this one loop; they
//! differ in who runs the step and in what the clock says. [`EngineCore::settle`] is the part that
//! nothing waits for: the daemon calls it while the device works on the next step.
//!
//! May import: protocol, policy, step, scheduler.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::policy::{Fixed, Learner, Policy};
use crate::protocol::{
    DeviceIdle, GenerationRequest, Micros, RequestFailure, RequestId, StepReport, Termination, TokenEvent,
};
use crate::scheduler::{Scheduler, SchedulerGauges};
use crate::step::{Delivery, SpeculationFault, StepPlan, StepResult};

/// See the module's documentation.
#[derive(Debug)]
pub struct EngineCore {
    scheduler: Scheduler,
    learner: Box<dyn Learner>,
    /// The learner's latest snapshot.
    policy: Arc<dyn Policy>,
    plain: Arc<dyn Policy>,
    /// Whether steps are planned with the policy, or plainly.
    speculation: bool,
    /// Start of the step in flight: the end of the one before if it followed at once.
    step_started: Micros,
    /// Whether it did.
    step_follows: bool,
    /// End of the last step, while the next may follow at once.
    step_ended: Option<Micros>,
}

/// What a finished step brought.
#[derive(Debug)]
pub struct Finished {
    /// Events in order, tokens and ends.
    pub deliveries: Vec<Delivery>,
    /// What the step did, with the time it took.
    pub report: StepReport,
    /// The scheduler after it.
    pub gauges: SchedulerGauges,
    /// When it finished.
    pub at: Micros,
    /// Why it speculated less than planned, if it did.
    pub fault: Option<SpeculationFault>,
    /// The plan's many small parts, and its share of the policy's snapshot. Drop it before
    /// [`EngineCore::settle`]: a learner copies what an older snapshot still uses.
    pub plan: StepPlan,
}

/// What the learner made of a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Learned {
    /// How long the step should have taken, before it was learned from.
    pub predicted: Option<Micros>,
    /// Why nothing was learned.
    pub fault: Option<SpeculationFault>,
}

impl EngineCore {
    /// An idle engine.
    pub fn new(scheduler: Scheduler, learner: Box<dyn Learner>) -> EngineCore {
        EngineCore {
            scheduler,
            policy: learner.snapshot(),
            learner,
            plain: Arc::new(Fixed::NONE),
            speculation: true,
            step_started: Micros::ZERO,
            step_follows: false,
            step_ended: None,
        }
    }

    /// Plans the next step; `None` when there is nothing to run. Planning may refuse requests that
    /// wait: see [`take_refused`](Self::take_refused).
    ///
    /// # Panics
    /// When a step is in flight.
    pub fn begin(&mut self, now: Micros) -> Option<StepPlan> {
        let policy = if self.speculation { &self.policy } else { &self.plain };
        let plan = self.scheduler.plan(now, policy);
        let before = self.step_ended.take();
        if plan.is_some() {
            self.step_follows = before.is_some();
            self.step_started = before.unwrap_or(now);
        }
        plan
    }

    /// The terminal events of requests that the last [`begin`](Self::begin) refused: see
    /// [`Scheduler::take_refused`].
    pub fn take_refused(&mut self) -> Vec<Delivery> {
        self.scheduler.take_refused()
    }

    /// Commits a step; `None` for one that is no longer in flight (it was abandoned).
    ///
    /// # Panics
    /// When the result does not match the plan: the executor broke its contract
    /// ([`StepResult::check`]).
    pub fn finish(&mut self, result: StepResult, now: Micros) -> Option<Finished> {
        let StepResult { outcome, mut report, fault, mut plan } = result;
        if !self.scheduler.is_in_flight(outcome.number) {
            return None;
        }
        report.step_time = now.saturating_sub(self.step_started);
        if !self.step_follows {
            report.device_idle = report.device_idle.map(|idle| DeviceIdle { before: Micros::ZERO, ..idle });
        }
        let deliveries = self.scheduler.commit(outcome, now);
        report.finished.extend(deliveries.iter().filter_map(|(_, event)| match event {
            TokenEvent::Finished { summary, .. } => Some(summary.clone()),
            _ => None,
        }));
        self.scheduler.recycle(&mut plan);
        self.step_ended = Some(now);
        let gauges = self.scheduler.gauges();
        Some(Finished { deliveries, report, gauges, at: now, fault, plan })
    }

    /// Does what no step waits for: inserts new blocks into the prefix cache and lets the learner
    /// observe the step. The next [`begin`](Self::begin) plans with what was learned.
    pub fn settle(&mut self, report: &StepReport) -> Learned {
        self.scheduler.publish_computed();
        self.scheduler.observe(report);
        let predicted = self.learner.predict(report);
        // a snapshot that is still in use makes the learner copy what it changes
        self.policy = self.plain.clone();
        let learner = &mut self.learner;
        let learned = SpeculationFault::guard_policy("observe", || {
            learner.observe(report);
            learner.snapshot()
        });
        match learned {
            Ok(policy) => {
                self.policy = policy;
                Learned { predicted, fault: None }
            }
            Err(fault) => {
                let snapshot = SpeculationFault::guard_policy("snapshot", || self.learner.snapshot());
                self.policy = snapshot.unwrap_or_else(|_| self.plain.clone());
                Learned { predicted, fault: Some(fault) }
            }
        }
    }

    /// Adds a request to the queue. See [`Scheduler::enqueue`].
    pub fn enqueue(&mut self, request: GenerationRequest) {
        self.scheduler.enqueue(request);
    }

    /// Ends a request. See [`Scheduler::end`].
    pub fn end(&mut self, id: RequestId, ending: Termination) -> Option<Delivery> {
        self.scheduler.end(id, ending)
    }

    /// Ends every request now; a step in flight must not be finished any more.
    pub fn abort_all(&mut self, failure: &RequestFailure) -> Vec<Delivery> {
        self.scheduler.abort_all(failure)
    }

    /// Forgets the step in flight, whose result will never come. Returns the terminal events of
    /// requests that were ended meanwhile.
    pub fn abandon_step(&mut self) -> Vec<Delivery> {
        self.scheduler.abandon_step()
    }

    /// Plans the next steps with the policy, or plainly.
    pub fn set_speculation(&mut self, on: bool) {
        self.speculation = on;
    }

    /// The policy that the next step is planned with while speculation is on.
    pub fn policy(&self) -> &Arc<dyn Policy> {
        &self.policy
    }

    /// The learner, to look at.
    pub fn learner(&self) -> &dyn Learner {
        &*self.learner
    }

    /// The scheduler, to look at.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// How long the step in flight has taken so far; `None` without one.
    pub fn step_age(&self, now: Micros) -> Option<Micros> {
        self.scheduler.has_step_in_flight().then(|| now.saturating_sub(self.step_started))
    }

    #[cfg(test)]
    pub(crate) fn scheduler_mut(&mut self) -> &mut Scheduler {
        &mut self.scheduler
    }
}
