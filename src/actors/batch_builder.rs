//! The batch builder: owns the engine core, and with it every running request.
//!
//! Events only enqueue; the step loop decides ([`BatchBuilderState::pump`]). One step is in flight
//! at a time. A step that drafts goes to the device through the drafter, a plain one directly; the
//! verifier awaits both.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use super::admission::Permit;
use super::device::Device;
use super::messages::{
    Admitted, BatchBuilderMessage, DrafterMessage, EndedRequest, PlanningState, SloMonitorMessage,
    StepObservation, SupervisorMessage, VerifierMessage,
};
use crate::engine::{EngineCore, Finished};
use crate::policy::Policy;
use crate::protocol::{Clock, Micros, RequestFailure, RequestId, Slo, Termination, TokenEvent};
use crate::step::{Delivery, SpeculationFault, StepPlan, StepResult};

/// How often the step in flight is checked.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// The batch-builder actor.
pub struct BatchBuilder;

/// What the batch builder is started with.
pub struct BatchBuilderArguments {
    /// Scheduler and learner.
    pub core: EngineCore,
    /// Runs plain steps.
    pub device: Device,
    /// Where the policy's snapshots are published, one per step.
    pub publish: watch::Sender<Arc<dyn Policy>>,
    /// Is told of each step and each ended request.
    pub monitor: ActorRef<SloMonitorMessage>,
    /// Is told of steps that hang.
    pub supervisor: ActorRef<SupervisorMessage>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// A step longer than this is a device error.
    pub step_timeout: Micros,
}

/// The actor's state.
pub struct BatchBuilderState {
    arguments: BatchBuilderArguments,
    drafter: Option<ActorRef<DrafterMessage>>,
    verifier: Option<ActorRef<VerifierMessage>>,
    active: HashMap<RequestId, ActiveRequest>,
    draining: Vec<RpcReplyPort<()>>,
}

/// Where a request's events go.
struct ActiveRequest {
    events: UnboundedSender<TokenEvent>,
    slo: Slo,
    /// Held while the request waits.
    permit: Option<Permit>,
    last_output: Option<Micros>,
}

impl Actor for BatchBuilder {
    type Msg = BatchBuilderMessage;
    type State = BatchBuilderState;
    type Arguments = BatchBuilderArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<BatchBuilderMessage>,
        arguments: BatchBuilderArguments,
    ) -> Result<BatchBuilderState, ActorProcessingErr> {
        myself.send_interval(WATCH_INTERVAL, || BatchBuilderMessage::Watch);
        Ok(BatchBuilderState {
            arguments,
            drafter: None,
            verifier: None,
            active: HashMap::new(),
            draining: Vec::new(),
        })
    }

    async fn handle(
        &self,
        _myself: ActorRef<BatchBuilderMessage>,
        message: BatchBuilderMessage,
        state: &mut BatchBuilderState,
    ) -> Result<(), ActorProcessingErr> {
        let mut finished = None;
        match message {
            BatchBuilderMessage::Wire(drafter, verifier) => state.wire(drafter, verifier),
            BatchBuilderMessage::Admit(admitted) => state.admit(*admitted),
            BatchBuilderMessage::End(id, ending) => state.end(id, ending),
            BatchBuilderMessage::StepDone(result) => finished = state.finish(*result),
            BatchBuilderMessage::Speculation(on) => state.arguments.core.set_speculation(on),
            BatchBuilderMessage::DrafterLost => state.lose_drafter(),
            BatchBuilderMessage::Drain(reply) => state.draining.push(reply),
            BatchBuilderMessage::AbortAll(failure) => {
                let deliveries = state.arguments.core.abort_all(&failure);
                state.deliver(deliveries);
            }
            BatchBuilderMessage::Watch => state.watch()?,
            // the caller may have gone
            BatchBuilderMessage::State(reply) => _ = reply.send(state.describe()),
        }
        state.pump()?;
        if let Some(finished) = finished {
            // Dispatch the next step before notifying callers and the SLO monitor, so that the
            // device never idles on bookkeeping.
            tokio::task::yield_now().await;
            state.settle(finished)?;
        }
        state.answer_drains();
        Ok(())
    }
}

impl BatchBuilderState {
    fn wire(&mut self, drafter: ActorRef<DrafterMessage>, verifier: ActorRef<VerifierMessage>) {
        self.drafter = Some(drafter);
        self.verifier = Some(verifier);
        self.arguments.core.set_speculation(true);
    }

    fn admit(&mut self, admitted: Admitted) {
        let Admitted { request, events, permit } = admitted;
        let active = ActiveRequest { events, slo: request.slo, permit: Some(permit), last_output: None };
        self.active.insert(request.id, active);
        self.arguments.core.enqueue(request);
    }

    fn end(&mut self, id: RequestId, ending: Termination) {
        let delivery = self.arguments.core.end(id, ending);
        self.deliver(delivery.into_iter().collect());
    }

    fn finish(&mut self, result: StepResult) -> Option<Finished> {
        self.arguments.core.finish(result, self.arguments.clock.now())
    }

