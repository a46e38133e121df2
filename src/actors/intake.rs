//! Intake: the refusals. Names requests, refuses what can never be served, passes on the rest.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::watch;

use super::admission::{Admission, Permit};
use super::messages::{Admitted, BatchBuilderMessage, IntakeMessage, SloMonitorMessage};
use crate::policy::Policy;
use crate::protocol::{
    AdmissionError, Generation, GenerationRequest, RequestFailure, RequestId, Submission, Termination,
};
use crate::scheduler::{SchedulerLimits, TooLarge};
use crate::telemetry::RejectionReason;

/// The intake actor.
pub struct Intake;

/// What intake is started with.
pub struct IntakeArguments {
    /// Where requests go.
    pub batch_builder: ActorRef<BatchBuilderMessage>,
    /// Counts admissions and refusals.
    pub monitor: ActorRef<SloMonitorMessage>,
    /// Bounds of the scheduler: what can ever be served.
    pub limits: SchedulerLimits,
    /// What to refuse.
    pub refusals: AdmissionPolicy,
    /// The queue's bounds.
    pub admission: Admission,
    /// The policy's latest snapshot, which can tell whether an objective is feasible.
    pub policy: watch::Receiver<Arc<dyn Policy>>,
}

/// Which requests are refused because their objectives won't be met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdmissionPolicy {
    /// Refuse what an empty machine could not meet; else it is served as well as may be.
    pub refuse_infeasible: bool,
    /// Refuse what the requests that wait would make late; else it waits, too. Only where they are
    /// served first come, first served: a pacer ranks what waits, and refuses by rank itself.
    pub refuse_late: bool,
}

/// The actor's state.
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
        let best_effort = match self.check(&submission) {
            Ok(best_effort) => best_effort,
            Err((reason, refusal)) => {
                self.arguments.monitor.cast(SloMonitorMessage::Rejected(reason))?;
                // a caller that has gone needs no refusal
                let _ = reply.send(Err(refusal));
                return Ok(());
            }
        };
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let prompt_tokens = submission.prompt.len() as u32;
        let (events, receiver) = unbounded_channel();
        let request = into_request(submission, id);
        let batch_builder = &self.arguments.batch_builder;
        batch_builder.cast(BatchBuilderMessage::Admit(Box::new(Admitted { request, events, permit })))?;
        self.arguments.monitor.cast(SloMonitorMessage::Admitted { prompt_tokens, best_effort })?;
        if reply.send(Ok(Generation { id, events: receiver })).is_err() {
            // the caller left while it was admitted; only intake can still end the request
            let ending = Termination::Failed(RequestFailure::Cancelled);
            batch_builder.cast(BatchBuilderMessage::End(id, ending))?;
        }
        Ok(())
    }

    /// Whether the request may enter, and if so, whether its objective is out of reach.
    fn check(&self, submission: &Submission) -> Result<bool, (RejectionReason, AdmissionError)> {
        let prompt_tokens = submission.prompt.len() as u32;
        let size = self.arguments.limits.check_size(prompt_tokens, submission.max_tokens);
        if let Err(TooLarge { needed, total }) = size {
            return Err((RejectionReason::TooLarge, AdmissionError::TooLarge { needed, total }));
        }
        let refusals = self.arguments.refusals;
        let policy = self.arguments.policy.borrow().clone();
        let chunk_tokens = self.arguments.limits.prefill_chunk_tokens_max;
        if let Err(why) = policy.check_feasible(&submission.slo, prompt_tokens, chunk_tokens) {
            if refusals.refuse_infeasible {
                let refusal = AdmissionError::Infeasible(why.to_string());
                return Err((RejectionReason::Infeasible, refusal));
            }
            return Ok(true);
        }
        // this request's own permit is among those that wait
        let waiting = self.arguments.admission.waiting_prompt_tokens().max(prompt_tokens);
        if refusals.refuse_late
            && let Err(why) = policy.check_feasible(&submission.slo, waiting, chunk_tokens)
        {
            return Err((RejectionReason::TooLate, AdmissionError::TooLate(why.to_string())));
        }
        Ok(false)
    }
}

fn into_request(submission: Submission, id: RequestId) -> GenerationRequest {
    GenerationRequest {
        id,
        prompt: submission.prompt,
        max_tokens: submission.max_tokens,
        sampling: submission.sampling,
        stop_tokens: submission.stop_tokens,
        slo: submission.slo,
        class: submission.class,
        weight: submission.weight,
        arrival: submission.arrival,
    }
}
