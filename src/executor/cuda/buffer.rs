//! Device memory and page-locked host memory.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::{ptr, slice};

use bytemuck::Pod;
use cust::sys::{self, CUdeviceptr};

use super::error::{CudaError, check_driver};
use super::stream::Stream;

/// `len` numbers in device memory; freed when dropped, on a thread whose context is current.
///
/// Contents start undefined. Nothing here waits for kernels that still use the memory when
/// it is dropped, except that `cuMemFree` itself synchronises with the device.
pub struct DeviceBuffer<T> {
    address: CUdeviceptr,
    len: usize,
    kind: PhantomData<T>,
}

// SAFETY: an address is valid on every thread of its context; `T` is plain data.
unsafe impl<T: Pod> Send for DeviceBuffer<T> {}

impl<T: Pod> DeviceBuffer<T> {
    /// Memory for `len` numbers, contents undefined; `len` may be 0.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`], or any sticky error of the context.
    pub fn uninitialized(len: usize) -> Result<DeviceBuffer<T>, CudaError> {
        let mut address = 0;
        let bytes = len * size_of::<T>();
        if bytes > 0 {
            // SAFETY: `address` outlives the call, which writes to it.
            match unsafe { sys::cuMemAlloc_v2(&mut address, bytes) } {
                sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY => {
                    return Err(CudaError::OutOfMemory { what: "device", bytes });
                }
                status => check_driver(status, "cuMemAlloc")?,
            }
        }
        Ok(DeviceBuffer { address, len, kind: PhantomData })
    }

    /// Memory whose every byte is `byte`; 0xff poisons floats with NaN.
    ///
    /// # Errors
    /// As [`uninitialized`](Self::uninitialized).
    pub fn filled(byte: u8, len: usize, stream: &Stream) -> Result<DeviceBuffer<T>, CudaError> {
        let mut buffer = DeviceBuffer::uninitialized(len)?;
        buffer.fill(byte, stream)?;
        Ok(buffer)
    }

    /// A copy of `values`.
    ///
    /// # Errors
    /// As [`uninitialized`](Self::uninitialized).
    pub fn from_slice(values: &[T], stream: &Stream) -> Result<DeviceBuffer<T>, CudaError> {
        let mut buffer = DeviceBuffer::uninitialized(values.len())?;
        buffer.upload(values, stream)?;
        Ok(buffer)
    }

    /// Sets every byte, in stream order.
    ///
    /// # Errors
    /// When the context is lost.
    pub fn fill(&mut self, byte: u8, stream: &Stream) -> Result<(), CudaError> {
        if self.len == 0 {
            return Ok(());
        }
        // SAFETY: the range is ours.
        let status = unsafe { sys::cuMemsetD8Async(self.address, byte, self.bytes(), stream.raw()) };
        check_driver(status, "cuMemsetD8Async")
    }

    /// Copies `values` to the start and waits for it.
    ///
    /// # Errors
    /// When the context is lost.
    ///
    /// # Panics
    /// When `values` is longer than the buffer.
    pub fn upload(&mut self, values: &[T], stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: `values` is borrowed until the synchronisation below.
        unsafe { self.upload_async(0, values, stream)? };
        stream.synchronize()
    }

    /// Enqueues a copy of `values` to `[offset, offset + values.len())`.
    ///
    /// # Errors
    /// When the context is lost.
    ///
    /// # Panics
    /// When the range is outside the buffer.
    ///
    /// # Safety
    /// `values` stays alive and unchanged until the stream has passed this copy.
    pub unsafe fn upload_async(
        &mut self,
        offset: usize,
        values: &[T],
        stream: &Stream,
    ) -> Result<(), CudaError> {
        assert!(offset + values.len() <= self.len, "upload outside the buffer");
        if values.is_empty() {
            return Ok(());
        }
        let target = self.address + (offset * size_of::<T>()) as CUdeviceptr;
        // SAFETY: the target range is inside this buffer; the source lives by our contract.
        let status = unsafe {
            sys::cuMemcpyHtoDAsync_v2(target, values.as_ptr().cast(), size_of_val(values), stream.raw())
        };
        check_driver(status, "cuMemcpyHtoDAsync")
    }

