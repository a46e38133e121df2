//! The batch builder: owns the scheduler, and with it every running request.
//!
//! Events only enqueue; the step loop decides ([`BatchBuilderState::pump`]). One step is
//! in flight at a time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use super::admission::Permit;
use super::messages::{
    Admitted, BatchBuilderMessage, DrafterMessage, EndedRequest, SloMonitorMessage, StepObservation,
    SupervisorMessage, VerifierMessage,
};
use crate::policy::{Fixed, Policy};
use crate::protocol::{
    Clock, DeviceIdle, Micros, RequestFailure, RequestId, Slo, StepReport, Termination, TokenEvent,
};
use crate::scheduler::{Scheduler, SchedulerGauges};
use crate::step::{Delivery, Drafted, StepPlan, Stepped};

/// How often the step in flight is looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// The actor.
pub struct BatchBuilder;

/// What the batch builder needs.
pub struct BatchBuilderArguments {
    /// Decides each step.
    pub scheduler: Scheduler,
    /// The policy's latest snapshot.
    pub policy: watch::Receiver<Arc<dyn Policy>>,
    /// Learns from each step.
    pub monitor: ActorRef<SloMonitorMessage>,
    /// Hears of steps that hang.
    pub supervisor: ActorRef<SupervisorMessage>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// A step longer than this is a device error.
    pub step_timeout: Micros,
}

/// Its state.
pub struct BatchBuilderState {
    arguments: BatchBuilderArguments,
    drafter: Option<ActorRef<DrafterMessage>>,
    verifier: Option<ActorRef<VerifierMessage>>,
    live: HashMap<RequestId, Live>,
    plain: Arc<dyn Policy>,
    /// Start of the step in flight: the end of the one before if there was no pause between.
    step_started: Micros,
    /// Whether there was none: the step in flight follows the one before at once.
    step_follows: bool,
    /// End of the last step, while the next may follow at once.
    step_ended: Option<Micros>,
    draining: Vec<RpcReplyPort<()>>,
}

/// What a step brought, for callers and the monitor.
struct StepNews {
    deliveries: Vec<Delivery>,
    report: StepReport,
    gauges: SchedulerGauges,
    at: Micros,
    /// What is freed once the device is at work again.
    spent: StepPlan,
}

/// A request's way out.
struct Live {
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
            live: HashMap::new(),
            plain: Arc::new(Fixed::NONE),
            step_started: Micros::ZERO,
            step_follows: false,
            step_ended: None,
            draining: Vec::new(),
        })
    }

    async fn handle(
        &self,
        _myself: ActorRef<BatchBuilderMessage>,
        message: BatchBuilderMessage,
        state: &mut BatchBuilderState,
    ) -> Result<(), ActorProcessingErr> {
        let mut news = None;
        match message {
            BatchBuilderMessage::Wire(drafter, verifier) => {
                state.drafter = Some(drafter);
                state.verifier = Some(verifier);
            }
            BatchBuilderMessage::Admit(admitted) => state.admit(*admitted),
            BatchBuilderMessage::End(id, ending) => state.end(id, ending),
            BatchBuilderMessage::StepDone(stepped) => news = Some(state.commit(*stepped)),
            BatchBuilderMessage::DrafterLost => state.lose_drafter(),
            BatchBuilderMessage::Drain(reply) => state.draining.push(reply),
            BatchBuilderMessage::AbortAll(failure) => {
                let deliveries = state.arguments.scheduler.abort_all(&failure);
                state.deliver(deliveries);
            }
            BatchBuilderMessage::Watch => state.watch()?,
        }
        state.pump()?;
        if let Some(news) = news {
            // The device waits for nobody's ears: drafter or verifier take the next step to it
            // before callers and monitor hear of this one.
            tokio::task::yield_now().await;
            state.tell(news)?;
        }
        state.answer_drains();
        Ok(())
    }
}

impl BatchBuilderState {
    fn admit(&mut self, admitted: Admitted) {
        let Admitted { request, events, permit } = admitted;
        let live = Live { events, slo: request.slo, permit: Some(permit), last_output: None };
        self.live.insert(request.id, live);
        self.arguments.scheduler.enqueue(request);
    }

    fn end(&mut self, id: RequestId, ending: Termination) {
        let delivery = self.arguments.scheduler.end(id, ending);
        self.deliver(delivery.into_iter().collect());
    }

