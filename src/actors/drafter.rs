//! The drafter: owns speculation. Takes each step that drafts to the device, and rests speculation
//! after a fault: the engine then decodes plainly, and drafting is tried again later.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::device::Device;
use super::health::DrafterHealth;
use super::messages::{
    BatchBuilderMessage, DrafterMessage, SloMonitorMessage, SupervisorMessage, VerifierMessage,
};
use crate::protocol::{Clock, DrafterNeeds};
use crate::step::{SpeculationFault, StepPlan};

/// The actor. A restarted one starts out healthy.
pub struct Drafter;

/// What the drafter is started with.
#[derive(Clone)]
pub struct DrafterArguments {
    /// Runs steps.
    pub device: Device,
    /// Awaits their results.
    pub verifier: ActorRef<VerifierMessage>,
    /// Is told when to plan without drafts.
    pub batch_builder: ActorRef<BatchBuilderMessage>,
    /// Shows whether speculation is on.
    pub monitor: ActorRef<SloMonitorMessage>,
    /// Is told of device errors.
    pub supervisor: ActorRef<SupervisorMessage>,
    /// Times rests.
    pub clock: Arc<dyn Clock>,
    /// The executor's drafter, for the state page.
    pub needs: Option<DrafterNeeds>,
}

/// The actor's state.
pub struct DrafterState {
    arguments: DrafterArguments,
    health: DrafterHealth,
}

impl Actor for Drafter {
    type Msg = DrafterMessage;
    type State = DrafterState;
    type Arguments = DrafterArguments;

    async fn pre_start(
        &self,
        _myself: ActorRef<DrafterMessage>,
        arguments: DrafterArguments,
    ) -> Result<DrafterState, ActorProcessingErr> {
        Ok(DrafterState { arguments, health: DrafterHealth::default() })
    }

    async fn handle(
        &self,
        myself: ActorRef<DrafterMessage>,
        message: DrafterMessage,
        state: &mut DrafterState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            DrafterMessage::Draft(plan) => state.dispatch(plan)?,
            DrafterMessage::Fault(fault) => state.rest(&fault, &myself)?,
            DrafterMessage::Resume => state.resume()?,
            // the caller may have gone
            DrafterMessage::State(reply) => _ = reply.send(state.describe()),
        }
        Ok(())
    }
}

impl DrafterState {
    /// Sends the step to the device and its ticket to the verifier. A step that was planned before
    /// speculation came to rest runs without drafts.
    fn dispatch(&self, mut plan: Box<StepPlan>) -> Result<(), ActorProcessingErr> {
        if !self.health.is_well() {
            plan.seeds.clear();
        }
        match self.arguments.device.submit(plan) {
            Ok(ticket) => self.arguments.verifier.cast(VerifierMessage::Await(ticket))?,
            Err(error) => self.arguments.supervisor.cast(SupervisorMessage::Fatal(error.to_string()))?,
        }
        Ok(())
    }

    fn rest(
        &mut self,
        fault: &SpeculationFault,
        myself: &ActorRef<DrafterMessage>,
    ) -> Result<(), ActorProcessingErr> {
        let Some(rest) = self.health.fault(fault.to_string(), self.arguments.clock.now()) else {
            return Ok(());
        };
        tracing::warn!(%fault, rest_ms = rest.as_millis() as u64, "speculation paused; decoding plainly");
        self.announce()?;
        myself.send_after(rest, || DrafterMessage::Resume);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), ActorProcessingErr> {
        self.health.resume(self.arguments.clock.now());
        tracing::info!("speculation resumed");
        self.announce()
    }

    fn announce(&self) -> Result<(), ActorProcessingErr> {
        let well = self.health.is_well();
        self.arguments.batch_builder.cast(BatchBuilderMessage::Speculation(well))?;
        self.arguments.monitor.cast(SloMonitorMessage::DrafterAlive(well))?;
        Ok(())
    }

    fn describe(&self) -> serde_json::Value {
        let mut state = self.health.state();
        state["needs"] = serde_json::json!(self.arguments.needs);
        state
    }
}
