//! A head on the device and its passes: which kernels are launched, in which order. The formulas are
//! in the modules of [`Eagle3Head`](crate::model::Eagle3Head) and
//! [`BlockHead`](crate::model::BlockHead).

use std::ptr;

use super::buffers::Buffers;
use super::products;
use super::sampler::{LogitPart, Sampler};
use super::sizes::{BlockShape, HEAD_ROWS_MAX, HeadSizes, HeadWork};
use super::weights::{self, HeadWeights};
use crate::executor::cuda::buffer::DeviceBuffer;
use crate::executor::cuda::communicator::Solo;
use crate::executor::cuda::error::{CudaError, check_launch};
use crate::executor::cuda::ffi::kernels::{self, FuseInputParams, SpreadLogitsParams};
use crate::executor::cuda::forward::{DeviceModel, Pass, StepAddresses, StepSizes};
use crate::executor::cuda::gemm::Gemm;
use crate::executor::cuda::product::{Epilogue, Input, Product};
use crate::executor::cuda::runner::DeviceQueue;
use crate::executor::cuda::scratch::ScratchSizes;
use crate::executor::cuda::step_inputs::SamplingAddresses;
use crate::executor::cuda::stream::Stream;
use crate::executor::cuda::weights::DeviceWeights;
use crate::model::{BlockHead, DraftHead, Eagle3Head, Features, ModelSpec};
use crate::protocol::ExecutorError;

/// Where the inputs of a pass are.
#[derive(Clone, Copy, Debug)]
pub struct HeadAddresses {
    /// The target's hidden states.
    pub states: *const u16,
    /// The step.
    pub step: StepAddresses,
    /// What sampling reads.
    pub sampling: SamplingAddresses,
}

/// How a head drafts.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// EAGLE-3.
    Chain { norm_before_residual: bool, norm_output: bool },
    /// DFlash, DSpark.
    Block(BlockShape),
}

/// A head with its weights, its cache and the memory of its passes.
pub struct HeadModel {
    /// Layers, embedding, last norm, output head, cache, scratch memory.
    pub layers: DeviceModel,
    /// Chosen drafts.
    pub sampler: Sampler,
    pub(super) weights: HeadWeights,
    pub(super) kind: Kind,
    features: usize,
    /// Width of the target's stream.
    width: usize,
    /// Tokens of the draft vocabulary.
    pub(super) draft_tokens: usize,
    pub(super) buffers: Buffers,
}

/// What bounds a pass.
#[derive(Clone, Copy, Debug)]
pub struct HeadBounds {
    /// Sequences, padding included.
    pub sequences: usize,
    /// Positions that tokens may have.
    pub positions: usize,
}

impl HeadModel {
    /// Uploads a head for a target that is on the device, and allocates its memory.
    ///
    /// # Errors
    /// [`ExecutorError::Malformed`] for a head that the kernels cannot run, [`ExecutorError::Device`]
    /// when memory runs out.
    pub fn new(
        head: &DraftHead,
        target: &DeviceWeights,
        bounds: HeadBounds,
        stream: &Stream,
    ) -> Result<HeadModel, ExecutorError> {
        let kind = Kind::of(head);
        let spec = ModelSpec { context_tokens_max: bounds.positions, ..head.spec().clone() };
        let logit_rows = bounds.sequences * kind.block().map_or(1, |block| block.drafts());
        let (device, weights) = weights::upload(head, target, stream)?;
        let interface = head.interface();
        let Features { target_hidden_size: width, count: features, .. } = interface.features;
        check_shape(&spec, width, interface.draft_tokens)?;
        let scratch = ScratchSizes { rows: HEAD_ROWS_MAX, logit_rows, masked_rows: HEAD_ROWS_MAX };
        let state_width = features * width;
        let tokens = interface.draft_tokens;
        let buffers =
            Buffers::new(&spec, &weights, tokens, state_width, bounds.sequences, logit_rows, stream)?;
        Ok(HeadModel {
            layers: DeviceModel::of_weights(spec, device, scratch, Box::new(Solo), stream)?,
            sampler: Sampler::new(logit_rows, stream)?,
            weights,
            kind,
            features,
            width,
            draft_tokens: interface.draft_tokens,
            buffers,
        })
    }

