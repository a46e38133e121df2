//! Passes of EAGLE-3: a draft for each sequence.

use std::ptr;

use super::model::{HeadModel, Kind, Launch};
use super::sizes::HeadSizes;
use crate::executor::cuda::error::{CudaError, check_launch};
use crate::executor::cuda::ffi::kernels::{self, ChainInputParams, ChainOutputParams, TakeLinksParams};

impl HeadModel {
    /// The input of a chain's layer: from the fused states of the pass, or from what the last pass
    /// left, which has its residual stream in the layers' memory.
    fn chain_input(&mut self, launch: Launch<'_>, rows: usize, first: bool) -> Result<(), CudaError> {
        let Kind::Chain { norm_before_residual, .. } = self.kind else { return Ok(()) };
        let (device, scratch) = self.layers.parts();
        let buffers = &mut self.buffers;
        let params = ChainInputParams {
            table: device.embedding.ptr(),
            tokens: launch.at.step.tokens,
            states: if first { buffers.fused.ptr() } else { buffers.carried.ptr() },
            sources: if first { ptr::null() } else { launch.at.step.sources },
            embedding_norm: device.layers[0].attention_norm.ptr(),
            state_norm: self.weights.hidden_norm.ptr(),
            out: buffers.input.mut_ptr(),
            residual: if first { buffers.stream.mut_ptr() } else { scratch.residual.mut_ptr() },
            eps: self.layers.spec().rms_norm_eps,
            rows: rows as i32,
            hidden: self.layers.spec().hidden_size as i32,
            vocab: self.layers.spec().vocab_size as i32,
            normed_residual: i32::from(norm_before_residual),
        };
        // SAFETY: memory of at least `rows` rows; sources name rows of the last pass (see `run`).
        let status = unsafe { kernels::specserve_chain_input(&params, launch.stream.raw()) };
        check_launch(status, "chain_input")
    }

    /// Keys and values of a chain's layer.
    pub(super) fn read_chain(&mut self, launch: Launch<'_>) -> Result<(), CudaError> {
        let read = launch.sizes.read;
        self.fuse(launch)?;
        self.chain_input(launch, read, true)?;
        let input = self.buffers.input.ptr();
        let linear = &self.weights.keys_and_values[0];
        // SAFETY: the caller's contract of `run`.
        let mut pass = unsafe { launch.pass(&mut self.layers, read, 0) };
        pass.write_keys_and_values(0, linear, input, 0, read)
    }

    /// The first pass of a chain: all states that were not read go through attention, the last one of
    /// each sequence goes on.
    pub(super) fn first(&mut self, launch: Launch<'_>) -> Result<(), CudaError> {
        let HeadSizes { read, sequences, .. } = launch.sizes;
        self.fuse(launch)?;
        self.chain_input(launch, read, true)?;
        let input = self.buffers.input.ptr();
        // SAFETY: the caller's contract of `run`.
        let mut pass = unsafe { launch.pass(&mut self.layers, read, 0) };
        pass.project_from(0, input)?;
        pass.attend(0)?;
        let params = TakeLinksParams {
            gather: launch.at.step.gather,
            attended: pass.scratch.attended.ptr(),
            attended_out: self.buffers.attended.mut_ptr(),
            stream: self.buffers.stream.ptr(),
            residual: pass.scratch.residual.mut_ptr(),
            rows: sequences as i32,
            width: (pass.spec.heads * pass.spec.head_dim) as i32,
            hidden: pass.spec.hidden_size as i32,
        };
        // SAFETY: `gather` names input rows; memory of at least `sequences` rows.
        let status = unsafe { kernels::specserve_take_links(&params, launch.stream.raw()) };
        check_launch(status, "take_links")?;
        let attended = self.buffers.attended.ptr();
        self.finish_chain(launch, attended)
    }

    /// A later pass of a chain.
    pub(super) fn next(&mut self, launch: Launch<'_>) -> Result<(), CudaError> {
        let sequences = launch.sizes.sequences;
        self.chain_input(launch, sequences, false)?;
        let input = self.buffers.input.ptr();
        // SAFETY: the caller's contract of `run`.
        let mut pass = unsafe { launch.pass(&mut self.layers, sequences, 0) };
        pass.project_from(0, input)?;
        pass.attend(0)?;
        let attended = pass.scratch.attended.ptr();
        self.finish_chain(launch, attended)
    }

    /// What follows the attention of a chain's layer, for the rows that draft.
    fn finish_chain(&mut self, launch: Launch<'_>, attended: *const u16) -> Result<(), CudaError> {
        let Kind::Chain { norm_output, .. } = self.kind else { return Ok(()) };
        let sequences = launch.sizes.sequences;
        // SAFETY: the caller's contract of `run`.
        let mut pass = unsafe { launch.pass(&mut self.layers, sequences, 0) };
        pass.after_attention(0, attended)?;
        let params = ChainOutputParams {
            residual: pass.scratch.residual.ptr(),
            delta: if pass.fused { ptr::null() } else { pass.scratch.delta.ptr() },
            weight: pass.weights.final_norm.ptr(),
            out: pass.scratch.head_input.mut_ptr(),
            carried: self.buffers.carried.mut_ptr(),
            eps: pass.spec.rms_norm_eps,
            rows: sequences as i32,
            hidden: pass.spec.hidden_size as i32,
            carry_normed: i32::from(norm_output),
        };
        // SAFETY: memory of at least `sequences` rows.
        let status = unsafe { kernels::specserve_chain_output(&params, launch.stream.raw()) };
        check_launch(status, "chain_output")?;
        self.compute_logits(launch)?;
        self.choose(launch, 0, sequences)?;
        // SAFETY: the drafter reads the results when the stream was synchronised.
        unsafe { self.sampler.download(sequences, launch.stream) }
    }
}
