//! The engine as a whole: threads, actors, and the handle that others hold.
//!
//! ```text
//! thread "engine": a current-thread runtime with all actors; hops between them cost < 1 µs
//! thread "device": the executor; one wake-up each way per job
//! ```
//! The API lives on a runtime of its own, so that tokenizing a long prompt or a slow client
//! never delays a step.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use ractor::rpc::CallResult;
use ractor::{Actor, ActorRef, RpcReplyPort};

use super::admission::Admission;
use super::condition::HealthWatch;
use super::device::{DeviceThread, Polling};
use super::intake::AdmissionPolicy;
use super::messages::{
    BatchBuilderMessage, IntakeMessage, PlanningState, SloMonitorMessage, SupervisorMessage, VerifierMessage,
};
use super::supervisor::{ActorRefs, Supervisor, SupervisorArguments};
use crate::executor::Executor;
use crate::pacing::Pacer;
use crate::policy::Learner;
use crate::protocol::{
    AdmissionError, Clock, ExecutorInfo, Generation, Micros, RequestFailure, RequestId, Submission,
    Termination,
};
use crate::scheduler::SchedulerLimits;
use crate::telemetry::{MetricsConfig, RejectionReason};

/// After an abort, how long the actors may take to pass the last events on.
const ABORT_GRACE: Duration = Duration::from_secs(2);

/// The verifier answers between two steps.
const STATE_TIMEOUT: Duration = Duration::from_secs(1);

/// What an engine is built from, besides its executor.
pub struct EngineOptions {
    /// Bounds of the scheduler; held to what the executor can take.
    pub limits: SchedulerLimits,
    /// Most requests that wait.
    pub queue_requests_max: u32,
    /// Most prompt tokens that wait.
    pub queue_prompt_tokens_max: u32,
    /// How long a request may wait for the first step that includes it; then it is refused.
    pub queue_wait_max: Micros,
    /// Which requests are refused for their objectives.
    pub refusals: AdmissionPolicy,
    /// What the metrics say of the deployment.
    pub metrics: MetricsConfig,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// A step longer than this is a device error.
    pub step_timeout: Micros,
    /// How long the engine's and the device's threads poll for each other.
    pub polling: Polling,
}

/// What the device thread builds.
pub struct EngineParts {
    /// Runs the steps.
    pub executor: Box<dyn Executor>,
    /// The policy's learner, with what it knows already.
    pub learner: Box<dyn Learner>,
    /// Serves by slack; `None`: first come, first served.
    pub pacer: Option<Pacer>,
}

/// A running engine. Dropping it without [`shutdown`](Engine::shutdown) leaves its threads to
/// the end of the process.
pub struct Engine {
    handle: EngineHandle,
    pub(super) supervisor: ActorRef<SupervisorMessage>,
    engine_thread: JoinHandle<()>,
    device_thread: JoinHandle<()>,
}

/// What others hold of an engine; cheap to clone.
#[derive(Clone)]
pub struct EngineHandle {
    actors: ActorRefs,
    supervisor: ActorRef<SupervisorMessage>,
    admission: Admission,
    health: HealthWatch,
    info: Arc<ExecutorInfo>,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("executor", &self.handle.info).finish_non_exhaustive()
    }
}

impl Engine {
    /// Builds the parts on the device thread, then the actors on theirs. Blocks meanwhile. They are
    /// built together because learner and pacer may start from times that were measured with the
    /// executor that is going to serve.
    ///
    /// # Errors
    /// What `build` says, or why a thread or actor could not be started.
    pub fn start<B>(build: B, options: EngineOptions) -> Result<Engine, String>
    where
        B: FnOnce() -> Result<EngineParts, String> + Send + 'static,
    {
        let build = || build().map(|parts| (parts.executor, (parts.learner, parts.pacer)));
        let DeviceThread { device, info, beside: (learner, pacer), thread: device_thread } =
            DeviceThread::start(build, options.clock.clone(), options.polling)?;
        let info = Arc::new(info);
        let health = HealthWatch::new();
        let admission = Admission::new(options.queue_requests_max, options.queue_prompt_tokens_max);
        let (started, actors) = crossbeam::channel::bounded(1);
        let arguments = SupervisorArguments {
            device,
            limits: options.limits.within(&info),
            learner,
            pacer,
            info: info.clone(),
            metrics: options.metrics,
            clock: options.clock.clone(),
            step_timeout: options.step_timeout,
            queue_wait_max: options.queue_wait_max,
            refusals: options.refusals,
            admission: admission.clone(),
            health: health.clone(),
            started,
        };
        let (supervisor, engine_thread) = start_actors(arguments)?;
        let actors = actors.recv().map_err(|_| "the engine's actors did not start".to_owned())?;
        let handle = EngineHandle {
            actors,
            supervisor: supervisor.clone(),
            admission,
            health,
            info,
            clock: options.clock,
        };
        Ok(Engine { handle, supervisor, engine_thread, device_thread })
    }

    /// For those who use the engine.
    pub fn handle(&self) -> &EngineHandle {
        &self.handle
    }

    /// [Drains](Self::drain) and [stops](Self::stop). Whether everything was finished in time.
    pub async fn shutdown(self, drain: Duration) -> bool {
        let drained = self.drain(drain).await;
        self.stop().await && drained
    }

