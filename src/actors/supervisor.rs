//! The supervisor: starts the engine's actors, restarts the drafter, and ends every request when
//! the engine can't continue.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::watch;

use super::admission::Admission;
use super::batch_builder::{BatchBuilder, BatchBuilderArguments};
use super::condition::HealthWatch;
use super::device::Device;
use super::drafter::{Drafter, DrafterArguments};
use super::intake::{AdmissionPolicy, Intake, IntakeArguments};
use super::messages::{
    BatchBuilderMessage, DrafterMessage, IntakeMessage, SloMonitorMessage, SupervisorMessage, VerifierMessage,
};
use super::slo_monitor::{SloMonitor, SloMonitorArguments};
use super::verifier::{Verifier, VerifierArguments};
use crate::engine::EngineCore;
use crate::pacing::{Pacer, ServiceOrder};
use crate::policy::Learner;
use crate::protocol::{Clock, ExecutorInfo, Micros, RequestFailure};
use crate::scheduler::{Scheduler, SchedulerLimits};
use crate::telemetry::MetricsConfig;

/// The drafter is started again after this long, doubled each time it dies.
const RESTART_DELAY: Duration = Duration::from_millis(100);

/// Longest delay between two restarts of the drafter.
const RESTART_DELAY_MAX: Duration = Duration::from_secs(10);

/// The supervisor actor.
pub struct Supervisor;

/// All that the engine is built from.
pub struct SupervisorArguments {
    /// The executor's thread.
    pub device: Device,
    /// Bounds of the scheduler.
    pub limits: SchedulerLimits,
    /// The policy's learner, with what it knows already.
    pub learner: Box<dyn Learner>,
    /// Serves by slack; `None`: first come, first served.
    pub pacer: Option<Pacer>,
    /// The executor's properties.
    pub info: Arc<ExecutorInfo>,
    /// What the metrics say of the deployment.
    pub metrics: MetricsConfig,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// A step longer than this is a device error.
    pub step_timeout: Micros,
    /// How long a request may wait for the first step that includes it.
    pub queue_wait_max: Micros,
    /// Which requests are refused for their objectives.
    pub refusals: AdmissionPolicy,
    /// The queue's bounds.
    pub admission: Admission,
    /// Where the engine's condition is shown.
    pub health: HealthWatch,
    /// Receives references to the actors once all of them run.
    pub started: crossbeam::channel::Sender<ActorRefs>,
}

/// The actors that are used from outside.
#[derive(Clone)]
pub struct ActorRefs {
    /// Takes requests.
    pub intake: ActorRef<IntakeMessage>,
    /// Drains and aborts.
    pub batch_builder: ActorRef<BatchBuilderMessage>,
    /// Keeps metrics.
    pub monitor: ActorRef<SloMonitorMessage>,
    /// Keeps acceptance figures.
    pub verifier: ActorRef<VerifierMessage>,
}

/// The actor's state.
pub struct SupervisorState {
    health: HealthWatch,
    actors: ActorRefs,
    /// Starts the drafter again.
    drafter_arguments: DrafterArguments,
    drafter: ActorRef<DrafterMessage>,
    restarts: u32,
}

