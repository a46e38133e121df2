//! The device's ceilings, measured: what kernels are compared with.

use cust::sys;

use super::buffer::DeviceBuffer;
use super::error::{CudaError, check_driver};
use super::stream::{Event, Stream};

/// Copied per run: far more than any second-level cache.
const COPY_BYTES: usize = 1 << 30;
/// Runs; the median counts.
const RUNS: usize = 15;

/// Bytes read and written per second by a large copy from device to device.
///
/// # Errors
/// When 2 GiB of device memory are not free, or the context is lost.
pub fn copy_bytes_per_second(stream: &Stream) -> Result<f64, CudaError> {
    let from = DeviceBuffer::<u8>::filled(0x5a, COPY_BYTES, stream)?;
    let mut to = DeviceBuffer::<u8>::filled(0xff, COPY_BYTES, stream)?;
    let microseconds = median_microseconds(stream, RUNS, || {
        // SAFETY: both buffers hold COPY_BYTES bytes and outlive the timed runs.
        let status = unsafe {
            sys::cuMemcpyDtoDAsync_v2(to.mut_ptr() as u64, from.ptr() as u64, COPY_BYTES, stream.raw())
        };
        check_driver(status, "cuMemcpyDtoDAsync")
    })?;
    Ok(2.0 * COPY_BYTES as f64 / microseconds * 1e6)
}

/// Device time of what `enqueue` puts on the stream, in microseconds: the median of `runs`
/// after one that is not counted.
///
/// # Errors
/// Those of `enqueue`, and failures of the work.
pub fn median_microseconds(
    stream: &Stream,
    runs: usize,
    mut enqueue: impl FnMut() -> Result<(), CudaError>,
) -> Result<f64, CudaError> {
    let (before, after) = (Event::timed()?, Event::timed()?);
    let mut times = Vec::with_capacity(runs);
    for run in 0..=runs {
        before.record(stream)?;
        enqueue()?;
        after.record(stream)?;
        after.synchronize()?;
        if run > 0 {
            times.push(after.microseconds_since(&before)?);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}
