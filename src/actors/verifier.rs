//! The verifier: chooses what to verify, runs the target, reports.

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::device::Device;
use super::messages::{BatchBuilderMessage, SupervisorMessage, VerifierMessage};
use crate::policy::Scratch;

/// The actor.
pub struct Verifier;

/// What the verifier needs.
pub struct VerifierArguments {
    /// Runs the target model.
    pub device: Device,
    /// Gets the outcome.
    pub batch_builder: ActorRef<BatchBuilderMessage>,
    /// Hears of device errors.
    pub supervisor: ActorRef<SupervisorMessage>,
    /// The policy's buffers.
    pub scratch: Scratch,
}

impl Actor for Verifier {
    type Msg = VerifierMessage;
    type State = VerifierArguments;
    type Arguments = VerifierArguments;

    async fn pre_start(
        &self,
        _myself: ActorRef<VerifierMessage>,
        arguments: VerifierArguments,
    ) -> Result<VerifierArguments, ActorProcessingErr> {
        Ok(arguments)
    }

    async fn handle(
        &self,
        _myself: ActorRef<VerifierMessage>,
        message: VerifierMessage,
        state: &mut VerifierArguments,
    ) -> Result<(), ActorProcessingErr> {
        let VerifierMessage::Verify(mut drafted) = message;
        let verified = drafted.select(&mut state.scratch);
        match state.device.verify(drafted, verified).await {
            Ok(stepped) => state.batch_builder.cast(BatchBuilderMessage::StepDone(stepped))?,
            Err(error) => state.supervisor.cast(SupervisorMessage::Fatal(error.to_string()))?,
        }
        Ok(())
    }
}