impl Actor for Supervisor {
    type Msg = SupervisorMessage;
    type State = SupervisorState;
    type Arguments = SupervisorArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<SupervisorMessage>,
        arguments: SupervisorArguments,
    ) -> Result<SupervisorState, ActorProcessingErr> {
        let cell = myself.get_cell();
        let monitor_arguments = SloMonitorArguments {
            metrics: arguments.metrics,
            has_drafter: arguments.info.drafter.is_some(),
            memory: arguments.info.memory,
        };
        let (monitor, _) =
            SloMonitor::spawn_linked(None, SloMonitor, monitor_arguments, cell.clone()).await?;
        let scheduler = Scheduler::new(arguments.limits.clone()).with_queue_wait(arguments.queue_wait_max);
        let scheduler = match arguments.pacer {
            None => scheduler,
            Some(pacer) => scheduler.paced(pacer),
        };
        let in_turn = scheduler.order() == ServiceOrder::Fifo;
        let refuse_late = arguments.refusals.refuse_late && in_turn;
        let refusals = AdmissionPolicy { refuse_late, ..arguments.refusals };
        let core = EngineCore::new(scheduler, arguments.learner);
        let (publish, policy) = watch::channel(core.policy().clone());
        let batch_builder_arguments = BatchBuilderArguments {
            core,
            device: arguments.device.clone(),
            publish,
            monitor: monitor.clone(),
            supervisor: myself.clone(),
            clock: arguments.clock.clone(),
            step_timeout: arguments.step_timeout,
        };
        let (batch_builder, _) =
            BatchBuilder::spawn_linked(None, BatchBuilder, batch_builder_arguments, cell.clone()).await?;
        let verifier_arguments = VerifierArguments {
            batch_builder: batch_builder.clone(),
            supervisor: myself.clone(),
            vocab_size: arguments.info.vocab_size,
        };
        let (verifier, _) = Verifier::spawn_linked(None, Verifier, verifier_arguments, cell.clone()).await?;
        let drafter_arguments = DrafterArguments {
            device: arguments.device,
            verifier: verifier.clone(),
            batch_builder: batch_builder.clone(),
            monitor: monitor.clone(),
            supervisor: myself.clone(),
            clock: arguments.clock,
            needs: arguments.info.drafter.clone(),
        };
        let drafter = start_drafter(&myself, drafter_arguments.clone()).await?;
        batch_builder.cast(BatchBuilderMessage::Wire(drafter.clone(), verifier.clone()))?;
        let intake_arguments = IntakeArguments {
            batch_builder: batch_builder.clone(),
            monitor: monitor.clone(),
            limits: arguments.limits,
            refusals,
            admission: arguments.admission,
            policy,
        };
        let (intake, _) = Intake::spawn_linked(None, Intake, intake_arguments, cell).await?;
        let actors = ActorRefs { intake, batch_builder, monitor, verifier };
        // the starter waits for them; if it is gone, the engine is not needed
        let _ = arguments.started.send(actors.clone());
        Ok(SupervisorState { health: arguments.health, actors, drafter_arguments, drafter, restarts: 0 })
    }

    async fn handle(
        &self,
        myself: ActorRef<SupervisorMessage>,
        message: SupervisorMessage,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMessage::Fatal(reason) => state.fail(reason),
            SupervisorMessage::RestartDrafter => state.restart_drafter(&myself).await?,
            // a dead drafter has no state: the question is dropped
            SupervisorMessage::DrafterState(reply) => _ = state.drafter.cast(DrafterMessage::State(reply)),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<SupervisorMessage>,
        event: SupervisionEvent,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        let (who, error) = match event {
            SupervisionEvent::ActorFailed(who, error) => (who, error.to_string()),
            // children end with their supervisor, which then receives nothing any more
            SupervisionEvent::ActorTerminated(who, _, reason) => (who, reason.unwrap_or_default()),
            _ => return Ok(()),
        };
        if who.get_id() == state.drafter.get_id() {
            state.lose_drafter(&myself, &error)?;
        } else {
            state.fail(format!("the {} ended: {error}", state.name_of(&who)));
        }
        Ok(())
    }
}

async fn start_drafter(
    myself: &ActorRef<SupervisorMessage>,
    arguments: DrafterArguments,
) -> Result<ActorRef<DrafterMessage>, ActorProcessingErr> {
    let (drafter, _) = Drafter::spawn_linked(None, Drafter, arguments, myself.get_cell()).await?;
    Ok(drafter)
}

impl SupervisorState {
    /// The engine can't continue: every request ends now, and the process is asked to exit.
    fn fail(&mut self, reason: String) {
        if self.health.fail(&reason) {
            tracing::error!(reason, "engine failed");
            let failure = RequestFailure::Engine(reason);
            // a dead batch builder has dropped its requests' channels, which ends them, too
            let _ = self.actors.batch_builder.cast(BatchBuilderMessage::AbortAll(failure));
        }
    }

    fn lose_drafter(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        error: &str,
    ) -> Result<(), ActorProcessingErr> {
        let delay = (RESTART_DELAY * 2u32.saturating_pow(self.restarts)).min(RESTART_DELAY_MAX);
        tracing::warn!(
            error,
            delay_ms = delay.as_millis() as u64,
            "drafter actor failed; decoding plainly until it is restarted"
        );
        self.actors.batch_builder.cast(BatchBuilderMessage::DrafterLost)?;
        self.actors.monitor.cast(SloMonitorMessage::DrafterAlive(false))?;
        self.restarts += 1;
        myself.send_after(delay, || SupervisorMessage::RestartDrafter);
        Ok(())
    }

    async fn restart_drafter(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
    ) -> Result<(), ActorProcessingErr> {
        if !self.health.get().takes_requests() {
            return Ok(());
        }
        self.drafter = start_drafter(myself, self.drafter_arguments.clone()).await?;
        let wire = BatchBuilderMessage::Wire(self.drafter.clone(), self.actors.verifier.clone());
        self.actors.batch_builder.cast(wire)?;
        self.actors.monitor.cast(SloMonitorMessage::DrafterAlive(true))?;
        tracing::info!(restarts = self.restarts, "drafter restarted");
        Ok(())
    }

    fn name_of(&self, who: &ActorCell) -> &'static str {
        let id = who.get_id();
        if id == self.actors.verifier.get_id() {
            "verifier"
        } else if id == self.actors.batch_builder.get_id() {
            "batch builder"
        } else if id == self.actors.intake.get_id() {
            "intake"
        } else if id == self.actors.monitor.get_id() {
            "SLO monitor"
        } else {
            "unknown actor"
        }
    }
}
