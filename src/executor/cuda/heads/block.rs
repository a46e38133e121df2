//! Passes of DFlash and DSpark: a block of drafts for each sequence.

use std::ptr;

use super::model::{HeadModel, Kind, Launch};
use super::products;
use super::sizes::BlockShape;
use crate::executor::cuda::error::{CudaError, check_launch};
use crate::executor::cuda::ffi::kernels::{self, ConfidenceParams, RmsNormParams, TakeRowsParams};

impl HeadModel {
    /// Keys and values of all layers of a block head; positions and slots stand from row `first` on.
    pub(super) fn read_block(&mut self, launch: Launch<'_>, first: usize) -> Result<(), CudaError> {
        let read = launch.sizes.read;
        self.fuse(launch)?;
        let params = RmsNormParams {
            residual: self.buffers.fused.mut_ptr(),
            delta: ptr::null(),
            weight: self.weights.hidden_norm.ptr(),
            out: self.buffers.input.mut_ptr(),
            gather: ptr::null(),
            scales: ptr::null_mut(),
            eps: self.layers.spec().rms_norm_eps,
            rows: read as i32,
            hidden: self.layers.spec().hidden_size as i32,
        };
        // SAFETY: memory of `HEAD_ROWS_MAX` rows.
        let status = unsafe { kernels::specserve_rmsnorm(&params, launch.stream.raw()) };
        check_launch(status, "rmsnorm")?;
        let input = self.buffers.input.ptr();
        // SAFETY: the caller's contract of `run`.
        let mut pass = unsafe { launch.pass(&mut self.layers, read, 0) };
        for (index, linear) in self.weights.keys_and_values.iter().enumerate() {
            pass.write_keys_and_values(index, linear, input, first, read)?;
        }
        Ok(())
    }

    /// The blocks through all layers, then slot by slot a draft for each.
    pub(super) fn draft_block(&mut self, launch: Launch<'_>) -> Result<(), CudaError> {
        let Kind::Block(block) = self.kind else { return Ok(()) };
        let (rows, logit_rows) = (launch.sizes.block_rows(), launch.sizes.logit_rows());
        let layers = self.layers.spec().layers;
        // SAFETY: the caller's contract of `run`.
        let mut pass = unsafe { launch.pass(&mut self.layers, rows, logit_rows) };
        pass.embed()?;
        for index in 0..layers {
            pass.layer(index)?;
        }
        pass.final_norm()?;
        self.compute_logits(launch)?;
        let sequences = launch.sizes.sequences;
        if self.weights.markov.is_none() {
            self.choose(launch, 0, logit_rows)?;
        } else {
            for slot in 0..block.drafts() {
                self.correct(launch, slot)?;
                self.choose(launch, slot * sequences, sequences)?;
            }
        }
        self.judge(launch, block)?;
        // SAFETY: the drafter reads the results when the stream was synchronised.
        unsafe { self.sampler.download(logit_rows, launch.stream) }
    }

    /// Adds the Markov head's correction to the logits of a slot.
    fn correct(&mut self, launch: Launch<'_>, slot: usize) -> Result<(), CudaError> {
        let sequences = launch.sizes.sequences;
        let logits = self.draft_logits().wrapping_add(slot * sequences * self.draft_tokens);
        let Some(markov) = &self.weights.markov else { return Ok(()) };
        let before = match slot.checked_sub(1) {
            None => launch.anchors(),
            Some(last) => self.sampler.tokens(last * sequences),
        };
        let rank = markov.correction.inputs();
        let params = TakeRowsParams {
            table: markov.before.ptr(),
            tokens: before,
            out: self.buffers.markov.mut_ptr(),
            rows: sequences as i32,
            width: rank as i32,
            vocab: self.layers.spec().vocab_size as i32,
        };
        // SAFETY: memory of at least `sequences` rows.
        let status = unsafe { kernels::specserve_take_rows(&params, launch.stream.raw()) };
        check_launch(status, "take_rows")?;
        let product = products::correction(markov, &self.buffers, sequences, logits);
        // SAFETY: as above; the slot is one of the pass's.
        unsafe { product.run(launch.gemm, launch.stream) }
    }

    /// Has the confidence head judge all drafts of the blocks, if there is one.
    fn judge(&mut self, launch: Launch<'_>, block: BlockShape) -> Result<(), CudaError> {
        let Some(confidence) = &self.weights.confidence else { return Ok(()) };
        let markov = self.weights.markov.as_ref().filter(|_| confidence.with_markov);
        let (_, scratch) = self.layers.parts();
        let states = scratch.head_input.ptr();
        let params = ConfidenceParams {
            states,
            features: markov.map_or(ptr::null(), |markov| markov.before.ptr()),
            anchors: launch.anchors(),
            weight: confidence.weight.ptr(),
            proposals: self.sampler.proposals(),
            bias: confidence.bias,
            slots: block.drafts() as i32,
            sequences: launch.sizes.sequences as i32,
            hidden: self.layers.spec().hidden_size as i32,
            rank: markov.map_or(0, |markov| markov.correction.inputs() as i32),
            vocab: self.layers.spec().vocab_size as i32,
        };
        // SAFETY: memory of all rows of logits.
        let status = unsafe { kernels::specserve_confidence(&params, launch.stream.raw()) };
        check_launch(status, "confidence")
    }
}
