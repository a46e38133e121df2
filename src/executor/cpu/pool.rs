//! A fixed team of threads for fork and join within one forward pass.
//!
//! A pass forks dozens of times and each piece runs for microseconds, so between
//! pieces the workers spin; only when nothing comes for [`SPINS_MAX`] rounds do
//! they park. The calling thread is worker 0.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};

use crossbeam::utils::CachePadded;

/// Rounds of spinning before a thread parks: about 40 to 100 µs on current x86 cores,
/// longer than the serial stretches between two forks of one pass and short
/// enough to leave the core to others between steps.
const SPINS_MAX: u32 = 2_000;

/// Rounds of spinning between two offers of the processor: 2 to 5 µs, more than a fork
/// takes to be noticed on an idle machine.
const SPINS_PER_YIELD: u32 = 100;

/// Multiply-adds that two threads do no faster than one: the fork itself takes 0.3 µs, but
/// inputs and results then travel between the caches (measured on Zen 3: a draft step of the
/// embedded pair fell from 240 to 82 µs).
const SERIAL_MULTIPLY_ADDS_MAX: usize = 128 << 10;

/// A job panicked on one of the threads; the text is the panic's message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a compute thread panicked: {0}")]
pub(crate) struct JobPanicked(pub(crate) String);

/// The job of the current fork. The lifetime is erased; [`Pool::run`] does not return
/// before every worker has finished with it.
type Job = *const (dyn Fn(usize) + Sync);

/// What the threads of one pool share.
struct Shared {
    /// Counts forks; a change tells the workers that `job` is theirs.
    epoch: CachePadded<AtomicUsize>,
    /// Workers that still run the current job.
    running: CachePadded<AtomicUsize>,
    job: UnsafeCell<Option<Job>>,
    /// Per worker: whether it is parked or about to park.
    asleep: Vec<CachePadded<AtomicBool>>,
    /// The caller, while it is parked or about to park in the join.
    waiting: AtomicBool,
    caller: Mutex<Option<Thread>>,
    /// Message of the first panic since the last fork.
    panic: Mutex<Option<String>>,
    stop: AtomicBool,
}

// SAFETY: `job` is written only by the caller while `running` is zero and read by workers only
// between the `epoch` change that follows the write and their decrement of `running`; the
// pointee is `Sync`, and stays alive for that time because `run` waits for the decrements.
unsafe impl Sync for Shared {}
// SAFETY: as above; nothing in it belongs to one thread.
unsafe impl Send for Shared {}

/// The team. Not `Sync`: one caller at a time, and no fork within a fork.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One processor per thread; empty where the process may use fewer.
    processors: Vec<usize>,
    not_sync: PhantomData<Cell<()>>,
}

impl Pool {
    /// A pool of `threads` threads, the caller included. Each worker is pinned to a
    /// processor of its own where the process may use at least that many.
    pub(crate) fn new(threads: usize) -> std::io::Result<Pool> {
        assert!(threads > 0, "a pool has at least its caller");
        let shared = Arc::new(Shared {
            epoch: CachePadded::new(AtomicUsize::new(0)),
            running: CachePadded::new(AtomicUsize::new(0)),
            job: UnsafeCell::new(None),
            asleep: (0..threads).map(|_| CachePadded::new(AtomicBool::new(false))).collect(),
            waiting: AtomicBool::new(false),
            caller: Mutex::new(None),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let mut processors = allowed_processors();
        if processors.len() < threads {
            processors.clear();
        }
        let mut pool = Pool { shared, workers: Vec::new(), processors, not_sync: PhantomData };
        for worker in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let processor = pool.processors.get(worker).copied();
            let handle = std::thread::Builder::new()
                .name(format!("cpu-executor-{worker}"))
                .spawn(move || work(&shared, worker, processor))?;
            pool.workers.push(handle);
        }
        Ok(pool)
    }

    /// Threads, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Binds the calling thread to the processor that no worker is bound to.
    pub(crate) fn pin_caller(&self) {
        if let Some(&processor) = self.processors.first() {
            pin(processor);
        }
    }

    /// Runs `job(worker)` once on every thread, and returns when all are done.
    pub(crate) fn run(&self, job: &(dyn Fn(usize) + Sync)) -> Result<(), JobPanicked> {
        let shared = &*self.shared;
        if !self.workers.is_empty() {
            // SAFETY: only the lifetime changes; see `Job`.
            let job = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Job>(job) };
            // SAFETY: no worker reads `job` now: `running` is zero (see `Shared`).
            unsafe { *shared.job.get() = Some(job) };
            shared.running.store(self.workers.len(), Ordering::Relaxed);
            shared.epoch.fetch_add(1, Ordering::SeqCst);
            self.wake();
        }
        let own = catch_unwind(AssertUnwindSafe(|| job(0)));
        self.join();
        let mut message = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Err(payload) = own {
            message = Some(panic_message(payload.as_ref()));
        }
        message.map_or(Ok(()), |message| Err(JobPanicked(message)))
    }

