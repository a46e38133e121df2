//! Messages between actors. Large payloads are boxed, because one large variant makes every
//! message of its type large.

use std::sync::Arc;

use ractor::{ActorRef, RpcReplyPort};
use tokio::sync::mpsc::UnboundedSender;

use super::admission::Permit;
use super::device::StepTicket;
use crate::pacing::ServiceOrder;
use crate::protocol::{
    AdmissionError, Generation, GenerationRequest, Micros, RequestFailure, RequestId, Slo, StepReport,
    Submission, Termination, TokenEvent,
};
use crate::scheduler::SchedulerGauges;
use crate::step::{SpeculationFault, StepPlan, StepResult};
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
    /// Starts service with these two; sent again with a new drafter.
    Wire(ActorRef<DrafterMessage>, ActorRef<VerifierMessage>),
    /// A new request.
    Admit(Box<Admitted>),
    /// Ends a request.
    End(RequestId, Termination),
    /// The step in flight has finished and was checked.
    StepDone(Box<StepResult>),
    /// Whether to plan with drafts.
    Speculation(bool),
    /// The drafter died, perhaps with the step in flight: decode plainly until the next `Wire`.
    DrafterLost,
    /// Answers once nothing runs and nothing waits.
    Drain(RpcReplyPort<()>),
    /// Ends every request now.
    AbortAll(RequestFailure),
    /// Checks whether the step in flight takes too long.
    Watch,
    /// What steps are planned with.
    State(RpcReplyPort<PlanningState>),
}

/// What steps are planned with, for `/v1/engine/state`.
#[derive(Debug)]
pub struct PlanningState {
    /// What the learner knows, as JSON.
    pub policy: serde_json::Value,
    /// In which order requests are served.
    pub order: ServiceOrder,
    /// What the pacer has learned, as JSON; `None` without one.
    pub pacer: Option<serde_json::Value>,
}

/// To the drafter.
#[derive(Debug)]
pub enum DrafterMessage {
    /// Run this step, which drafts.
    Draft(Box<StepPlan>),
    /// A step speculated less than planned.
    Fault(SpeculationFault),
    /// The rest after a fault is over.
    Resume,
    /// The drafter's health, as JSON.
    State(RpcReplyPort<serde_json::Value>),
}

/// To the verifier.
#[derive(Debug)]
pub enum VerifierMessage {
    /// Await this step's result, check it, pass it on.
    Await(StepTicket),
    /// Count a committed step. Sent once it is settled, when its proposals are in this core's cache.
    Record(Arc<StepReport>),
    /// Acceptance and calibration, as JSON.
    State(RpcReplyPort<serde_json::Value>),
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
    /// A request was refused.
    Rejected(RejectionReason),
    /// A step was committed.
    Step(Box<StepObservation>),
    /// How full the scheduler is, outside of a step.
    Gauges(Box<SchedulerGauges>),
    /// A request ended.
    Ended(Box<EndedRequest>),
    /// Speculation is on, or rests after a fault.
    DrafterAlive(bool),
    /// The state of the scheduler and the metrics, as JSON.
    State(RpcReplyPort<serde_json::Value>),
    /// The metrics in Prometheus' text format.
    Metrics(RpcReplyPort<String>),
}

/// One committed step, for the metrics.
#[derive(Debug)]
pub struct StepObservation {
    /// What the step did.
    pub report: Arc<StepReport>,
    /// How full the scheduler is after it.
    pub gauges: SchedulerGauges,
    /// For each sequence that got tokens: how many, and the time since its previous ones.
    pub outputs: Vec<(u32, Option<Micros>)>,
    /// How long the step should have taken.
    pub predicted: Option<Micros>,
    /// Calibration error of the policy's acceptance probabilities, this step's included.
    pub calibration_error: Option<f64>,
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
    /// The engine can't continue: end everything with this reason.
    Fatal(String),
    /// Start the drafter again.
    RestartDrafter,
    /// Pass this question on to the drafter of the moment.
    DrafterState(RpcReplyPort<serde_json::Value>),
}
