//! A fixed team of threads for fork and join within one forward pass.
//!
//! - A job is cut into pieces. Each thread has a share of them and takes those first, one at
//!   a time; who is done helps the others. A thread that another process holds up delays
//!   the join by the piece that it is at, not by its share, and one that has not even noticed
//!   the fork delays nothing. Which thread computes a piece changes no result.
//! - A pass forks dozens of times and each share runs for microseconds, so between forks
//!   the workers spin; only when nothing comes for [`SPINS_MAX`] rounds do they park.
//! - The calling thread is worker 0.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
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

/// Most pieces of one job.
pub(crate) const PIECES_MAX: usize = u16::MAX as usize;

/// A job panicked on one of the threads; the text is the panic's message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a compute thread panicked: {0}")]
pub(crate) struct JobPanicked(pub(crate) String);

/// What [`Pool::run`] runs: the thread's number, then the piece's.
pub(crate) type Work<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// The job of the current fork. The lifetime is erased; [`Pool::run`] does not return
/// before every piece is done.
type Job = *const Work<'static>;

/// What the threads of one pool share.
struct Shared {
    /// Per thread: the fork's number and the pieces of its share that no thread has taken.
    shares: Vec<CachePadded<AtomicU64>>,
    /// Pieces that are not done.
    left: CachePadded<AtomicUsize>,
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

// SAFETY: `job` is written only by the caller while `left` is zero, so that no piece can be
// taken, and read only by who has taken a piece (an acquire of the share that the caller
// released after the write) and not yet counted it as done. The pointee is `Sync`, and stays
// alive for that time because `run` waits until nothing is left.
unsafe impl Sync for Shared {}
// SAFETY: as above; nothing in it belongs to one thread.
unsafe impl Send for Shared {}

/// The team. Not `Sync`: one caller at a time, and no fork within a fork.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Counts forks, modulo 2^32.
    forks: Cell<u32>,
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
            shares: (0..threads).map(|_| CachePadded::new(AtomicU64::new(0))).collect(),
            left: CachePadded::new(AtomicUsize::new(0)),
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
        let mut pool =
            Pool { shared, workers: Vec::new(), forks: Cell::new(0), processors, not_sync: PhantomData };
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

