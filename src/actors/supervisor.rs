//! The supervisor: starts the engine's actors, restarts the drafter, and ends everything when
//! the engine can't go on.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::watch;

use super::admission::Admission;
use super::batch_builder::{BatchBuilder, BatchBuilderArguments};
use super::condition::{Condition, ConditionBoard};
use super::device::Device;
use super::drafter::{Drafter, DrafterArguments};
use super::intake::{DoorPolicy, Intake, IntakeArguments};
use super::messages::{
    BatchBuilderMessage, DrafterMessage, IntakeMessage, SloMonitorMessage, SupervisorMessage, VerifierMessage,
};
use super::slo_monitor::{SloMonitor, SloMonitorArguments};
use super::verifier::{Verifier, VerifierArguments};
use crate::policy::{Learner, Scratch};
use crate::protocol::{Clock, Micros, RequestFailure};
use crate::scheduler::{Scheduler, SchedulerLimits};
use crate::telemetry::MetricsConfig;

/// The drafter is started again after this long, doubled each time it dies.
const RESTART_DELAY: Duration = Duration::from_millis(100);

/// Longest delay between two restarts of the drafter.
const RESTART_DELAY_MAX: Duration = Duration::from_secs(10);

/// The actor.
pub struct Supervisor;

/// All that the engine is built from.
pub struct SupervisorArguments {
    /// The executor's thread.
    pub device: Device,
    /// Bounds of the scheduler.
    pub limits: SchedulerLimits,
    /// The policy's learner, with what it knows already.
    pub learner: Box<dyn Learner>,
    /// What the metrics say of the deployment.
    pub metrics: MetricsConfig,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// A step longer than this is a device error.
    pub step_timeout: Micros,
    /// What to refuse at the door.
    pub door: DoorPolicy,
    /// Who waits.
    pub admission: Admission,
    /// Where the engine's condition is shown.
    pub condition: ConditionBoard,
    /// Gets the doors of the engine once all actors run.
    pub doors: crossbeam::channel::Sender<Doors>,
}

/// The actors that others talk to.
#[derive(Clone)]
pub struct Doors {
    /// Takes requests.
    pub intake: ActorRef<IntakeMessage>,
    /// Drains and aborts.
    pub batch_builder: ActorRef<BatchBuilderMessage>,
    /// Knows the figures.
    pub monitor: ActorRef<SloMonitorMessage>,
}

/// Its state.
pub struct SupervisorState {
    device: Device,
    condition: ConditionBoard,
    doors: Doors,
    verifier: ActorRef<VerifierMessage>,
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
        let (publish, policy) = watch::channel(arguments.learner.snapshot());
        let cell = myself.get_cell();
        let target_blocks = arguments.limits.target_blocks;
        let chunk_tokens = arguments.limits.prefill_chunk_tokens_max;
        let monitor_arguments =
            SloMonitorArguments { learner: arguments.learner, publish, metrics: arguments.metrics };
        let (monitor, _) =
            SloMonitor::spawn_linked(None, SloMonitor, monitor_arguments, cell.clone()).await?;
        let batch_builder_arguments = BatchBuilderArguments {
            scheduler: Scheduler::new(arguments.limits),
            policy: policy.clone(),
            monitor: monitor.clone(),
            supervisor: myself.clone(),
            clock: arguments.clock,
            step_timeout: arguments.step_timeout,
        };
        let (batch_builder, _) =
            BatchBuilder::spawn_linked(None, BatchBuilder, batch_builder_arguments, cell.clone()).await?;
        let verifier_arguments = VerifierArguments {
            device: arguments.device.clone(),
            batch_builder: batch_builder.clone(),
            supervisor: myself.clone(),
            scratch: Scratch::default(),
        };
        let (verifier, _) = Verifier::spawn_linked(None, Verifier, verifier_arguments, cell.clone()).await?;
        let drafter = start_drafter(&myself, &arguments.device, &verifier).await?;
        batch_builder.cast(BatchBuilderMessage::Wire(drafter.clone(), verifier.clone()))?;
        let intake_arguments = IntakeArguments {
            batch_builder: batch_builder.clone(),
            monitor: monitor.clone(),
            target_blocks,
            door: arguments.door,
            admission: arguments.admission,
            policy,
            chunk_tokens,
        };
        let (intake, _) = Intake::spawn_linked(None, Intake, intake_arguments, cell).await?;
        let doors = Doors { intake, batch_builder, monitor };
        // whoever started the engine waits for them; if not, nobody needs the engine
        let _ = arguments.doors.send(doors.clone());
        Ok(SupervisorState {
            device: arguments.device,
            condition: arguments.condition,
            doors,
            verifier,
            drafter,
            restarts: 0,
        })
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
            // children end only with their supervisor, which then hears nothing any more
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
    device: &Device,
    verifier: &ActorRef<VerifierMessage>,
) -> Result<ActorRef<DrafterMessage>, ActorProcessingErr> {
    let arguments =
        DrafterArguments { device: device.clone(), verifier: verifier.clone(), supervisor: myself.clone() };
    let (drafter, _) = Drafter::spawn_linked(None, Drafter, arguments, myself.get_cell()).await?;
    Ok(drafter)
}

impl SupervisorState {
    /// The engine can't go on: every request ends now, and the process will be asked to.
    fn fail(&mut self, reason: String) {
        if self.condition.fail(&reason) {
            tracing::error!(reason, "the engine failed");
            let failure = RequestFailure::Engine(reason);
            // a dead batch builder has dropped its requests' channels, which ends them, too
            let _ = self.doors.batch_builder.cast(BatchBuilderMessage::AbortAll(failure));
        }
    }

    fn lose_drafter(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        error: &str,
    ) -> Result<(), ActorProcessingErr> {
        let delay = (RESTART_DELAY * 2u32.saturating_pow(self.restarts)).min(RESTART_DELAY_MAX);
        tracing::warn!(error, delay_ms = delay.as_millis() as u64, "the drafter failed; decoding plainly");
        self.doors.batch_builder.cast(BatchBuilderMessage::DrafterLost)?;
        self.doors.monitor.cast(SloMonitorMessage::DrafterAlive(false))?;
        self.restarts += 1;
        myself.send_after(delay, || SupervisorMessage::RestartDrafter);
        Ok(())
    }

    async fn restart_drafter(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
    ) -> Result<(), ActorProcessingErr> {
        if self.condition.get() != Condition::Serving {
            return Ok(());
        }
        self.drafter = start_drafter(myself, &self.device, &self.verifier).await?;
        let wire = BatchBuilderMessage::Wire(self.drafter.clone(), self.verifier.clone());
        self.doors.batch_builder.cast(wire)?;
        self.doors.monitor.cast(SloMonitorMessage::DrafterAlive(true))?;
        tracing::info!(restarts = self.restarts, "the drafter is back");
        Ok(())
    }

    fn name_of(&self, who: &ActorCell) -> &'static str {
        let id = who.get_id();
        if id == self.verifier.get_id() {
            "verifier"
        } else if id == self.doors.batch_builder.get_id() {
            "batch builder"
        } else if id == self.doors.intake.get_id() {
            "intake"
        } else if id == self.doors.monitor.get_id() {
            "SLO monitor"
        } else {
            "unknown actor"
        }
    }
}
