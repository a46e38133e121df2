//! Memory of a head's passes beside that of its layers.
#![forbid(unsafe_code)]

use super::sizes::HEAD_ROWS_MAX;
use super::weights::HeadWeights;
use crate::executor::cuda::buffer::DeviceBuffer;
use crate::executor::cuda::error::CudaError;
use crate::executor::cuda::stream::Stream;
use crate::model::ModelSpec;

/// Memory of a pass beside that of the layers.
pub struct Buffers {
    /// Hidden states, `[rows][features * width]`.
    pub fuse_input: DeviceBuffer<u16>,
    /// Fused, `[rows][hidden]`.
    pub fused: DeviceBuffer<f32>,
    /// Input of the attention: `[rows][2 * hidden]` of a chain, `[rows][hidden]` of states that are
    /// read for a block.
    pub input: DeviceBuffer<u16>,
    /// A chain's residual stream of all rows that are read, `[rows][hidden]`.
    pub stream: DeviceBuffer<f32>,
    /// Attention's result of the rows that draft, `[sequences][heads * head_dim]`.
    pub attended: DeviceBuffer<u16>,
    /// What the last pass of a chain leaves to the next, `[sequences][hidden]`.
    pub carried: DeviceBuffer<f32>,
    /// Logits over the draft tokens, if they are not the target's: `[logit rows][draft tokens]`.
    pub draft_logits: DeviceBuffer<f32>,
    /// Markov features of the tokens before, `[sequences][rank]`.
    pub markov: DeviceBuffer<u16>,
}

impl Buffers {
    /// Allocates them, for passes of `HEAD_ROWS_MAX` rows that are read.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn new(
        spec: &ModelSpec,
        weights: &HeadWeights,
        draft_tokens: usize,
        state_width: usize,
        sequences: usize,
        logit_rows: usize,
        stream: &Stream,
    ) -> Result<Buffers, CudaError> {
        let (rows, hidden) = (HEAD_ROWS_MAX, spec.hidden_size);
        let rank = weights.markov.as_ref().map_or(0, |markov| markov.correction.inputs());
        // Padding rows are computed, too: they start as zeros so that they stay finite.
        let bf16 = |numbers: usize| DeviceBuffer::filled(0, numbers, stream);
        let f32 = |numbers: usize| DeviceBuffer::filled(0, numbers, stream);
        Ok(Buffers {
            fuse_input: bf16(rows * state_width)?,
            fused: f32(rows * hidden)?,
            input: bf16(rows * 2 * hidden)?,
            stream: f32(rows * hidden)?,
            attended: bf16(sequences * spec.heads * spec.head_dim)?,
            carried: f32(sequences * hidden)?,
            draft_logits: f32(weights.draft_of.as_ref().map_or(0, |_| logit_rows * draft_tokens))?,
            markov: bf16(sequences * rank)?,
        })
    }
}