    /// Runs `job(thread, piece)` once for each of `pieces` pieces, and returns when all are
    /// done. Pieces run at the same time on as many threads as there are.
    pub(crate) fn run(&self, pieces: usize, job: &Work<'_>) -> Result<(), JobPanicked> {
        if self.workers.is_empty() || pieces <= 1 {
            return alone(pieces, job);
        }
        assert!(pieces <= PIECES_MAX, "{pieces} pieces: a job has at most {PIECES_MAX}");
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes; see `Job`.
        let erased = unsafe { std::mem::transmute::<*const Work<'_>, Job>(job) };
        // SAFETY: the previous job is complete, so no thread reads it (see `Shared`).
        unsafe { *shared.job.get() = Some(erased) };
        shared.left.store(pieces, Ordering::Relaxed);
        let fork = self.forks.get().wrapping_add(1);
        self.forks.set(fork);
        for worker in (0..self.threads()).rev() {
            let untaken = untaken(fork, &share(pieces, worker, self.threads()));
            shared.shares[worker].store(untaken, Ordering::SeqCst);
        }
        self.wake();
        shared.help(0);
        self.join();
        let message = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        message.map_or(Ok(()), |message| Err(JobPanicked(message)))
    }

    /// As [`run`](Self::run) for a job of about `multiply_adds`; one that takes no longer than
    /// a fork and join is done by the caller alone.
    pub(crate) fn run_sized(
        &self,
        multiply_adds: usize,
        pieces: usize,
        job: &Work<'_>,
    ) -> Result<(), JobPanicked> {
        if multiply_adds > SERIAL_MULTIPLY_ADDS_MAX { self.run(pieces, job) } else { alone(pieces, job) }
    }

    fn wake(&self) {
        for (worker, handle) in self.workers.iter().enumerate() {
            if self.shared.asleep[worker + 1].load(Ordering::SeqCst) {
                handle.thread().unpark();
            }
        }
    }

    /// Waits until nothing is left of the job.
    fn join(&self) {
        let shared = &*self.shared;
        let done = || shared.left.load(Ordering::SeqCst) == 0;
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

/// All pieces, one after the other, by the caller.
fn alone(pieces: usize, job: &Work<'_>) -> Result<(), JobPanicked> {
    let all = AssertUnwindSafe(|| (0..pieces).for_each(|piece| job(0, piece)));
    catch_unwind(all).map_err(|payload| JobPanicked(panic_message(payload.as_ref())))
}

/// A share of which nothing is taken: the fork in the upper half, then the end, then the next.
fn untaken(fork: u32, pieces: &Range<usize>) -> u64 {
    u64::from(fork) << 32 | (pieces.end as u64) << 16 | pieces.start as u64
}

fn fork_of(share: u64) -> u32 {
    (share >> 32) as u32
}

/// Takes the next piece of a share, if there is one.
fn take(share: &AtomicU64) -> Option<usize> {
    let mut seen = share.load(Ordering::Acquire);
    loop {
        let (next, end) = (seen & 0xffff, seen >> 16 & 0xffff);
        if next == end {
            return None;
        }
        match share.compare_exchange_weak(seen, seen + 1, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return Some(next as usize),
            Err(now) => seen = now,
        }
    }
}

impl Shared {
    /// Runs pieces until none is to be had: the thread's own first, then those of the threads
    /// behind it.
    fn help(&self, thread: usize) {
        let threads = self.shares.len();
        let mut done = 0;
        for owner in (thread..threads).chain(0..thread) {
            while let Some(piece) = take(&self.shares[owner]) {
                // SAFETY: a piece was taken and is not counted as done: see `Shared`.
                let job = unsafe { &*(*self.job.get()).expect("a fork has a job") };
                if let Err(payload) = catch_unwind(AssertUnwindSafe(|| job(thread, piece))) {
                    let mut panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
                    panic.get_or_insert_with(|| panic_message(payload.as_ref()));
                }
                done += 1;
            }
        }
        let last = done > 0 && self.left.fetch_sub(done, Ordering::SeqCst) == done;
        if last && thread > 0 && self.waiting.load(Ordering::SeqCst) {
            let caller = self.caller.lock().unwrap_or_else(PoisonError::into_inner).clone();
            caller.expect("a waiting caller has left its name").unpark();
        }
    }
}

/// A worker's life: wait for the next fork, help.
fn work(shared: &Shared, worker: usize, processor: Option<usize>) {
    if let Some(processor) = processor {
        pin(processor);
    }
    let mut seen = 0;
    while let Some(fork) = wait_for_fork(shared, worker, seen) {
        seen = fork;
        shared.help(worker);
    }
}

/// The next fork after `seen`, or `None` when the pool ends.
fn wait_for_fork(shared: &Shared, worker: usize, seen: u32) -> Option<u32> {
    let fork = || fork_of(shared.shares[worker].load(Ordering::SeqCst));
    let ready = || fork() != seen;
    let ended = || shared.stop.load(Ordering::SeqCst);
    if !spin_until(ready) {
        shared.asleep[worker].store(true, Ordering::SeqCst);
        while !ready() && !ended() {
            std::thread::park();
        }
        shared.asleep[worker].store(false, Ordering::SeqCst);
    }
    ready().then(fork)
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
    use std::time::{Duration, Instant};

    use super::*;

    fn counters(count: usize) -> Vec<AtomicUsize> {
        (0..count).map(|_| AtomicUsize::new(0)).collect()
    }

    #[test]
    fn every_piece_of_every_job_runs_exactly_once() {
        let pool = Pool::new(3).unwrap();
        let counts = counters(40);
        for pieces in (0..=40).cycle().take(2000) {
            pool.run(pieces, &|thread, piece| {
                assert!(thread < 3);
                counts[piece].fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
        }
        let runs = |piece: usize| (0..=40).cycle().take(2000).filter(|&pieces| pieces > piece).count();
        for (piece, count) in counts.iter().enumerate() {
            assert_eq!(count.load(Ordering::Relaxed), runs(piece), "piece {piece}");
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a real deadline for real threads")]
    #[test]
    fn the_pieces_behind_one_that_takes_long_are_done_by_others() {
        let pool = Pool::new(2).unwrap();
        let started = AtomicUsize::new(0);
        let all_started = || started.load(Ordering::SeqCst) == 8;
        pool.run(8, &|_, piece| {
            started.fetch_add(1, Ordering::SeqCst);
            let since = Instant::now();
            while piece == 0 && !all_started() && since.elapsed() < Duration::from_secs(10) {
                std::thread::yield_now();
            }
            assert!(piece > 0 || all_started(), "the pieces behind it waited for the first");
        })
        .unwrap();
    }

    #[test]
    fn a_parked_team_wakes_for_the_next_job() {
        let pool = Pool::new(2).unwrap();
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(2));
            let present = AtomicUsize::new(0);
            pool.run(2, &|_, _| {
                present.fetch_add(1, Ordering::SeqCst);
                // each piece waits for the other: both threads have to be there
                while present.load(Ordering::SeqCst) < 2 {
                    std::thread::yield_now();
                }
            })
            .unwrap();
        }
    }

    #[test]
    fn a_caller_that_parked_in_the_join_is_woken() {
        let pool = Pool::new(2).unwrap();
        let started = AtomicUsize::new(0);
        let done = AtomicBool::new(false);
        pool.run(2, &|thread, _| {
            started.fetch_add(1, Ordering::SeqCst);
            while started.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
            if thread == 1 {
                std::thread::sleep(Duration::from_millis(5));
                done.store(true, Ordering::SeqCst);
            }
        })
        .unwrap();
        assert!(done.load(Ordering::SeqCst));
    }

    #[test]
    fn a_panic_in_any_piece_is_an_error_and_the_pool_goes_on() {
        let pool = Pool::new(2).unwrap();
        for culprit in 0..4 {
            let failed = pool.run(4, &|_, piece| assert!(piece != culprit, "piece {piece} gives up"));
            assert_eq!(failed, Err(JobPanicked(format!("piece {culprit} gives up"))));
            assert_eq!(pool.run(4, &|_, _| ()), Ok(()));
        }
    }

    #[test]
    fn a_small_job_is_done_by_the_caller_alone() {
        let pool = Pool::new(2).unwrap();
        let caller = std::thread::current().id();
        let counts = counters(3);
        pool.run_sized(1, 3, &|thread, piece| {
            assert_eq!((thread, std::thread::current().id()), (0, caller));
            counts[piece].fetch_add(1, Ordering::Relaxed);
        })
        .unwrap();
        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        let failed = pool.run_sized(1, 2, &|_, piece| assert!(piece == 0, "piece {piece} fails"));
        assert_eq!(failed, Err(JobPanicked("piece 1 fails".to_owned())));
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