    fn commit(&mut self, stepped: Stepped) -> StepNews {
        let now = self.arguments.clock.now();
        let Stepped { outcome, mut report, mut plan } = stepped;
        report.step_time = now.saturating_sub(self.step_started);
        if !self.step_follows {
            report.device_idle = report.device_idle.map(|idle| DeviceIdle { before: Micros::ZERO, ..idle });
        }
        let deliveries = self.arguments.scheduler.commit(outcome, now);
        self.arguments.scheduler.recycle(&mut plan);
        self.step_ended = Some(now);
        let gauges = self.arguments.scheduler.gauges();
        StepNews { deliveries, report, gauges, at: now, spent: plan }
    }

    /// Passes on what a step brought.
    fn tell(&mut self, news: StepNews) -> Result<(), ActorProcessingErr> {
        let StepNews { deliveries, report, gauges, at, spent } = news;
        drop(spent);
        self.arguments.scheduler.publish_computed();
        let outputs = self.note_outputs(&deliveries, at);
        self.deliver(deliveries);
        let observation = Box::new(StepObservation { report, gauges, outputs });
        self.arguments.monitor.cast(SloMonitorMessage::Step(observation))?;
        Ok(())
    }

    /// Gaps between the outputs of each request, for the inter-token latency.
    fn note_outputs(&mut self, deliveries: &[Delivery], now: Micros) -> Vec<(u32, Option<Micros>)> {
        let mut outputs = Vec::with_capacity(deliveries.len());
        for (id, event) in deliveries {
            if let (TokenEvent::Tokens(tokens), Some(live)) = (event, self.live.get_mut(id)) {
                outputs.push((tokens.len() as u32, live.last_output.map(|last| now.saturating_sub(last))));
                live.last_output = Some(now);
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
            } else if self.live.get(&id).is_some_and(|live| live.events.send(event).is_err()) {
                abandoned.push(id);
            }
        }
        for id in abandoned {
            self.end(id, Termination::Failed(RequestFailure::Cancelled));
        }
    }

    fn close(&mut self, id: RequestId, event: TokenEvent) {
        let Some(live) = self.live.remove(&id) else { return };
        let ended = Box::new(EndedRequest { event: event.clone(), slo: live.slo });
        // the caller may have gone, and the monitor may be going down with us
        let _ = live.events.send(event);
        let _ = self.arguments.monitor.cast(SloMonitorMessage::Ended(ended));
    }

    fn lose_drafter(&mut self) {
        self.drafter = None;
        let deliveries = self.arguments.scheduler.abandon_step();
        self.deliver(deliveries);
    }

    /// Starts the next step if none is in flight and there is work.
    fn pump(&mut self) -> Result<(), ActorProcessingErr> {
        let Some(verifier) = self.verifier.clone() else { return Ok(()) };
        while !self.arguments.scheduler.has_step_in_flight() {
            let Some(plan) = self.plan() else {
                self.step_ended = None;
                return Ok(());
            };
            let drafter = self.drafter.as_ref().filter(|_| !plan.drafting.is_empty());
            let Some(drafter) = drafter else {
                // plain steps never touch the drafter, nor do drafts that were looked up
                verifier.cast(VerifierMessage::Verify(Box::new(Drafted::without_model(plan))))?;
                return Ok(());
            };
            if drafter.cast(DrafterMessage::Draft(Box::new(plan))).is_err() {
                // it died a moment ago: plan the same step again, plainly
                self.lose_drafter();
            }
        }
        Ok(())
    }

    fn plan(&mut self) -> Option<StepPlan> {
        let now = self.arguments.clock.now();
        let policy = match &self.drafter {
            Some(_) => self.arguments.policy.borrow().clone(),
            None => self.plain.clone(),
        };
        let plan = self.arguments.scheduler.plan(now, &policy)?;
        let before = self.step_ended.take();
        self.step_follows = before.is_some();
        self.step_started = before.unwrap_or(now);
        for id in &plan.started {
            if let Some(live) = self.live.get_mut(id) {
                live.permit = None;
            }
        }
        Some(plan)
    }

    fn watch(&self) -> Result<(), ActorProcessingErr> {
        let running = self.arguments.scheduler.has_step_in_flight();
        let age = self.arguments.clock.now().saturating_sub(self.step_started);
        if running && age > self.arguments.step_timeout {
            let reason = format!(
                "a step takes more than {} ms (step_timeout_ms): the device hangs",
                self.arguments.step_timeout.as_millis_f64()
            );
            self.arguments.supervisor.cast(SupervisorMessage::Fatal(reason))?;
        } else if !running {
            let gauges = Box::new(self.arguments.scheduler.gauges());
            self.arguments.monitor.cast(SloMonitorMessage::Gauges(gauges))?;
        }
        Ok(())
    }

    fn answer_drains(&mut self) {
        if self.arguments.scheduler.is_idle() {
            for reply in self.draining.drain(..) {
                let _ = reply.send(());
            }
        }
    }
}
