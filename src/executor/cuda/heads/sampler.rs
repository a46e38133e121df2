//! Chooses drafts from logits on the device, and brings the results back.

use crate::executor::cuda::buffer::{DeviceBuffer, PinnedBuffer};
use crate::executor::cuda::error::{CudaError, check_launch};
use crate::executor::cuda::ffi::kernels::{self, DraftProposal, DraftSampleParams, SampleParams};
use crate::executor::cuda::step_inputs::SamplingAddresses;
use crate::executor::cuda::step_results::PROPOSAL_WORDS;
use crate::executor::cuda::stream::Stream;

/// Scratch memory and results of up to a number of rows.
pub struct Sampler {
    scratch: DeviceBuffer<u8>,
    /// `[rows]`, as words.
    proposals: DeviceBuffer<u32>,
    /// Their tokens again, `[rows]`.
    tokens: DeviceBuffer<i32>,
    host: PinnedBuffer<u32>,
}

/// Some rows of logits to choose from.
#[derive(Clone, Copy, Debug)]
pub struct LogitPart {
    /// The first of them, fp32 `[rows][vocab]`.
    pub logits: *mut f32,
    /// Its number among all rows of the pass.
    pub first: usize,
    /// How many.
    pub rows: usize,
    /// Tokens of the target.
    pub vocab: usize,
    /// Whether any uses top-k, top-p or min-p.
    pub filtered: bool,
}

impl Sampler {
    /// Allocates for passes of up to `rows` rows of logits.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn new(rows: usize, stream: &Stream) -> Result<Sampler, CudaError> {
        // SAFETY: computes a size.
        let scratch = unsafe { kernels::specserve_sample_scratch_bytes(rows as i32) };
        Ok(Sampler {
            scratch: DeviceBuffer::filled(0, scratch, stream)?,
            proposals: DeviceBuffer::filled(0, rows * PROPOSAL_WORDS, stream)?,
            tokens: DeviceBuffer::filled(0, rows, stream)?,
            host: PinnedBuffer::zeroed(rows * PROPOSAL_WORDS)?,
        })
    }

    /// Enqueues the choice of a draft for each row.
    ///
    /// # Errors
    /// When the launch fails.
    ///
    /// # Safety
    /// The rows are within what was allocated; logits and addresses are device memory of the pass, as
    /// the plan lays it out, and stay alive until the stream has passed the launch.
    pub unsafe fn sample(
        &mut self,
        part: LogitPart,
        addresses: &SamplingAddresses,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let params = DraftSampleParams {
            sample: SampleParams {
                logits: part.logits,
                stride: part.vocab as i64,
                rows: addresses.rows.wrapping_add(part.first),
                adjustments: addresses.adjustments,
                masks: addresses.masks,
                scratch: self.scratch.mut_ptr().cast(),
                row_count: part.rows as i32,
                vocab: part.vocab as i32,
                filtered: i32::from(part.filtered),
            },
            proposals: self.proposals().wrapping_add(part.first),
            tokens: self.tokens.mut_ptr().wrapping_add(part.first),
        };
        // SAFETY: our caller's contract.
        check_launch(unsafe { kernels::specserve_draft_sample(&params, stream.raw()) }, "draft_sample")
    }

    /// The proposals on the device.
    pub fn proposals(&mut self) -> *mut DraftProposal {
        self.proposals.mut_ptr().cast()
    }

    /// Their tokens on the device, from row `first` on.
    pub fn tokens(&self, first: usize) -> *const i32 {
        self.tokens.ptr().wrapping_add(first)
    }

    /// Enqueues the copy of `rows` proposals to the host.
    ///
    /// # Errors
    /// When the context is lost.
    ///
    /// # Safety
    /// [`results`](Self::results) is not read before the stream was synchronised.
    pub unsafe fn download(&mut self, rows: usize, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: the pinned memory lives as long as the device's; the rest is our caller's contract.
        unsafe { self.proposals.download_async(0, &mut self.host[..rows * PROPOSAL_WORDS], stream) }
    }

    /// The proposals of the last pass as words.
    pub fn results(&self) -> &[u32] {
        &self.host
    }
}