    /// Takes nothing new, finishes what runs within `drain`, and fails the rest. Whether everything
    /// was finished in time. State and metrics go on being answered.
    pub async fn drain(&self, drain: Duration) -> bool {
        self.handle.health.drain();
        let batch_builder = &self.handle.actors.batch_builder;
        let drained = matches!(
            batch_builder.call(BatchBuilderMessage::Drain, Some(drain)).await,
            Ok(CallResult::Success(()))
        );
        if !drained {
            // either may be gone already; then there is nothing left to end
            let _ = batch_builder.cast(BatchBuilderMessage::AbortAll(RequestFailure::ShuttingDown));
            let _ = batch_builder.call(BatchBuilderMessage::Drain, Some(ABORT_GRACE)).await;
        }
        drained
    }

    /// Ends both threads; whether neither had panicked. Called after [`drain`](Self::drain).
    pub async fn stop(self) -> bool {
        self.supervisor.stop(None);
        let threads = tokio::task::spawn_blocking(move || {
            let engine = self.engine_thread.join().is_ok();
            // the actors held the last handles to the device
            let device = self.device_thread.join().is_ok();
            engine && device
        });
        threads.await.unwrap_or(false)
    }
}

fn start_actors(
    arguments: SupervisorArguments,
) -> Result<(ActorRef<SupervisorMessage>, JoinHandle<()>), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|error| format!("the engine's runtime could not be built: {error}"))?;
    let (ready, started) = crossbeam::channel::bounded(1);
    let run = move || {
        runtime.block_on(async move {
            match Actor::spawn(None, Supervisor, arguments).await {
                Ok((supervisor, ended)) => {
                    let _ = ready.send(Ok(supervisor));
                    // an actor's task ends without a value; its failures went to the condition
                    let _ = ended.await;
                }
                Err(error) => {
                    let _ = ready.send(Err(format!("the engine's actors did not start: {error}")));
                }
            }
        });
    };
    let thread = std::thread::Builder::new()
        .name("engine".to_owned())
        .spawn(run)
        .map_err(|error| format!("the engine thread could not be started: {error}"))?;
    let supervisor = started.recv().map_err(|_| "the engine thread ended at once".to_owned())??;
    Ok((supervisor, thread))
}

impl EngineHandle {
    /// Asks for a generation.
    ///
    /// # Errors
    /// See [`AdmissionError`]; the queue's bounds are checked before anything is sent.
    pub async fn submit(&self, submission: Submission) -> Result<Generation, AdmissionError> {
        if !self.health.get().takes_requests() {
            self.count_rejection(RejectionReason::Unavailable);
            return Err(AdmissionError::Unavailable);
        }
        let permit = self
            .admission
            .try_enter(submission.prompt.len() as u32)
            .inspect_err(|_| self.count_rejection(RejectionReason::QueueFull))?;
        let message = |reply: RpcReplyPort<_>| IntakeMessage::Submit(Box::new(submission), permit, reply);
        match self.actors.intake.call(message, None).await {
            Ok(CallResult::Success(answer)) => answer,
            _ => Err(AdmissionError::Unavailable),
        }
    }

    /// Ends a request at the next step boundary; unknown ids are ignored.
    pub fn end(&self, id: RequestId, ending: Termination) {
        // an engine that is gone has ended all its requests
        let _ = self.actors.intake.cast(IntakeMessage::End(id, ending));
    }

    /// Facts about the executor.
    pub fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    /// Now, on the engine's clock.
    pub fn now(&self) -> Micros {
        self.clock.now()
    }

    /// The engine's condition.
    pub fn health(&self) -> &HealthWatch {
        &self.health
    }

    /// What the engine is doing, for `/v1/engine/state`; null when it is gone.
    pub async fn state(&self) -> serde_json::Value {
        let Ok(CallResult::Success(mut state)) =
            self.actors.monitor.call(SloMonitorMessage::State, None).await
        else {
            return serde_json::Value::Null;
        };
        if let Ok(CallResult::Success(planning)) =
            self.actors.batch_builder.call(BatchBuilderMessage::State, None).await
        {
            let PlanningState { policy, order, pacer } = planning;
            state["policy"] = policy;
            state["scheduler"]["order"] = order.name().into();
            state["scheduler"]["pacer"] = pacer.unwrap_or_default();
        }
        if let Ok(CallResult::Success(acceptance)) =
            self.actors.verifier.call(VerifierMessage::State, Some(STATE_TIMEOUT)).await
        {
            state["acceptance"] = acceptance;
        }
        if let Ok(CallResult::Success(drafter)) =
            self.supervisor.call(SupervisorMessage::DrafterState, Some(STATE_TIMEOUT)).await
        {
            state["drafter"] = drafter;
        }
        state
    }

    /// Metrics in Prometheus' text format; empty when the engine is gone.
    pub async fn metrics(&self) -> String {
        match self.actors.monitor.call(SloMonitorMessage::Metrics, None).await {
            Ok(CallResult::Success(text)) => text,
            _ => String::new(),
        }
    }

    fn count_rejection(&self, reason: RejectionReason) {
        let _ = self.actors.monitor.cast(SloMonitorMessage::Rejected(reason));
    }
}
