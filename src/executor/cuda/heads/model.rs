//! A head on the device and its passes: which kernels are launched, in which order. The formulas are
//! in the modules of [`Eagle3Head`](crate::model::Eagle3Head) and
//! [`BlockHead`](crate::model::BlockHead).

use std::ptr;

use super::sampler::{LogitPart, Sampler};
use super::sizes::{BlockShape, HEAD_ROWS_MAX, HeadSizes, HeadWork};
use super::weights::{self, HeadWeights};
use crate::executor::cuda::buffer::DeviceBuffer;
use crate::executor::cuda::communicator::Solo;
use crate::executor::cuda::error::{CudaError, check_launch};
use crate::executor::cuda::ffi::kernels::{
    self, ChainInputParams, ChainOutputParams, ConfidenceParams, FuseInputParams, RmsNormParams,
    SpreadLogitsParams, TakeLinksParams, TakeRowsParams,
};
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
enum Kind {
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
    weights: HeadWeights,
    kind: Kind,
    features: usize,
    /// Width of the target's stream.
    width: usize,
    /// Tokens of the draft vocabulary.
    draft_tokens: usize,
    buffers: Buffers,
}

/// Memory of a pass beside that of the layers.
struct Buffers {
    /// Hidden states, `[rows][features * width]`.
    fuse_input: DeviceBuffer<u16>,
    /// Fused, `[rows][hidden]`.
    fused: DeviceBuffer<f32>,
    /// Input of the attention: `[rows][2 * hidden]` of a chain, `[rows][hidden]` of states that are
    /// read for a block.
    input: DeviceBuffer<u16>,
    /// A chain's residual stream of all rows that are read, `[rows][hidden]`.
    stream: DeviceBuffer<f32>,
    /// Attention's result of the rows that draft, `[sequences][heads * head_dim]`.
    attended: DeviceBuffer<u16>,
    /// What the last pass of a chain leaves to the next, `[sequences][hidden]`.
    carried: DeviceBuffer<f32>,
    /// Logits over the draft tokens, if they are not the target's: `[logit rows][draft tokens]`.
    draft_logits: DeviceBuffer<f32>,
    /// Markov features of the tokens before, `[sequences][rank]`.
    markov: DeviceBuffer<u16>,
}

