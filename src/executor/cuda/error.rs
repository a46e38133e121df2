//! What can go wrong with the device, and the checks that find it.

use std::ffi::CStr;

use cust::sys::cudaError_enum as DriverStatus;

use super::ffi::{cublaslt, kernels};
use crate::protocol::ExecutorError;

/// A failure of the driver, a kernel or cuBLASLt. Most are sticky: the context is lost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// libcuda.so.1 could not be opened.
    #[error("no NVIDIA driver: libcuda.so.1 is not installed")]
    NoDriver,
    /// The driver is there but shows no usable GPU.
    #[error("the NVIDIA driver shows no GPU number {ordinal} ({detail})")]
    NoDevice {
        /// Which GPU was asked for.
        ordinal: u32,
        /// The driver's answer.
        detail: String,
    },
    /// The driver is older than the runtime that the kernels were built with.
    #[error(
        "the driver supports CUDA {driver} but this binary was built with CUDA {runtime}: update the driver"
    )]
    DriverTooOld {
        /// `major.minor` of the driver.
        driver: String,
        /// `major.minor` of the linked runtime.
        runtime: String,
    },
    /// A shared library is missing.
    #[error("{library} not found; tried:{tried}")]
    NoLibrary {
        /// Its file name.
        library: &'static str,
        /// The places, one a line.
        tried: String,
    },
    /// Device or pinned memory ran out.
    #[error("out of memory: {bytes} bytes of {what} memory")]
    OutOfMemory {
        /// `device` or `pinned`.
        what: &'static str,
        /// How much was asked for.
        bytes: usize,
    },
    /// A call failed.
    #[error("{what} failed: {detail} ({code})")]
    Call {
        /// The function or kernel.
        what: &'static str,
        /// Status code.
        code: i32,
        /// Its text.
        detail: String,
    },
}

impl From<CudaError> for ExecutorError {
    fn from(error: CudaError) -> ExecutorError {
        ExecutorError::Device(error.to_string())
    }
}

/// Checks a driver call.
///
/// # Errors
/// [`CudaError::Call`] unless the status is success.
pub fn check_driver(status: DriverStatus, what: &'static str) -> Result<(), CudaError> {
    if status == DriverStatus::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = std::ptr::null();
    // SAFETY: writes a pointer to a static string, or leaves it null for an unknown code.
    unsafe { cust::sys::cuGetErrorString(status, &mut text) };
    let detail = if text.is_null() {
        "unknown error".to_owned()
    } else {
        // SAFETY: not null, so a static zero-terminated string.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    };
    Err(CudaError::Call { what, code: status as i32, detail })
}

/// Checks a kernel launcher's status.
///
/// # Errors
/// [`CudaError::Call`] unless it is 0.
pub fn check_launch(status: i32, what: &'static str) -> Result<(), CudaError> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: returns a static zero-terminated string for every code.
    let detail = unsafe { CStr::from_ptr(kernels::specserve_error_string(status)) };
    Err(CudaError::Call { what, code: status, detail: detail.to_string_lossy().into_owned() })
}

/// Checks a cuBLASLt call.
///
/// # Errors
/// [`CudaError::Call`] unless the status is success.
pub fn check_cublaslt(status: cublaslt::cublasStatus_t, what: &'static str) -> Result<(), CudaError> {
    match status.0 {
        0 => Ok(()),
        code => Err(CudaError::Call { what, code: code as i32, detail: cublas_status(code).to_owned() }),
    }
}

fn cublas_status(code: u32) -> &'static str {
    match code {
        1 => "not initialized",
        3 => "allocation failed",
        7 => "invalid value",
        8 => "architecture mismatch",
        11 => "mapping error",
        13 => "execution failed",
        14 => "internal error",
        15 => "not supported",
        _ => "unknown cuBLAS status",
    }
}