    /// Everything about a finished step that no step waits for: events to callers, learning,
    /// metrics, freeing its parts.
    fn settle(&mut self, finished: Finished) -> Result<(), ActorProcessingErr> {
        let Finished { deliveries, report, gauges, at, fault, plan } = finished;
        drop(plan);
        let outputs = self.note_outputs(&deliveries, at);
        self.deliver(deliveries);
        let learned = self.arguments.core.settle(&report);
        self.arguments.publish.send_replace(self.arguments.core.policy().clone());
        for fault in [fault, learned.fault].into_iter().flatten() {
            self.report_fault(fault);
        }
        let predicted = learned.predicted;
        let report = Arc::new(report);
        if let Some(verifier) = &self.verifier {
            verifier.cast(VerifierMessage::Record(report.clone()))?;
        }
        let calibration_error = self.arguments.core.learner().calibration_error();
        let observation = Box::new(StepObservation { report, gauges, outputs, predicted, calibration_error });
        self.arguments.monitor.cast(SloMonitorMessage::Step(observation))?;
        Ok(())
    }

    /// Lets the drafter rest speculation. One that is dead drafts nothing anyway.
    fn report_fault(&mut self, fault: SpeculationFault) {
        self.arguments.core.set_speculation(false);
        if let Some(drafter) = &self.drafter {
            let _ = drafter.cast(DrafterMessage::Fault(fault));
        }
    }

    /// Gaps between the outputs of each request, for the inter-token latency.
    fn note_outputs(&mut self, deliveries: &[Delivery], now: Micros) -> Vec<(u32, Option<Micros>)> {
        let mut outputs = Vec::with_capacity(deliveries.len());
        for (id, event) in deliveries {
            if let (TokenEvent::Tokens(tokens), Some(active)) = (event, self.active.get_mut(id)) {
                let gap = active.last_output.map(|last| now.saturating_sub(last));
                outputs.push((tokens.len() as u32, gap));
                active.last_output = Some(now);
            }
        }
        outputs
    }

    /// Sends events on. A receiver that is gone means that the caller is gone.
    fn deliver(&mut self, deliveries: Vec<Delivery>) {
        let mut abandoned = Vec::new();
        for (id, event) in deliveries {
            if event.is_terminal() {
                self.close(id, event);
            } else if self.active.get(&id).is_some_and(|active| active.events.send(event).is_err()) {
                abandoned.push(id);
            }
        }
        for id in abandoned {
            self.end(id, Termination::Failed(RequestFailure::Cancelled));
        }
    }

    fn close(&mut self, id: RequestId, event: TokenEvent) {
        let Some(active) = self.active.remove(&id) else { return };
        let ended = Box::new(EndedRequest { event: event.clone(), slo: active.slo });
        // the caller may have gone, and the monitor may be shutting down with us
        let _ = active.events.send(event);
        let _ = self.arguments.monitor.cast(SloMonitorMessage::Ended(ended));
    }

    fn lose_drafter(&mut self) {
        self.drafter = None;
        self.arguments.core.set_speculation(false);
        let deliveries = self.arguments.core.abandon_step();
        self.deliver(deliveries);
    }

    /// Starts the next step if none is in flight and there is work.
    fn pump(&mut self) -> Result<(), ActorProcessingErr> {
        let Some(verifier) = self.verifier.clone() else { return Ok(()) };
        while !self.arguments.core.scheduler().has_step_in_flight() {
            let Some(plan) = self.begin() else { return Ok(()) };
            match self.drafter.as_ref().filter(|_| plan.drafts()) {
                None => return self.dispatch(plan, &verifier),
                Some(drafter) => {
                    if drafter.cast(DrafterMessage::Draft(Box::new(plan))).is_err() {
                        // it died a moment ago: plan the same step again, plainly
                        self.lose_drafter();
                    }
                }
            }
        }
        Ok(())
    }

    /// Runs a step without drafts; it costs no hop through the drafter.
    fn dispatch(
        &self,
        plan: StepPlan,
        verifier: &ActorRef<VerifierMessage>,
    ) -> Result<(), ActorProcessingErr> {
        match self.arguments.device.submit(Box::new(plan)) {
            Ok(ticket) => verifier.cast(VerifierMessage::Await(ticket))?,
            Err(error) => self.arguments.supervisor.cast(SupervisorMessage::Fatal(error.to_string()))?,
        }
        Ok(())
    }

    fn begin(&mut self) -> Option<StepPlan> {
        let plan = self.arguments.core.begin(self.arguments.clock.now());
        let refused = self.arguments.core.take_refused();
        self.deliver(refused);
        let plan = plan?;
        for id in &plan.started {
            if let Some(active) = self.active.get_mut(id) {
                active.permit = None;
            }
        }
        Some(plan)
    }

    fn watch(&self) -> Result<(), ActorProcessingErr> {
        let Some(age) = self.arguments.core.step_age(self.arguments.clock.now()) else {
            let gauges = Box::new(self.arguments.core.scheduler().gauges());
            self.arguments.monitor.cast(SloMonitorMessage::Gauges(gauges))?;
            return Ok(());
        };
        if age > self.arguments.step_timeout {
            let reason = format!(
                "a step takes more than {} ms (step_timeout_ms): the device hangs",
                self.arguments.step_timeout.as_millis_f64()
            );
            self.arguments.supervisor.cast(SupervisorMessage::Fatal(reason))?;
        }
        Ok(())
    }

    fn describe(&self) -> PlanningState {
        let core = &self.arguments.core;
        PlanningState {
            policy: core.learner().state(),
            order: core.scheduler().order(),
            pacer: core.scheduler().pacer_state(),
        }
    }

    fn answer_drains(&mut self) {
        if self.arguments.core.scheduler().is_idle() {
            for reply in self.draining.drain(..) {
                let _ = reply.send(());
            }
        }
    }
}