    /// Makes the products of a pass ready: chooses their algorithms, by timing them if `tune`.
    ///
    /// # Errors
    /// When cuBLASLt has none, or the device failed.
    pub fn prepare(
        &mut self,
        sizes: HeadSizes,
        tune: bool,
        queue: &mut DeviceQueue,
    ) -> Result<(), CudaError> {
        let rows = match sizes.work {
            HeadWork::Read => 0,
            HeadWork::First | HeadWork::Next => sizes.sequences,
            HeadWork::Block => sizes.block_rows(),
        };
        if rows > 0 {
            let step = StepSizes { rows, logit_rows: 0, decode: true, large: false, prefill_items: 0 };
            self.layers.prepare(step, tune, &mut queue.gemm, &queue.stream)?;
        }
        for product in self.own_products(sizes) {
            // SAFETY: weights and memory of this head, which has room for all sizes that the drafter
            // asks for.
            unsafe { product.choose(tune, &mut queue.gemm, &queue.stream)? };
        }
        Ok(())
    }

    /// The products of a pass beside those of the layers.
    fn own_products(&mut self, sizes: HeadSizes) -> Vec<Product<'_>> {
        let HeadSizes { work, read, sequences, .. } = sizes;
        let logits = self.draft_logits();
        let (weights, buffers) = (&self.weights, &mut self.buffers);
        let (device, scratch) = self.layers.parts();
        let input = buffers.input.ptr();
        let epilogue = Epilogue::StoreBf16(scratch.qkv.mut_ptr());
        let to_layer = |linear, rows| Product { linear, input: Input { x: input, rows }, epilogue };
        let mut products = Vec::new();
        if read > 0 {
            products.push(products::fusion(weights, buffers, read));
        }
        let qkv = &device.layers[0].qkv;
        match work {
            HeadWork::First => products.push(to_layer(qkv, read)),
            HeadWork::Next => products.push(to_layer(qkv, sequences)),
            HeadWork::Read | HeadWork::Block if read > 0 => {
                products.extend(weights.keys_and_values.iter().map(|linear| to_layer(linear, read)));
            }
            HeadWork::Read | HeadWork::Block => {}
        }
        if sequences > 0 {
            products.push(products::logits(device, scratch, sizes.logit_rows(), logits));
            let markov = weights.markov.iter();
            products.extend(markov.map(|markov| products::correction(markov, buffers, sequences, logits)));
        }
        products
    }

    /// Enqueues a pass and the copy of its proposals to the host.
    ///
    /// # Errors
    /// When a launch fails.
    ///
    /// # Safety
    /// `at` points to device memory that holds a step of these sizes, as the plan lays it out: its
    /// positions are below the bounds, its slots and tables name blocks of the cache, its sources rows
    /// of the states or of the last pass. The memory, this head and `gemm` stay alive until the stream
    /// has passed the launches, and no other stream uses the latter two meanwhile.
    pub unsafe fn run(
        &mut self,
        at: &HeadAddresses,
        sizes: HeadSizes,
        gemm: &Gemm,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let launch = Launch { at, sizes, gemm, stream };
        match (sizes.work, self.kind) {
            (HeadWork::Read, Kind::Chain { .. }) => self.read_chain(launch),
            (HeadWork::Read, Kind::Block(_)) => self.read_block(launch, 0),
            (HeadWork::First, _) => self.first(launch),
            (HeadWork::Next, _) => self.next(launch),
            (HeadWork::Block, _) => {
                if sizes.read > 0 {
                    self.read_block(launch, sizes.block_rows())?;
                }
                self.draft_block(launch)
            }
        }
    }

    /// The states of the pass, fused.
    pub(super) fn fuse(&mut self, launch: Launch<'_>) -> Result<(), CudaError> {
        let params = FuseInputParams {
            states: launch.at.states,
            sources: launch.at.step.sources,
            weight: self.weights.feature_norm.as_ref().map_or(ptr::null(), DeviceBuffer::ptr),
            out: self.buffers.fuse_input.mut_ptr(),
            eps: self.layers.spec().rms_norm_eps,
            rows: launch.sizes.read as i32,
            width: self.width as i32,
            features: self.features as i32,
            joint: i32::from(self.weights.joint_norm),
        };
        // SAFETY: sources name rows of the states; memory of `HEAD_ROWS_MAX` rows (see `run`).
        let status = unsafe { kernels::specserve_fuse_input(&params, launch.stream.raw()) };
        check_launch(status, "fuse_input")?;
        // SAFETY: as above.
        unsafe {
            products::fusion(&self.weights, &mut self.buffers, launch.sizes.read)
                .run(launch.gemm, launch.stream)
        }
    }

    /// Logits over the draft tokens of all rows of logits.
    pub(super) fn compute_logits(&mut self, launch: Launch<'_>) -> Result<(), CudaError> {
        let logits = self.draft_logits();
        let (device, scratch) = self.layers.parts();
        let product = products::logits(device, scratch, launch.sizes.logit_rows(), logits);
        // SAFETY: memory of all rows of logits.
        unsafe { product.run(launch.gemm, launch.stream) }
    }

    /// Where logits over the draft tokens are.
    pub(super) fn draft_logits(&mut self) -> *mut f32 {
        match self.weights.draft_of {
            Some(_) => self.buffers.draft_logits.mut_ptr(),
            None => self.layers.logits().mut_ptr(),
        }
    }

    /// Chooses a draft for `rows` rows of logits from `first` on.
    pub(super) fn choose(&mut self, launch: Launch<'_>, first: usize, rows: usize) -> Result<(), CudaError> {
        let vocab = self.layers.spec().vocab_size;
        let logits = self.layers.logits().mut_ptr().wrapping_add(first * vocab);
        if let Some(draft_of) = &self.weights.draft_of {
            let params = SpreadLogitsParams {
                logits: self.buffers.draft_logits.ptr().wrapping_add(first * self.draft_tokens),
                draft_of: draft_of.ptr(),
                out: logits,
                rows: rows as i32,
                draft_tokens: self.draft_tokens as i32,
                vocab: vocab as i32,
            };
            // SAFETY: memory of all rows of logits.
            let status = unsafe { kernels::specserve_spread_logits(&params, launch.stream.raw()) };
            check_launch(status, "spread_logits")?;
        }
        let part = LogitPart { logits, first, rows, vocab, filtered: launch.sizes.filtered };
        // SAFETY: the rows are the pass's; the rest is the caller's contract of `run`.
        unsafe { self.sampler.sample(part, &launch.at.sampling, launch.stream) }
    }
}