    /// As [`run`](Self::run) for a job of about `multiply_adds`; one that takes no longer than
    /// a fork and join is done by the caller alone, share by share.
    pub(crate) fn run_sized(
        &self,
        multiply_adds: usize,
        job: &(dyn Fn(usize) + Sync),
    ) -> Result<(), JobPanicked> {
        if multiply_adds > SERIAL_MULTIPLY_ADDS_MAX {
            return self.run(job);
        }
        let shares = AssertUnwindSafe(|| (0..self.threads()).for_each(job));
        catch_unwind(shares).map_err(|payload| JobPanicked(panic_message(payload.as_ref())))
    }

    fn wake(&self) {
        for (worker, handle) in self.workers.iter().enumerate() {
            if self.shared.asleep[worker + 1].load(Ordering::SeqCst) {
                handle.thread().unpark();
            }
        }
    }

    /// Waits until no worker runs the job any more.
    fn join(&self) {
        let shared = &*self.shared;
        let done = || shared.running.load(Ordering::SeqCst) == 0;
        if spin_until(done) {
            return;
        }
        *shared.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::thread::current());
        shared.waiting.store(true, Ordering::SeqCst);
        while !done() {
            std::thread::park();
        }
        shared.waiting.store(false, Ordering::SeqCst);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for handle in self.workers.drain(..) {
            handle.thread().unpark();
            // A worker catches its jobs' panics: there is nothing to learn from the result.
            let _ = handle.join();
        }
    }
}

/// A worker's life: wait for the next fork, run, report.
fn work(shared: &Shared, worker: usize, processor: Option<usize>) {
    if let Some(processor) = processor {
        pin(processor);
    }
    let mut seen = 0;
    while wait_for_fork(shared, worker, seen) {
        seen += 1;
        // SAFETY: `epoch` moved on, so the caller has written `job` and waits for this worker.
        let job = unsafe { &*(*shared.job.get()).expect("a fork has a job") };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| job(worker))) {
            let mut panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner);
            panic.get_or_insert_with(|| panic_message(payload.as_ref()));
        }
        if shared.running.fetch_sub(1, Ordering::SeqCst) == 1 && shared.waiting.load(Ordering::SeqCst) {
            let caller = shared.caller.lock().unwrap_or_else(PoisonError::into_inner).clone();
            caller.expect("a waiting caller has left its name").unpark();
        }
    }
}

/// Returns true at the fork after number `seen`, false when the pool ends.
fn wait_for_fork(shared: &Shared, worker: usize, seen: usize) -> bool {
    let ready = || shared.epoch.load(Ordering::SeqCst) != seen;
    let ended = || shared.stop.load(Ordering::SeqCst);
    if !spin_until(ready) {
        shared.asleep[worker].store(true, Ordering::SeqCst);
        while !ready() && !ended() {
            std::thread::park();
        }
        shared.asleep[worker].store(false, Ordering::SeqCst);
    }
    ready()
}

