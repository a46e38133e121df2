//! The hidden states that a forward pass of the target leaves for a draft head.

use crate::executor::cuda::buffer::DeviceBuffer;
use crate::executor::cuda::error::{CudaError, check_launch};
use crate::executor::cuda::ffi::kernels::{self, TakeStatesParams};
use crate::executor::cuda::stream::Stream;

/// Rows of hidden states: the residual stream before some layers, one after the other, in bf16.
pub struct HiddenRows {
    /// The layers before which the stream is taken, in the order of a row.
    layers: Vec<usize>,
    /// Width of the stream.
    width: usize,
    /// `[capacity][layers * width]`.
    rows: DeviceBuffer<u16>,
}

impl HiddenRows {
    /// Room for the states of `capacity` tokens.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn new(layers: &[usize], width: usize, capacity: usize) -> Result<HiddenRows, CudaError> {
        let rows = DeviceBuffer::uninitialized(capacity * layers.len() * width)?;
        Ok(HiddenRows { layers: layers.to_vec(), width, rows })
    }

    /// The first row.
    pub fn ptr(&self) -> *const u16 {
        self.rows.ptr()
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.rows.bytes()
    }

    /// Enqueues the copy of the stream that enters a layer, wherever a row has that layer.
    ///
    /// # Errors
    /// When the launch fails.
    ///
    /// # Safety
    /// `residual` is device memory `[rows][width]` and `span` `[2]`, a range of rows of this buffer of
    /// at most `rows`; they stay alive until the stream has passed the launch.
    pub unsafe fn take(
        &mut self,
        layer: usize,
        residual: *const f32,
        rows: usize,
        span: *const i32,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        for place in (0..self.layers.len()).filter(|&place| self.layers[place] == layer) {
            let params = TakeStatesParams {
                residual,
                states: self.rows.mut_ptr().wrapping_add(place * self.width),
                span,
                stride: (self.layers.len() * self.width) as i64,
                rows: rows as i32,
                hidden: self.width as i32,
            };
            // SAFETY: our caller's contract.
            let status = unsafe { kernels::specserve_take_states(&params, stream.raw()) };
            check_launch(status, "take_states")?;
        }
        Ok(())
    }
}
