//! The drafter: predict, execute, correct, on the device thread, then on to the verifier.

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::device::Device;
use super::messages::{DrafterMessage, SupervisorMessage, VerifierMessage};

/// The actor. It has no state between steps, so the supervisor can restart it at will.
pub struct Drafter;

/// What the drafter needs.
pub struct DrafterArguments {
    /// Runs the draft model.
    pub device: Device,
    /// Gets what was drafted.
    pub verifier: ActorRef<VerifierMessage>,
    /// Hears of device errors.
    pub supervisor: ActorRef<SupervisorMessage>,
}

impl Actor for Drafter {
    type Msg = DrafterMessage;
    type State = DrafterArguments;
    type Arguments = DrafterArguments;

    async fn pre_start(
        &self,
        _myself: ActorRef<DrafterMessage>,
        arguments: DrafterArguments,
    ) -> Result<DrafterArguments, ActorProcessingErr> {
        Ok(arguments)
    }

    async fn handle(
        &self,
        _myself: ActorRef<DrafterMessage>,
        message: DrafterMessage,
        state: &mut DrafterArguments,
    ) -> Result<(), ActorProcessingErr> {
        let DrafterMessage::Draft(plan) = message;
        match state.device.draft(plan).await {
            Ok(drafted) => state.verifier.cast(VerifierMessage::Verify(drafted))?,
            // a failed device can't decode plainly either: not a case for a restart
            Err(error) => state.supervisor.cast(SupervisorMessage::Fatal(error.to_string()))?,
        }
        Ok(())
    }
}
