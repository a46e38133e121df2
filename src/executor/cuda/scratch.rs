//! A forward pass's scratch memory.
#![forbid(unsafe_code)]

use super::attention_plan::AttentionRoom;
use super::buffer::DeviceBuffer;
use super::error::CudaError;
use super::ffi::kernels::{SKINNY_ROWS_MAX, SKINNY_SQUARES_WIDTH};
use super::stream::Stream;
use crate::model::ModelSpec;

/// Largest sizes that a model's scratch memory is made for.
#[derive(Clone, Copy, Debug)]
pub struct ScratchSizes {
    /// Input rows of a step, padding included.
    pub rows: usize,
    /// Rows of logits of a step.
    pub logit_rows: usize,
    /// Rows of segments short enough for the decode kernel.
    pub masked_rows: usize,
}

/// Intermediate results of a forward pass; contents matter only within one.
pub struct Scratch {
    /// The residual stream, `[rows][hidden]`.
    pub residual: DeviceBuffer<f32>,
    /// After a norm, `[rows][hidden]`.
    pub normed: DeviceBuffer<u16>,
    /// One over the root mean square of each row of the residual stream, `[rows]`.
    pub scales: DeviceBuffer<f32>,
    /// The residual stream's sums of squares, of steps whose norms are part of the products
    /// around them: `[rows][hidden / SKINNY_SQUARES_WIDTH]`.
    pub squares: DeviceBuffer<f32>,
    /// Queries, keys, values, `[rows][qkv width]`.
    pub qkv: DeviceBuffer<u16>,
    /// What attention gathers, `[rows][heads * head_dim]`.
    pub attended: DeviceBuffer<u16>,
    /// What a block adds to the residual stream, `[rows][hidden]`.
    pub delta: DeviceBuffer<u16>,
    /// Gate, then up, `[rows][2 * intermediate]`.
    pub gate_up: DeviceBuffer<u16>,
    /// After the activation, `[rows][intermediate]`.
    pub activated: DeviceBuffer<u16>,
    /// After the last norm, `[logit rows][hidden]`.
    pub head_input: DeviceBuffer<u16>,
    /// `[logit rows][vocab]`.
    pub logits: DeviceBuffer<f32>,
    /// Attention's partial results.
    pub partial_out: DeviceBuffer<f32>,
    /// Their maxima and sums.
    pub partial_stats: DeviceBuffer<f32>,
}

impl Scratch {
    /// Allocates it for a model.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn new(
        spec: &ModelSpec,
        sizes: ScratchSizes,
        room: AttentionRoom,
        stream: &Stream,
    ) -> Result<Scratch, CudaError> {
        let rows = sizes.rows;
        // Rows of padding are computed, too: zeros at first, so that they stay finite.
        let bf16 = |numbers: usize| DeviceBuffer::filled(0, numbers, stream);
        let squares = SKINNY_ROWS_MAX as usize * spec.hidden_size.div_ceil(SKINNY_SQUARES_WIDTH as usize);
        Ok(Scratch {
            residual: DeviceBuffer::filled(0, rows * spec.hidden_size, stream)?,
            normed: bf16(rows * spec.hidden_size)?,
            scales: DeviceBuffer::filled(0, rows, stream)?,
            squares: DeviceBuffer::filled(0, squares, stream)?,
            qkv: bf16(rows * qkv_width(spec))?,
            attended: bf16(rows * spec.heads * spec.head_dim)?,
            delta: bf16(rows * spec.hidden_size)?,
            gate_up: bf16(rows * 2 * spec.intermediate_size)?,
            activated: bf16(rows * spec.intermediate_size)?,
            head_input: bf16(sizes.logit_rows * spec.hidden_size)?,
            logits: DeviceBuffer::uninitialized(sizes.logit_rows * spec.vocab_size)?,
            partial_out: DeviceBuffer::uninitialized(room.partial_rows * spec.head_dim)?,
            partial_stats: DeviceBuffer::uninitialized(room.partial_rows * 2)?,
        })
    }
}

/// Columns of the fused projection.
pub fn qkv_width(spec: &ModelSpec) -> usize {
    (spec.heads + 2 * spec.kv_heads) * spec.head_dim
}
