//! Intake: the door. Names requests, refuses what can never be served, passes on the rest.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::sync::mpsc::unbounded_channel;

use super::admission::Permit;
use super::handle::{AdmissionError, Generation, Submission};
use super::messages::{Admitted, BatchBuilderMessage, IntakeMessage, SloMonitorMessage};
use crate::kv::blocks_for;
use crate::request::{Ending, GenerationRequest, RequestFailure, RequestId};
use crate::telemetry::RejectionReason;

/// The actor.
pub struct Intake;

/// What intake needs to start.
pub struct IntakeArguments {
    /// Where requests go.
    pub batch_builder: ActorRef<BatchBuilderMessage>,
    /// Who counts them.
    pub monitor: ActorRef<SloMonitorMessage>,
    /// Blocks of the target's KV pool.
    pub target_blocks: u32,
}

/// Its state.
pub struct IntakeState {
    arguments: IntakeArguments,
    next_id: u64,
}

impl Actor for Intake {
    type Msg = IntakeMessage;
    type State = IntakeState;
    type Arguments = IntakeArguments;

    async fn pre_start(
        &self,
        _myself: ActorRef<IntakeMessage>,
        arguments: IntakeArguments,
    ) -> Result<IntakeState, ActorProcessingErr> {
        Ok(IntakeState { arguments, next_id: 1 })
    }

    async fn handle(
        &self,
        _myself: ActorRef<IntakeMessage>,
        message: IntakeMessage,
        state: &mut IntakeState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            IntakeMessage::Submit(submission, permit, reply) => state.submit(*submission, permit, reply)?,
            IntakeMessage::End(id, ending) => {
                state.arguments.batch_builder.cast(BatchBuilderMessage::End(id, ending))?;
            }
        }
        Ok(())
    }
}

impl IntakeState {
    fn submit(
        &mut self,
        submission: Submission,
        permit: Permit,
        reply: RpcReplyPort<Result<Generation, AdmissionError>>,
    ) -> Result<(), ActorProcessingErr> {
        let needed = blocks_for(submission.prompt.len() as u32 + submission.max_tokens);
        let total = self.arguments.target_blocks;
        if needed > total {
            self.arguments.monitor.cast(SloMonitorMessage::Rejected(RejectionReason::TooLarge))?;
            let refusal = AdmissionError::TooLarge { needed: needed.into(), total: total.into() };
            // a caller that has gone needs no refusal
            let _ = reply.send(Err(refusal));
            return Ok(());
        }
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let prompt_tokens = submission.prompt.len() as u32;
        let (events, receiver) = unbounded_channel();
        let request = name(submission, id);
        let batch_builder = &self.arguments.batch_builder;
        batch_builder.cast(BatchBuilderMessage::Admit(Box::new(Admitted { request, events, permit })))?;
        self.arguments.monitor.cast(SloMonitorMessage::Admitted { prompt_tokens })?;
        if reply.send(Ok(Generation { id, events: receiver })).is_err() {
            // the caller left while it was admitted: nobody else will end the request
            let ending = Ending::Failed(RequestFailure::Cancelled);
            batch_builder.cast(BatchBuilderMessage::End(id, ending))?;
        }
        Ok(())
    }
}

fn name(submission: Submission, id: RequestId) -> GenerationRequest {
    GenerationRequest {
        id,
        prompt: Arc::clone(&submission.prompt),
        max_tokens: submission.max_tokens,
        sampling: submission.sampling,
        stop_tokens: submission.stop_tokens,
        slo: submission.slo,
        class: submission.class,
        arrival: submission.arrival,
    }
}