/// Most sequences and rows of logits of a pass.
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
        let (rows, logit_rows) = match sizes.work {
            HeadWork::Read => (0, 0),
            HeadWork::First | HeadWork::Next => (sizes.sequences, 0),
            HeadWork::Block => (sizes.block_rows(), 0),
        };
        if rows > 0 {
            let step = StepSizes { rows, logit_rows, decode: true, large: false, prefill_items: 0 };
            self.layers.prepare(step, tune, &mut queue.gemm, &queue.stream)?;
        }
        for product in self.own_products(sizes) {
            // SAFETY: weights and memory of this head, which has room for all sizes that the drafter
            // asks for.
            unsafe { prepare_product(product, tune, &mut queue.gemm, &queue.stream)? };
        }
        Ok(())
    }

    /// The products of a pass beside those of the layers.
    fn own_products(&mut self, sizes: HeadSizes) -> Vec<Product<'_>> {
        let HeadSizes { work, read, sequences, .. } = sizes;
        let (buffers, weights) = (&mut self.buffers, &self.weights);
        let mapped = weights.draft_of.is_some();
        let (device, scratch) = self.layers.parts();
        let to_bf16 = Epilogue::StoreBf16(scratch.qkv.mut_ptr());
        let input = buffers.input.ptr();
        let qkv = &device.layers[0].qkv;
        let mut products = Vec::new();
        if read > 0 {
            products.push(fusion(weights, buffers, read));
        }
        match (work, self.kind) {
            (HeadWork::First, _) => {
                products.push(Product {
                    linear: qkv,
                    input: Input { x: input, rows: read },
                    epilogue: to_bf16,
                });
            }
            (HeadWork::Next, _) => {
                let input = Input { x: input, rows: sequences };
                products.push(Product { linear: qkv, input, epilogue: to_bf16 });
            }
            (HeadWork::Read | HeadWork::Block, _) if read > 0 => {
                let input = Input { x: input, rows: read };
                let all = weights.keys_and_values.iter();
                products.extend(all.map(|linear| Product { linear, input, epilogue: to_bf16 }));
            }
            _ => {}
        }
        if sequences > 0 {
            let logits = if mapped { buffers.draft_logits.mut_ptr() } else { scratch.logits.mut_ptr() };
            products.push(Product {
                linear: &device.head,
                input: Input { x: scratch.head_input.ptr(), rows: sizes.logit_rows() },
                epilogue: Epilogue::StoreF32(logits),
            });
            products.extend(weights.markov.as_ref().map(|markov| Product {
                linear: &markov.correction,
                input: Input { x: buffers.markov.ptr(), rows: sequences },
                epilogue: Epilogue::AddF32(logits),
            }));
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
    fn fuse(&mut self, launch: Launch<'_>) -> Result<(), CudaError> {
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
        unsafe { fusion(&self.weights, &mut self.buffers, launch.sizes.read).run(launch.gemm, launch.stream) }
    }

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
    fn read_chain(&mut self, launch: Launch<'_>) -> Result<(), CudaError> {
        let read = launch.sizes.read;
        self.fuse(launch)?;
        self.chain_input(launch, read, true)?;
        let input = self.buffers.input.ptr();
        let linear = &self.weights.keys_and_values[0];
        // SAFETY: the caller's contract of `run`.
        let mut pass = unsafe { launch.pass(&mut self.layers, read, 0) };
        pass.write_keys_and_values(0, linear, input, 0, read)
    }

    /// Keys and values of all layers of a block head; positions and slots stand from row `first` on.
    fn read_block(&mut self, launch: Launch<'_>, first: usize) -> Result<(), CudaError> {
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

    /// The first pass of a chain: all states that were not read go through attention, the last one of
    /// each sequence goes on.
    fn first(&mut self, launch: Launch<'_>) -> Result<(), CudaError> {
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
    fn next(&mut self, launch: Launch<'_>) -> Result<(), CudaError> {
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

    /// The blocks through all layers, then slot by slot a draft for each.
    fn draft_block(&mut self, launch: Launch<'_>) -> Result<(), CudaError> {
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

    /// Logits over the draft tokens of all rows of logits.
    fn compute_logits(&mut self, launch: Launch<'_>) -> Result<(), CudaError> {
        let logits = self.draft_logits();
        let (device, scratch) = self.layers.parts();
        let product = Product {
            linear: &device.head,
            input: Input { x: scratch.head_input.ptr(), rows: launch.sizes.logit_rows() },
            epilogue: Epilogue::StoreF32(logits),
        };
        // SAFETY: memory of all rows of logits.
        unsafe { product.run(launch.gemm, launch.stream) }
    }

    /// Where logits over the draft tokens are.
    fn draft_logits(&mut self) -> *mut f32 {
        match self.weights.draft_of {
            Some(_) => self.buffers.draft_logits.mut_ptr(),
            None => self.layers.logits().mut_ptr(),
        }
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
        let product = Product {
            linear: &markov.correction,
            input: Input { x: self.buffers.markov.ptr(), rows: sequences },
            epilogue: Epilogue::AddF32(logits),
        };
        // SAFETY: as above; the slot is one of the pass's.
        unsafe { product.run(launch.gemm, launch.stream) }
    }

    /// Chooses a draft for `rows` rows of logits from `first` on.
    fn choose(&mut self, launch: Launch<'_>, first: usize, rows: usize) -> Result<(), CudaError> {
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
struct Launch<'a> {
    at: &'a HeadAddresses,
    sizes: HeadSizes,
    gemm: &'a Gemm,
    stream: &'a Stream,
}

impl<'a> Launch<'a> {
    /// The layers' part of the pass over so many rows.
    ///
    /// # Safety
    /// As [`HeadModel::run`].
    unsafe fn pass<'p>(&self, layers: &'p mut DeviceModel, rows: usize, logit_rows: usize) -> Pass<'p>
    where
        'a: 'p,
    {
        let large = self.sizes.large;
        let sizes = StepSizes { rows, logit_rows, decode: true, large, prefill_items: 0 };
        // SAFETY: our caller's contract.
        unsafe { layers.pass(&self.at.step, sizes, self.gemm, self.stream) }
    }

    /// The tokens before the blocks, behind the sources of the states.
    fn anchors(&self) -> *const i32 {
        self.at.step.sources.wrapping_add(self.sizes.read)
    }
}

impl Buffers {
    fn new(
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

/// The product that fuses `rows` rows of hidden states.
fn fusion<'a>(weights: &'a HeadWeights, buffers: &mut Buffers, rows: usize) -> Product<'a> {
    Product {
        linear: &weights.fusion,
        input: Input { x: buffers.fuse_input.ptr(), rows },
        epilogue: Epilogue::StoreF32(buffers.fused.mut_ptr()),
    }
}

/// Chooses the algorithm of one product.
///
/// # Safety
/// Input and destination are device memory of the documented sizes, which no other stream uses.
unsafe fn prepare_product(
    product: Product<'_>,
    tune: bool,
    gemm: &mut Gemm,
    stream: &Stream,
) -> Result<(), CudaError> {
    if tune {
        // SAFETY: our caller's contract.
        unsafe { product.tune(gemm, stream) }
    } else {
        product.prepare(gemm)
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
