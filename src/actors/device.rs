//! The thread that owns the executor, and with it the device.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, TryRecvError, bounded};
use tokio::sync::oneshot;

use crate::executor::Executor;
use crate::policy::Scratch;
use crate::protocol::{Clock, ExecutorError, ExecutorInfo};
use crate::step::{Drafted, StepPlan, Stepped, draft_round, verify_round};

/// Jobs that may wait for the device: the step in flight has one at a time, a step that was
/// abandoned may have left one more.
const JOBS_WAITING_MAX: usize = 4;

/// What the device is asked to do. Payloads are boxed: one message per step, and small.
enum Job {
    Draft(Box<StepPlan>, oneshot::Sender<Result<Box<Drafted>, ExecutorError>>),
    Verify(Box<Drafted>, Vec<u32>, oneshot::Sender<Result<Box<Stepped>, ExecutorError>>),
}

/// How long the engine's and the device's threads poll for each other before they sleep.
/// Waking a thread costs 5 to 50 µs; polling costs a core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Polling {
    /// The idle device thread, for its next job.
    pub job: Duration,
    /// The engine's thread, for the device's answer. Other actors run meanwhile.
    pub answer: Duration,
}

impl Polling {
    /// Sleep at once: the cores are needed for computing.
    pub const NONE: Polling = Polling { job: Duration::ZERO, answer: Duration::ZERO };
}

/// A handle to the device thread; the thread ends when the last handle is dropped.
#[derive(Clone)]
pub struct Device {
    jobs: Sender<Job>,
    answer_polling: Duration,
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
    /// the thread that made it.
    ///
    /// # Errors
    /// Whatever `build` says, as text; also when the thread can't be started.
    pub fn start<B>(build: B, clock: Arc<dyn Clock>, polling: Polling) -> Result<DeviceThread, String>
    where
        B: FnOnce() -> Result<Box<dyn Executor>, String> + Send + 'static,
    {
        let (jobs, waiting) = bounded(JOBS_WAITING_MAX);
        let (ready, built) = bounded(1);
        let run = move || match build() {
            Ok(executor) => {
                // the receiver waits below; it can't be gone
                let _ = ready.send(Ok(executor.info().clone()));
                serve(executor, &waiting, clock.as_ref(), polling.job);
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
        Ok(DeviceThread { device: Device { jobs, answer_polling: polling.answer }, info, thread })
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
        let (reply, mut done) = oneshot::channel();
        self.jobs
            .try_send(job(reply))
            .map_err(|error| ExecutorError::Device(format!("the device thread takes no job: {error}")))?;
        let answer = match poll(&mut done, self.answer_polling).await {
            Some(answer) => answer,
            None => done.await,
        };
        answer.map_err(|_| ExecutorError::Device("the device thread ended".to_owned()))?
    }
}

/// How long one look for an answer may take. A round through the runtime takes about a
/// microsecond, system call included, and an answer that comes meanwhile has to wait.
const LOOK: Duration = Duration::from_micros(5);

/// Polls for an answer for up to `time`, and lets other tasks run in between.
async fn poll<T>(
    done: &mut oneshot::Receiver<T>,
    time: Duration,
) -> Option<Result<T, oneshot::error::RecvError>> {
    if time.is_zero() {
        return None;
    }
    let until = Instant::now() + time;
    loop {
        // first of all those who have work to do, now that the device has
        tokio::task::yield_now().await;
        let look = Instant::now() + LOOK;
        loop {
            match done.try_recv() {
                Ok(answer) => return Some(Ok(answer)),
                // awaiting it says that the sender is gone
                Err(oneshot::error::TryRecvError::Closed) => return None,
                Err(oneshot::error::TryRecvError::Empty) => std::hint::spin_loop(),
            }
            let now = Instant::now();
            if now >= until {
                return None;
            }
            if now >= look {
                break;
            }
        }
    }
}

fn serve(mut executor: Box<dyn Executor>, jobs: &Receiver<Job>, clock: &dyn Clock, polling: Duration) {
    let mut scratch = Scratch::default();
    while let Some(job) = next_job(jobs, clock, polling) {
        match job {
            Job::Draft(plan, reply) => {
                let result =
                    guarded(|| draft_round(executor.as_mut(), *plan, &mut scratch, clock).map(Box::new));
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

/// Polls for a while, then sleeps; `None` once every [`Device`] is gone.
fn next_job(jobs: &Receiver<Job>, clock: &dyn Clock, polling: Duration) -> Option<Job> {
    let until = clock.now() + polling.into();
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
