//! The compute threads and their samplers.
#![forbid(unsafe_code)]

use std::sync::{Mutex, PoisonError};

use crate::sampling::Sampler;

use super::pool::{JobPanicked, Pool};

/// Threads, and a sampler for each.
pub(crate) struct Workers {
    pub(crate) pool: Pool,
    samplers: Vec<Mutex<Sampler>>,
}

impl Workers {
    /// `threads` threads, the calling one included.
    pub(crate) fn new(threads: usize) -> std::io::Result<Workers> {
        let samplers = (0..threads).map(|_| Mutex::new(Sampler::new())).collect();
        Ok(Workers { pool: Pool::new(threads)?, samplers })
    }

    /// Calls `work(index, sampler)` for `count` indices, shared among the threads; the results
    /// in order.
    pub(crate) fn sample<T: Send>(
        &self,
        count: usize,
        work: impl Fn(usize, &mut Sampler) -> T + Sync,
    ) -> Result<Vec<T>, JobPanicked> {
        let results: Vec<Mutex<Option<T>>> = (0..count).map(|_| Mutex::new(None)).collect();
        let samplers = &self.samplers;
        self.pool.run(count, &|thread, index| {
            // A sampler's memory is scratch: a panic while it was held leaves nothing to mistrust.
            let mut sampler = samplers[thread].lock().unwrap_or_else(PoisonError::into_inner);
            let made = work(index, &mut sampler);
            *results[index].lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
        })?;
        let made =
            results.into_iter().filter_map(|one| one.into_inner().unwrap_or_else(PoisonError::into_inner));
        Ok(made.collect())
    }
}
