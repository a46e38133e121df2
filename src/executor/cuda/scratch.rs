//! Scratch memory of a forward pass: one set of buffers per model, reused by every step.
#![forbid(unsafe_code)]

use super::attention_plan::AttentionRoom;
use super::buffer::DeviceBuffer;
use super::error::CudaError;
use super::ffi::kernels::{SKINNY_ROWS_MAX, SKINNY_SQUARES_WIDTH};
use super::stream::Stream;
use crate::model::ModelSpec;

/// The largest step that the scratch memory of a model has room for.
#[derive(Clone, Copy, Debug)]
pub struct ScratchSizes {
    /// Input rows of a step, padding included.
    pub rows: usize,
    /// Rows of logits of a step.
    pub logit_rows: usize,
    /// Rows of segments that are short enough for the decode attention kernel.
    pub masked_rows: usize,
}

/// Intermediate results of a forward pass; nothing is kept from one pass to the next. Heads and
/// `intermediate` are those of this rank.
pub struct Scratch {
    /// The residual stream, `[rows][hidden]`.
    pub residual: DeviceBuffer<f32>,
    /// After a norm, `[rows][hidden]`.
    pub normed: DeviceBuffer<u16>,
    /// One over the root mean square of each row of the residual stream, `[rows]`.
    pub scales: DeviceBuffer<f32>,
    /// Partial sums of squares of the residual stream, for steps whose products do the work of the
    /// norms: `[rows][hidden / SKINNY_SQUARES_WIDTH]`.
    pub squares: DeviceBuffer<f32>,
    /// Queries, keys, values, `[rows][qkv width]`.
    pub qkv: DeviceBuffer<u16>,
    /// Output of the attention heads, `[rows][heads * head_dim]`.
    pub attended: DeviceBuffer<u16>,
    /// Output of the attention or MLP block, to be added to the residual stream: `[rows][hidden]`.
    pub delta: DeviceBuffer<u16>,
    /// Gate, then up, `[rows][2 * intermediate]`.
    pub gate_up: DeviceBuffer<u16>,
    /// Output of SwiGLU, `[rows][intermediate]`.
    pub activated: DeviceBuffer<u16>,
    /// After the last norm, `[logit rows][hidden]`.
    pub head_input: DeviceBuffer<u16>,
    /// `[logit rows][vocab]`.
    pub logits: DeviceBuffer<f32>,
    /// Split-KV partial outputs of the decode attention, `[partial rows][head_dim]`.
    pub partial_out: DeviceBuffer<f32>,
    /// Their softmax maxima and sums, `[partial rows][2]`.
    pub partial_stats: DeviceBuffer<f32>,
}

impl Scratch {
    /// Allocates all buffers.
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
        // Padding rows are computed, too: they start as zeros so that they stay finite.
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

/// Width of the fused query, key and value projection.
pub fn qkv_width(spec: &ModelSpec) -> usize {
    (spec.heads + 2 * spec.kv_heads) * spec.head_dim
}
