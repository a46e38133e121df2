//! The processor's ceilings, measured: what a forward pass can at best reach.

use std::sync::Mutex;
use std::time::Instant;

use super::CpuError;
use super::arena::Arena;
use super::kernels::{InstructionSet, multiply_adds, stream};
use super::pool::{Pool, Work, share};

/// Passes over the memory, or runs of multiply-adds; the fastest counts, as on a shared
/// machine the others measure its other users.
const REPEATS: usize = 200;

/// Rounds of multiply-adds in a run: about a tenth of a millisecond.
const ROUNDS: u64 = 50_000;

/// Rates of all threads together.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Roofline {
    /// Bytes a second, read over and over from a buffer of the given size: from cache if it fits.
    pub stream_bytes_per_second: f64,
    /// Multiply-adds of `f32` a second, on registers.
    pub multiply_adds_per_second: f64,
}

impl Roofline {
    /// Measures with `threads` threads; `bytes` is the size of the weights that a pass reads.
    pub fn measure(threads: usize, bytes: usize) -> Result<Roofline, CpuError> {
        let set = InstructionSet::detect();
        let pool = Pool::new(threads).map_err(CpuError::Threads)?;
        let mut arena = Arena::new(bytes).map_err(CpuError::Memory)?;
        let piece = arena.take(bytes / 4);
        arena.words_mut(piece).fill(1.0);
        let words = arena.words(piece);
        let streaming = fastest(&pool, &|_, worker| {
            let mut checksum = 0.0;
            // SAFETY: the set was detected; the slice is alive.
            unsafe { stream(set, (&words[share(words.len(), worker, threads)], &mut checksum)) };
            std::hint::black_box(checksum);
        });
        let done = Mutex::new(0);
        let computing = fastest(&pool, &|_, worker| {
            let (mut count, mut checksum) = (0, worker as f32);
            // SAFETY: the set was detected.
            unsafe { multiply_adds(set, (ROUNDS, &mut count, &mut checksum)) };
            std::hint::black_box(checksum);
            if let Ok(mut done) = done.lock() {
                *done = count;
            }
        });
        let each = done.into_inner().unwrap_or(0) as f64;
        Ok(Roofline {
            stream_bytes_per_second: (words.len() * 4) as f64 / streaming,
            multiply_adds_per_second: each * threads as f64 / computing,
        })
    }
}

/// Seconds of the fastest of some runs.
#[expect(clippy::disallowed_methods, reason = "measures the processor in nanoseconds")]
fn fastest(pool: &Pool, job: &Work<'_>) -> f64 {
    let times = (0..REPEATS).filter_map(|_| {
        let start = Instant::now();
        pool.run(pool.threads(), job).ok()?;
        Some(start.elapsed().as_secs_f64())
    });
    times.fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ceilings_are_finite_and_positive() {
        let roofline = Roofline::measure(2, 1 << 20).unwrap();
        assert!(roofline.stream_bytes_per_second.is_finite() && roofline.stream_bytes_per_second > 0.0);
        assert!(roofline.multiply_adds_per_second.is_finite() && roofline.multiply_adds_per_second > 0.0);
    }
}