impl Kind {
    fn of(head: &DraftHead) -> Kind {
        match head {
            DraftHead::Eagle3(head) => {
                let Eagle3Head { norm_before_residual, norm_output, .. } = **head;
                Kind::Chain { norm_before_residual, norm_output }
            }
            DraftHead::Block(head) => Kind::Block(block_shape(head)),
        }
    }

    fn block(&self) -> Option<BlockShape> {
        match self {
            Kind::Chain { .. } => None,
            Kind::Block(block) => Some(*block),
        }
    }
}

/// The block that a head drafts.
pub fn block_shape(head: &BlockHead) -> BlockShape {
    BlockShape { tokens: head.block_tokens, first_slot: usize::from(!head.sample_from_anchor) }
}

/// A pass while it is enqueued.
#[derive(Clone, Copy)]
pub(super) struct Launch<'a> {
    pub(super) at: &'a HeadAddresses,
    pub(super) sizes: HeadSizes,
    pub(super) gemm: &'a Gemm,
    pub(super) stream: &'a Stream,
}

impl<'a> Launch<'a> {
    /// The layers' part of the pass over so many rows.
    ///
    /// # Safety
    /// As [`HeadModel::run`].
    pub(super) unsafe fn pass<'p>(
        &self,
        layers: &'p mut DeviceModel,
        rows: usize,
        logit_rows: usize,
    ) -> Pass<'p>
    where
        'a: 'p,
    {
        let large = self.sizes.large;
        let sizes = StepSizes { rows, logit_rows, decode: true, large, prefill_items: 0 };
        // SAFETY: our caller's contract.
        unsafe { layers.pass(&self.at.step, sizes, self.gemm, self.stream) }
    }

    /// The tokens before the blocks, behind the sources of the states.
    pub(super) fn anchors(&self) -> *const i32 {
        self.at.step.sources.wrapping_add(self.sizes.read)
    }
}

/// Checks what the kernels of heads ask for beyond those of layers.
fn check_shape(spec: &ModelSpec, width: usize, draft_tokens: usize) -> Result<(), ExecutorError> {
    let what = match () {
        () if !width.is_multiple_of(8) => format!("hidden states {width} wide: multiples of 8"),
        () if !draft_tokens.is_multiple_of(4) => format!("{draft_tokens} draft tokens: multiples of 4"),
        () if spec.layers == 0 => "no layers: at least one".to_owned(),
        () => return Ok(()),
    };
    Err(ExecutorError::Malformed(format!("{what} are what the CUDA kernels take")))
}
