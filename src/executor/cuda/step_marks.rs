//! When steps began and ended on the device, by its own clock.
#![forbid(unsafe_code)]

use super::error::CudaError;
use super::stream::{Event, Stream};

/// Events before and behind the work of the last step, and behind that of the step before it,
/// whichever models they were of.
pub struct StepMarks {
    begin: Event,
    ends: [Event; 2],
    /// Steps that have ended; the last one's event is `ends[(ended - 1) % 2]`.
    ended: usize,
}

impl StepMarks {
    /// No steps yet.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn new() -> Result<StepMarks, CudaError> {
        Ok(StepMarks { begin: Event::timed()?, ends: [Event::timed()?, Event::timed()?], ended: 0 })
    }

    /// Marks the place before a step's first work, the copy of its inputs.
    ///
    /// # Errors
    /// When the context is lost.
    pub fn begin(&self, stream: &Stream) -> Result<(), CudaError> {
        self.begin.record(stream)
    }

    /// Marks the place behind a step's last work, the copy of its results.
    ///
    /// # Errors
    /// When the context is lost.
    pub fn end(&mut self, stream: &Stream) -> Result<(), CudaError> {
        self.ends[self.ended % 2].record(stream)?;
        self.ended += 1;
        Ok(())
    }

    /// Time that the device took for the last step, in microseconds; `None` before the first.
    ///
    /// # Errors
    /// When the step was not waited for.
    pub fn busy_microseconds(&self) -> Result<Option<f64>, CudaError> {
        if self.ended == 0 {
            return Ok(None);
        }
        self.ends[(self.ended - 1) % 2].microseconds_since(&self.begin).map(Some)
    }

    /// Time between the last two steps, in microseconds; `None` before the second.
    ///
    /// # Errors
    /// When the last step was not waited for.
    pub fn idle_microseconds(&self) -> Result<Option<f64>, CudaError> {
        if self.ended < 2 {
            return Ok(None);
        }
        self.begin.microseconds_since(&self.ends[self.ended % 2]).map(Some)
    }
}