    /// Copies everything to the host, in stream order, and waits for it.
    ///
    /// # Errors
    /// When the context is lost; reports failures of earlier work, too.
    pub fn to_vec(&self, stream: &Stream) -> Result<Vec<T>, CudaError> {
        let mut values = vec![T::zeroed(); self.len];
        // SAFETY: `values` is borrowed until the synchronisation below.
        unsafe { self.download_async(0, &mut values, stream)? };
        stream.synchronize()?;
        Ok(values)
    }

    /// Enqueues a copy of `[offset, offset + into.len())` to the host.
    ///
    /// # Errors
    /// When the context is lost.
    ///
    /// # Panics
    /// When the range is outside the buffer.
    ///
    /// # Safety
    /// `into` stays alive and untouched until the stream has passed this copy.
    pub unsafe fn download_async(
        &self,
        offset: usize,
        into: &mut [T],
        stream: &Stream,
    ) -> Result<(), CudaError> {
        assert!(offset + into.len() <= self.len, "download outside the buffer");
        if into.is_empty() {
            return Ok(());
        }
        let source = self.address + (offset * size_of::<T>()) as CUdeviceptr;
        // SAFETY: the source range is inside this buffer; the target lives by our contract.
        let status = unsafe {
            sys::cuMemcpyDtoHAsync_v2(into.as_mut_ptr().cast(), source, size_of_val(into), stream.raw())
        };
        check_driver(status, "cuMemcpyDtoHAsync")
    }
}

impl<T> DeviceBuffer<T> {
    /// Device address, to read.
    pub fn ptr(&self) -> *const T {
        self.address as *const T
    }

    /// Device address, to write.
    pub fn mut_ptr(&mut self) -> *mut T {
        self.address as *mut T
    }

    /// Numbers in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

impl<T> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        if self.address != 0 {
            // SAFETY: allocated by us, freed once. A failure means that the context is gone.
            unsafe { sys::cuMemFree_v2(self.address) };
        }
    }
}

/// `len` numbers in page-locked host memory: the device copies from and to it at full
/// speed and asynchronously. Allocation is slow (0.5 s a GB): allocate at start.
pub struct PinnedBuffer<T> {
    address: *mut T,
    len: usize,
}

// SAFETY: plain memory with one owner; `T` is plain data.
unsafe impl<T: Pod> Send for PinnedBuffer<T> {}

impl<T: Pod> PinnedBuffer<T> {
    /// Zeroed memory for `len` numbers.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`], or any sticky error of the context.
    pub fn zeroed(len: usize) -> Result<PinnedBuffer<T>, CudaError> {
        let bytes = len * size_of::<T>();
        if bytes == 0 {
            return Ok(PinnedBuffer { address: ptr::NonNull::dangling().as_ptr(), len });
        }
        let mut address: *mut c_void = ptr::null_mut();
        // SAFETY: `address` outlives the call, which writes to it.
        match unsafe { sys::cuMemAllocHost_v2(&mut address, bytes) } {
            sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY => {
                return Err(CudaError::OutOfMemory { what: "pinned", bytes });
            }
            status => check_driver(status, "cuMemAllocHost")?,
        }
        // SAFETY: `bytes` bytes, page-aligned and ours.
        unsafe { ptr::write_bytes(address.cast::<u8>(), 0, bytes) };
        Ok(PinnedBuffer { address: address.cast(), len })
    }
}

impl<T> Deref for PinnedBuffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` initialised numbers, alive as long as self.
        unsafe { slice::from_raw_parts(self.address, self.len) }
    }
}

impl<T> DerefMut for PinnedBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and borrowed mutably.
        unsafe { slice::from_raw_parts_mut(self.address, self.len) }
    }
}

impl<T> Drop for PinnedBuffer<T> {
    fn drop(&mut self) {
        if self.len * size_of::<T>() > 0 {
            // SAFETY: allocated by us, freed once. A failure means that the context is gone.
            unsafe { sys::cuMemFreeHost(self.address.cast()) };
        }
    }
}
