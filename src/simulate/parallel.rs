//! Independent pieces of work on several threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Results of `work(0)` to `work(count - 1)`, in this order, from up to `threads` threads.
///
/// # Panics
/// If `work` does.
pub(super) fn in_parallel<T: Send>(count: usize, threads: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let results: Vec<_> = (0..count).map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, count.max(1)) {
            scope.spawn(|| {
                while let Some(index) = take(&next, count) {
                    let result = work(index);
                    *results[index].lock().expect("nothing panicked holding it") = Some(result);
                }
            });
        }
    });
    let finished = |slot: Mutex<Option<_>>| slot.into_inner().ok().flatten().expect("each was taken");
    results.into_iter().map(finished).collect()
}

fn take(next: &AtomicUsize, count: usize) -> Option<usize> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    (index < count).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_from_any_number_of_threads() {
        let squares: Vec<usize> = (0..50).map(|n| n * n).collect();
        for threads in [0, 1, 3, 100] {
            assert_eq!(in_parallel(50, threads, |n| n * n), squares);
        }
        assert!(in_parallel(0, 4, |n| n).is_empty());
    }
}
