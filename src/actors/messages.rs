//! What the actors say to each other. Big payloads are boxed, because one fat variant makes
//! every message of its type fat.

use ractor::{ActorRef, RpcReplyPort};
use tokio::sync::mpsc::UnboundedSender;

use super::admission::Permit;
use crate::protocol::{
    AdmissionError, Generation, GenerationRequest, Micros, RequestFailure, RequestId, Slo, StepReport,
    Submission, Termination, TokenEvent,
};
use crate::scheduler::SchedulerGauges;
use crate::step::{Drafted, StepPlan, Stepped};
use crate::telemetry::RejectionReason;

/// To intake.
#[derive(Debug)]
pub enum IntakeMessage {
    /// A request, with the permit that bounds the queue.
    Submit(Box<Submission>, Permit, RpcReplyPort<Result<Generation, AdmissionError>>),
    /// A request's caller has gone, or has all it wants.
    End(RequestId, Termination),
}

/// A request on its way from intake to the batch builder.
#[derive(Debug)]
pub struct Admitted {
    /// The request.
    pub request: GenerationRequest,
    /// Where its events go.
    pub events: UnboundedSender<TokenEvent>,
    /// Held until the request runs.
    pub permit: Permit,
}

/// To the batch builder.
#[derive(Debug)]
pub enum BatchBuilderMessage {
    /// Takes up service with these two.
    Wire(ActorRef<DrafterMessage>, ActorRef<VerifierMessage>),
    /// A new request.
    Admit(Box<Admitted>),
    /// Ends a request.
    End(RequestId, Termination),
    /// The step in flight is done.
    StepDone(Box<Stepped>),
    /// The drafter died with the step in flight; decode plainly until the next `Wire`.
    DrafterLost,
    /// Answers once nothing runs and nothing waits.
    Drain(RpcReplyPort<()>),
    /// Ends every request now.
    AbortAll(RequestFailure),
    /// Looks whether the step in flight takes too long.
    Watch,
}

/// To the drafter.
#[derive(Debug)]
pub enum DrafterMessage {
    /// Draft for this plan, then hand it to the verifier.
    Draft(Box<StepPlan>),
}

/// To the verifier.
#[derive(Debug)]
pub enum VerifierMessage {
    /// Select, verify, report to the batch builder.
    Verify(Box<Drafted>),
}

/// To the SLO monitor.
#[derive(Debug)]
pub enum SloMonitorMessage {
    /// A request was taken.
    Admitted {
        /// Tokens of its prompt.
        prompt_tokens: u32,
        /// Whether its objective can't be met even on an empty machine.
        best_effort: bool,
    },
    /// A request was refused at the door.
    Rejected(RejectionReason),
    /// A step was committed.
    Step(Box<StepObservation>),
    /// How full the scheduler is, outside of a step.
    Gauges(Box<SchedulerGauges>),
    /// A request ended.
    Ended(Box<EndedRequest>),
    /// Speculation is on or off.
    DrafterAlive(bool),
    /// The state for people, as JSON.
    State(RpcReplyPort<serde_json::Value>),
    /// The metrics in Prometheus' text format.
    Metrics(RpcReplyPort<String>),
}

/// All that is to be learned from one committed step.
#[derive(Debug)]
pub struct StepObservation {
    /// What the step did.
    pub report: StepReport,
    /// How full the scheduler is after it.
    pub gauges: SchedulerGauges,
    /// For each sequence that got tokens: how many, and the time since its previous ones.
    pub outputs: Vec<(u32, Option<Micros>)>,
}

/// A request's end.
#[derive(Debug)]
pub struct EndedRequest {
    /// The terminal event.
    pub event: TokenEvent,
    /// Its objectives.
    pub slo: Slo,
}

/// To the supervisor.
#[derive(Debug)]
pub enum SupervisorMessage {
    /// The engine can't go on: end everything and say why.
    Fatal(String),
    /// Start the drafter again.
    RestartDrafter,
}
