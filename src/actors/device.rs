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
use crate::step::{self, StepPlan, StepResult, panic_message};

/// Jobs that may wait for the device: the step in flight, and one that was abandoned.
const JOBS_WAITING_MAX: usize = 4;

/// One step to run, and where its result goes.
struct Job {
    plan: Box<StepPlan>,
    reply: oneshot::Sender<Result<Box<StepResult>, ExecutorError>>,
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

/// A step that is on the device.
#[derive(Debug)]
pub struct StepTicket {
    result: oneshot::Receiver<Result<Box<StepResult>, ExecutorError>>,
    polling: Duration,
}

/// The device thread, once its executor is built.
pub struct DeviceThread<T> {
    /// For the actors.
    pub device: Device,
    /// The executor's properties.
    pub info: ExecutorInfo,
    /// What was built beside the executor.
    pub beside: T,
    /// Ends after the last [`Device`] is dropped.
    pub thread: JoinHandle<()>,
}

impl<T: Send + 'static> DeviceThread<T> {
    /// Starts the thread and builds the executor on it, because a GPU's context belongs to
    /// the thread that made it.
    ///
    /// # Errors
    /// The text of what `build` fails with; also when the thread can't be started.
    pub fn start<B>(build: B, clock: Arc<dyn Clock>, polling: Polling) -> Result<DeviceThread<T>, String>
    where
        B: FnOnce() -> Result<(Box<dyn Executor>, T), String> + Send + 'static,
    {
        let (jobs, waiting) = bounded(JOBS_WAITING_MAX);
        let (ready, built) = bounded(1);
        let run = move || match build() {
            Ok((executor, beside)) => {
                // the receiver waits below; it can't be gone
                let _ = ready.send(Ok((executor.info().clone(), beside)));
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
        let built = built.recv().map_err(|_| "the executor panicked while it was built".to_owned())?;
        let (info, beside) = built?;
        let device = Device { jobs, answer_polling: polling.answer };
        Ok(DeviceThread { device, info, beside, thread })
    }
}

impl Device {
    /// Hands a step to the device thread.
    ///
    /// # Errors
    /// [`ExecutorError::Device`] when the thread has ended, or has jobs that it does not finish.
    pub fn submit(&self, plan: Box<StepPlan>) -> Result<StepTicket, ExecutorError> {
        let (reply, result) = oneshot::channel();
        self.jobs
            .try_send(Job { plan, reply })
            .map_err(|error| ExecutorError::Device(format!("the device thread takes no job: {error}")))?;
        Ok(StepTicket { result, polling: self.answer_polling })
    }
}

impl StepTicket {
    /// Waits for the step to finish.
    ///
    /// # Errors
    /// The target's, and [`ExecutorError::Device`] when the device thread ended.
    pub async fn result(mut self) -> Result<Box<StepResult>, ExecutorError> {
        let answer = match poll(&mut self.result, self.polling).await {
            Some(answer) => answer,
            None => self.result.await,
        };
        answer.map_err(|_| ExecutorError::Device("the device thread ended".to_owned()))?
    }
}

/// How long one look for an answer may take. A round through the runtime takes about a
/// microsecond, system call included, and an answer that comes meanwhile has to wait.
const LOOK: Duration = Duration::from_micros(5);

/// Polls for an answer for up to `time`, and lets other tasks run in between.
#[expect(clippy::disallowed_methods, reason = "spins for microseconds, which no timer resolves")]
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
    while let Some(Job { plan, reply }) = next_job(jobs, clock, polling) {
        let result = guarded(|| step::run(executor.as_mut(), *plan, &mut scratch, clock).map(Box::new));
        // the step may have been abandoned meanwhile
        let _ = reply.send(result);
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

/// A panic in the target is a device error: the executor's state can't be trusted any more.
fn guarded<T>(job: impl FnOnce() -> Result<T, ExecutorError>) -> Result<T, ExecutorError> {
    catch_unwind(AssertUnwindSafe(job)).unwrap_or_else(|panic| {
        Err(ExecutorError::Device(format!("the executor panicked: {}", panic_message(panic.as_ref()))))
    })
}
