//! The verifier: receives each step's result from the device, checks it before anything acts on it,
//! and keeps the figures on acceptance.

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::device::StepTicket;
use super::messages::{BatchBuilderMessage, SupervisorMessage, VerifierMessage};
use crate::protocol::ExecutorError;
use crate::step::{AcceptanceStats, StepResult};

/// The actor.
pub struct Verifier;

/// What the verifier is started with.
pub struct VerifierArguments {
    /// Commits what was verified.
    pub batch_builder: ActorRef<BatchBuilderMessage>,
    /// Is told of device errors.
    pub supervisor: ActorRef<SupervisorMessage>,
    /// Tokens are below it.
    pub vocab_size: u32,
}

/// The actor's state.
pub struct VerifierState {
    arguments: VerifierArguments,
    acceptance: AcceptanceStats,
}

impl Actor for Verifier {
    type Msg = VerifierMessage;
    type State = VerifierState;
    type Arguments = VerifierArguments;

    async fn pre_start(
        &self,
        _myself: ActorRef<VerifierMessage>,
        arguments: VerifierArguments,
    ) -> Result<VerifierState, ActorProcessingErr> {
        Ok(VerifierState { arguments, acceptance: AcceptanceStats::default() })
    }

    async fn handle(
        &self,
        _myself: ActorRef<VerifierMessage>,
        message: VerifierMessage,
        state: &mut VerifierState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            VerifierMessage::Await(ticket) => match state.receive(ticket).await {
                Ok(result) => state.arguments.batch_builder.cast(BatchBuilderMessage::StepDone(result))?,
                Err(error) => state.arguments.supervisor.cast(SupervisorMessage::Fatal(error.to_string()))?,
            },
            VerifierMessage::Record(report) => state.acceptance.record(&report),
            // the caller may have gone
            VerifierMessage::State(reply) => _ = reply.send(state.describe()),
        }
        Ok(())
    }
}

impl VerifierState {
    async fn receive(&self, ticket: StepTicket) -> Result<Box<StepResult>, ExecutorError> {
        let result = ticket.result().await?;
        result.check(self.arguments.vocab_size)?;
        Ok(result)
    }

    fn describe(&self) -> serde_json::Value {
        let mut state = serde_json::json!(self.acceptance);
        state["calibration_error"] = serde_json::json!(self.acceptance.calibration_error());
        state
    }
}
