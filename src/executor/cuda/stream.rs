//! Streams and events.

use std::ptr;

use cust::sys::{self, CUevent, CUstream};

use super::error::{CudaError, check_driver};

/// `CU_STREAM_NON_BLOCKING`: no implicit order with the legacy default stream.
const NON_BLOCKING: u32 = 1;
/// `CU_EVENT_DEFAULT`: with timing.
const EVENT_TIMED: u32 = 0;
/// `CU_EVENT_DISABLE_TIMING`.
const EVENT_UNTIMED: u32 = 2;

/// An ordered queue of device work. (cust 0.3.2 cannot make a non-blocking one.)
pub struct Stream {
    raw: CUstream,
}

// SAFETY: a stream handle may be used from any thread whose current context owns it.
unsafe impl Send for Stream {}

impl Stream {
    /// A non-blocking stream of the current context.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn new() -> Result<Stream, CudaError> {
        let mut raw: CUstream = ptr::null_mut();
        // SAFETY: `raw` outlives the call, which writes a handle to it.
        let status = unsafe { sys::cuStreamCreateWithPriority(&mut raw, NON_BLOCKING, 0) };
        check_driver(status, "cuStreamCreateWithPriority")?;
        Ok(Stream { raw })
    }

    /// The handle, for launchers.
    pub fn raw(&self) -> CUstream {
        self.raw
    }

    /// Waits until everything enqueued so far is done.
    ///
    /// # Errors
    /// Reports failures of the work, too.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the handle lives.
        check_driver(unsafe { sys::cuStreamSynchronize(self.raw) }, "cuStreamSynchronize")
    }

    /// Lets later work of this stream wait for `event`.
    ///
    /// # Errors
    /// When the context is lost.
    pub fn wait(&self, event: &Event) -> Result<(), CudaError> {
        // SAFETY: both handles live.
        check_driver(unsafe { sys::cuStreamWaitEvent(self.raw, event.raw, 0) }, "cuStreamWaitEvent")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created by us, dropped once. A failure means that the context is gone.
        unsafe { sys::cuStreamDestroy_v2(self.raw) };
    }
}

/// A point in a stream that can be waited for and timed.
pub struct Event {
    raw: CUevent,
}

// SAFETY: as for `Stream`.
unsafe impl Send for Event {}

impl Event {
    /// An event that can be timed.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn timed() -> Result<Event, CudaError> {
        Event::with_flags(EVENT_TIMED)
    }

    /// A cheaper event, only to wait for.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn untimed() -> Result<Event, CudaError> {
        Event::with_flags(EVENT_UNTIMED)
    }

    fn with_flags(flags: u32) -> Result<Event, CudaError> {
        let mut raw: CUevent = ptr::null_mut();
        // SAFETY: `raw` outlives the call, which writes a handle to it.
        check_driver(unsafe { sys::cuEventCreate(&mut raw, flags) }, "cuEventCreate")?;
        Ok(Event { raw })
    }

    /// Marks the end of what `stream` holds now.
    ///
    /// # Errors
    /// When the context is lost.
    pub fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: both handles live.
        check_driver(unsafe { sys::cuEventRecord(self.raw, stream.raw) }, "cuEventRecord")
    }

    /// Whether the device has passed it.
    ///
    /// # Errors
    /// Reports failures of the work before it.
    pub fn is_done(&self) -> Result<bool, CudaError> {
        // SAFETY: the handle lives.
        match unsafe { sys::cuEventQuery(self.raw) } {
            sys::cudaError_enum::CUDA_ERROR_NOT_READY => Ok(false),
            status => check_driver(status, "cuEventQuery").map(|()| true),
        }
    }

    /// Blocks until the device has passed it.
    ///
    /// # Errors
    /// Reports failures of the work before it.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the handle lives.
        check_driver(unsafe { sys::cuEventSynchronize(self.raw) }, "cuEventSynchronize")
    }

    /// Device time from `earlier` to this event in microseconds; both are passed and timed.
    ///
    /// # Errors
    /// When one is not.
    pub fn microseconds_since(&self, earlier: &Event) -> Result<f64, CudaError> {
        let mut milliseconds = 0f32;
        // SAFETY: both handles live; the result outlives the call.
        let status = unsafe { sys::cuEventElapsedTime(&mut milliseconds, earlier.raw, self.raw) };
        check_driver(status, "cuEventElapsedTime")?;
        Ok(f64::from(milliseconds) * 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created by us, dropped once. A failure means that the context is gone.
        unsafe { sys::cuEventDestroy_v2(self.raw) };
    }
}