/// Spins until `done` or for a bounded while. After the first rounds it offers the
/// processor to others now and then: one of them may be who it waits for.
fn spin_until(done: impl Fn() -> bool) -> bool {
    for round in 1..=SPINS_MAX {
        if done() {
            return true;
        }
        if round % SPINS_PER_YIELD == 0 {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }
    done()
}

/// Processors that this process may run on; empty when the system does not tell.
fn allowed_processors() -> Vec<usize> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else { return Vec::new() };
    (0..rustix::thread::CpuSet::MAX_CPU).filter(|&processor| set.is_set(processor)).collect()
}

/// Binds the calling thread to a processor. Placement only: where the system refuses, the
/// thread runs wherever it is put.
fn pin(processor: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(processor);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        tracing::debug!(processor, %error, "a compute thread could not be pinned");
    }
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

/// The part of `total` units that `worker` of `workers` takes; the parts are
/// contiguous, disjoint, and cover all.
pub(crate) fn share(total: usize, worker: usize, workers: usize) -> std::ops::Range<usize> {
    total * worker / workers..total * (worker + 1) / workers
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_thread_runs_each_job_exactly_once() {
        let pool = Pool::new(3).unwrap();
        let counts: Vec<AtomicUsize> = (0..3).map(|_| AtomicUsize::new(0)).collect();
        for _ in 0..1000 {
            pool.run(&|worker| {
                counts[worker].fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
        }
        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1000));
    }

    #[test]
    fn a_parked_team_wakes_for_the_next_job() {
        let pool = Pool::new(2).unwrap();
        let count = AtomicUsize::new(0);
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(2));
            pool.run(&|_| {
                count.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
        }
        assert_eq!(count.load(Ordering::Relaxed), 10);
    }

    #[test]
    fn a_caller_that_parked_in_the_join_is_woken() {
        let pool = Pool::new(2).unwrap();
        let done = AtomicBool::new(false);
        pool.run(&|worker| {
            if worker == 1 {
                std::thread::sleep(Duration::from_millis(5));
                done.store(true, Ordering::SeqCst);
            }
        })
        .unwrap();
        assert!(done.load(Ordering::SeqCst));
    }

    #[test]
    fn a_panic_on_any_thread_is_an_error_and_the_pool_goes_on() {
        let pool = Pool::new(2).unwrap();
        for culprit in 0..2 {
            let failed = pool.run(&|worker| assert!(worker != culprit, "worker {worker} gives up"));
            assert_eq!(failed, Err(JobPanicked(format!("worker {culprit} gives up"))));
            assert_eq!(pool.run(&|_| ()), Ok(()));
        }
    }

    #[test]
    fn a_small_job_is_done_by_the_caller_alone_with_every_share() {
        let pool = Pool::new(2).unwrap();
        let caller = std::thread::current().id();
        let shares: Vec<AtomicUsize> = (0..2).map(|_| AtomicUsize::new(0)).collect();
        pool.run_sized(1, &|worker| {
            assert_eq!(std::thread::current().id(), caller);
            shares[worker].fetch_add(1, Ordering::Relaxed);
        })
        .unwrap();
        assert!(shares.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        let failed = pool.run_sized(1, &|worker| assert!(worker == 0, "share {worker} fails"));
        assert_eq!(failed, Err(JobPanicked("share 1 fails".to_owned())));
    }

    #[test]
    fn shares_are_disjoint_and_cover_everything() {
        for total in [0, 1, 2, 7, 40] {
            for workers in 1..6 {
                let parts: Vec<usize> =
                    (0..workers).flat_map(|worker| share(total, worker, workers)).collect();
                assert_eq!(parts, (0..total).collect::<Vec<_>>());
            }
        }
    }
}
