//! The thread that owns the executor, and with it the device.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, TryRecvError, bounded};
use tokio::sync::oneshot;

use crate::executor::{Executor, ExecutorError, ExecutorInfo};
use crate::step::{Drafted, StepPlan, Stepped, draft_round, verify_round};
use crate::time::Clock;

/// Jobs that may wait for the device: the step in flight has one at a time, a step that was
/// abandoned may have left one more.
const JOBS_WAITING_MAX: usize = 4;

/// What the device is asked to do. Payloads are boxed: one message per step, and small.
enum Job {
    Draft(Box<StepPlan>, oneshot::Sender<Result<Box<Drafted>, ExecutorError>>),
    Verify(Box<Drafted>, Vec<u32>, oneshot::Sender<Result<Box<Stepped>, ExecutorError>>),
}

/// A handle to the device thread; the thread ends when the last handle is dropped.
#[derive(Clone)]
pub struct Device {
    jobs: Sender<Job>,
}

/// The device thread, once its executor is built.
pub struct DeviceThread {
    /// For the actors.
    pub device: Device,
    /// What the executor says of itself.
    pub info: ExecutorInfo,
    /// Ends after the last [`Device`] is dropped.
    pub thread: JoinHandle<()>,
}

impl DeviceThread {
    /// Starts the thread and builds the executor on it, because a GPU's context belongs to
    /// the thread that made it. `spin` is how long the idle thread polls before it sleeps:
    /// waking it costs 5 to 50 µs.
    ///
    /// # Errors
    /// Whatever `build` says, as text; also when the thread can't be started.
    pub fn start<B>(build: B, clock: Arc<dyn Clock>, spin: Duration) -> Result<DeviceThread, String>
    where
        B: FnOnce() -> Result<Box<dyn Executor>, String> + Send + 'static,
    {
        let (jobs, waiting) = bounded(JOBS_WAITING_MAX);
        let (ready, built) = bounded(1);
        let run = move || match build() {
            Ok(executor) => {
                // the receiver waits below; it can't be gone
                let _ = ready.send(Ok(executor.info().clone()));
                serve(executor, &waiting, clock.as_ref(), spin);
            }
            Err(error) => {
                let _ = ready.send(Err(error));
            }
        };
        let thread = std::thread::Builder::new()
            .name("device".to_owned())
            .spawn(run)
            .map_err(|error| format!("the device thread could not be started: {error}"))?;
        let info = built.recv().map_err(|_| "the executor panicked while it was built".to_owned())??;
        Ok(DeviceThread { device: Device { jobs }, info, thread })
    }
}

impl Device {
    /// Runs the drafting round of a plan.
    pub async fn draft(&self, plan: Box<StepPlan>) -> Result<Box<Drafted>, ExecutorError> {
        self.run(|reply| Job::Draft(plan, reply)).await
    }

    /// Runs the target over what was drafted and selected.
    pub async fn verify(
        &self,
        drafted: Box<Drafted>,
        verified: Vec<u32>,
    ) -> Result<Box<Stepped>, ExecutorError> {
        self.run(|reply| Job::Verify(drafted, verified, reply)).await
    }

    async fn run<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, ExecutorError>>) -> Job,
    ) -> Result<T, ExecutorError> {
        let (reply, done) = oneshot::channel();
        self.jobs
            .try_send(job(reply))
            .map_err(|error| ExecutorError::Device(format!("the device thread takes no job: {error}")))?;
        done.await.map_err(|_| ExecutorError::Device("the device thread ended".to_owned()))?
    }
}

fn serve(mut executor: Box<dyn Executor>, jobs: &Receiver<Job>, clock: &dyn Clock, spin: Duration) {
    while let Some(job) = next_job(jobs, clock, spin) {
        match job {
            Job::Draft(plan, reply) => {
                let result = guarded(|| draft_round(executor.as_mut(), *plan, clock).map(Box::new));
                // the drafter may have been restarted meanwhile
                let _ = reply.send(result);
            }
            Job::Verify(drafted, verified, reply) => {
                let result =
                    guarded(|| verify_round(executor.as_mut(), *drafted, verified, clock).map(Box::new));
                let _ = reply.send(result);
            }
        }
    }
}

/// Polls for `spin`, then sleeps; `None` once every [`Device`] is gone.
fn next_job(jobs: &Receiver<Job>, clock: &dyn Clock, spin: Duration) -> Option<Job> {
    let until = clock.now() + spin.into();
    while clock.now() < until {
        match jobs.try_recv() {
            Ok(job) => return Some(job),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => std::hint::spin_loop(),
        }
    }
    jobs.recv().ok()
}

/// A panic in an executor is a device error: its state can't be trusted any more.
fn guarded<T>(job: impl FnOnce() -> Result<T, ExecutorError>) -> Result<T, ExecutorError> {
    catch_unwind(AssertUnwindSafe(job)).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(ExecutorError::Device(format!("the executor panicked: {message}")))
    })
}
