//! One model on the device and its forward pass: what is enqueued, in which order.

mod layer;

use super::attention_plan::AttentionRoom;
use super::buffer::DeviceBuffer;
use super::error::{CudaError, check_launch};
use super::ffi::kernels::{self, AttentionItem, EmbeddingParams, RmsNormParams};
use super::gemm::{Gemm, GemmOperands, GemmOutput, GemmShape};
use super::product::{is_skinny, multiply};
use super::scratch::{Scratch, ScratchSizes};
use super::stream::Stream;
use super::weights::DeviceWeights;
use crate::model::{LoadedModel, ModelSpec};

/// Device addresses of one step's inputs (see `step_inputs`).
#[derive(Clone, Copy, Debug)]
pub struct StepAddresses {
    /// Input tokens, `[rows]`; -1 is padding.
    pub tokens: *const i32,
    /// Rotary positions, `[rows]`.
    pub positions: *const i32,
    /// KV slots, `[rows]`; -1 is padding.
    pub slots: *const i32,
    /// Masks, `[rows]`.
    pub masks: *const u64,
    /// Rows that need logits, `[logit rows]`; -1 is padding.
    pub gather: *const i32,
    /// Work of the decode kernel.
    pub items: *const AttentionItem,
    /// How many, and how many merges.
    pub item_count: *const i32,
    /// Tiles whose chunks are merged.
    pub merges: *const AttentionItem,
    /// Work of the prefill kernel.
    pub prefill_items: *const AttentionItem,
    /// Block tables.
    pub tables: *const i32,
}

/// Sizes of one step; together with the model they determine every launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StepSizes {
    /// Input rows, padding included.
    pub rows: usize,
    /// Rows of logits, padding included; 0: only the cache is filled.
    pub logit_rows: usize,
    /// Whether there is work for the decode kernel.
    pub decode: bool,
    /// Whether it uses its large tile.
    pub large: bool,
    /// Items of the prefill kernel.
    pub prefill_items: usize,
}

/// A model on the device: weights, rotation table and scratch memory; the KV pool is added
/// when the rest of the memory is known.
pub struct DeviceModel {
    spec: ModelSpec,
    weights: DeviceWeights,
    rotations: DeviceBuffer<f32>,
    room: AttentionRoom,
    scratch: Scratch,
    kv: DeviceBuffer<u16>,
    blocks: u32,
    ctas: [i32; 2],
}

impl DeviceModel {
    /// Uploads a model and allocates its scratch memory.
    ///
    /// # Errors
    /// [`Malformed`](crate::protocol::ExecutorError::Malformed) for a model that the kernels
    /// cannot run, [`Device`](crate::protocol::ExecutorError::Device) when memory runs out.
    pub fn new(
        model: &LoadedModel,
        sizes: ScratchSizes,
        stream: &Stream,
    ) -> Result<DeviceModel, crate::protocol::ExecutorError> {
        let spec = model.spec.clone();
        check_spec(&spec)?;
        let room =
            AttentionRoom::for_rows(spec.heads, spec.kv_heads, sizes.masked_rows, spec.context_tokens_max);
        let weights = DeviceWeights::upload(model, stream)?;
        let rotations = DeviceBuffer::from_slice(&rotations(&spec), stream)?;
        let scratch = Scratch::new(&spec, sizes, room, stream)?;
        let ctas = [decode_ctas(&spec, false)?, decode_ctas(&spec, true)?];
        let kv = DeviceBuffer::uninitialized(0)?;
        Ok(DeviceModel { spec, weights, rotations, room, scratch, kv, blocks: 0, ctas })
    }

    /// Allocates the KV pool.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn allocate_kv(&mut self, blocks: u32) -> Result<(), CudaError> {
        self.kv = DeviceBuffer::uninitialized(0)?;
        self.kv = DeviceBuffer::uninitialized(blocks as usize * kv_block_elements(&self.spec))?;
        self.blocks = blocks;
        Ok(())
    }

    /// Its shape.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Heads and room for partial results, for the plan.
    pub fn room(&self) -> AttentionRoom {
        self.room
    }

    /// Blocks in the KV pool.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// The pool's first number.
    pub fn kv_address(&mut self) -> *mut u16 {
        self.kv.mut_ptr()
    }

    /// Numbers from one layer of the pool to the next.
    pub fn kv_layer_elements(&self) -> usize {
        self.blocks as usize * kv_block_elements(&self.spec) / self.spec.layers
    }

    /// The logits of the last pass: `[logit rows][vocab]`.
    pub fn logits(&mut self) -> &mut DeviceBuffer<f32> {
        &mut self.scratch.logits
    }

    /// Every product of a step of these sizes: the layers' four, then the head's.
    fn products(&self, sizes: StepSizes) -> Vec<(GemmShape, GemmOperands)> {
        let mut products = self.layer_products(sizes.rows).to_vec();
        if sizes.logit_rows > 0 {
            products.push(self.head_product(sizes.logit_rows));
        }
        products
    }

    /// The products of the first layer: queries, keys and values; what attention gathered;
    /// gate and up; down.
    fn layer_products(&self, rows: usize) -> [(GemmShape, GemmOperands); 4] {
        let layer = &self.weights.layers[0];
        let scratch = &self.scratch;
        let bf16 =
            |weights: &DeviceBuffer<u16>, x: &DeviceBuffer<u16>, y: &DeviceBuffer<u16>, inputs: usize| {
                let shape =
                    GemmShape { outputs: weights.len() / inputs, inputs, rows, output: GemmOutput::Bf16 };
                (shape, operands(weights.ptr(), x, y.ptr().cast_mut().cast()))
            };
        let (hidden, inner) = (self.spec.hidden_size, self.spec.heads * self.spec.head_dim);
        [
            bf16(&layer.qkv, &scratch.normed, &scratch.qkv, hidden),
            bf16(&layer.output, &scratch.attended, &scratch.delta, inner),
            bf16(&layer.gate_up, &scratch.normed, &scratch.gate_up, hidden),
            bf16(&layer.down, &scratch.activated, &scratch.delta, self.spec.intermediate_size),
        ]
    }

    fn head_product(&self, rows: usize) -> (GemmShape, GemmOperands) {
        let shape = GemmShape {
            outputs: self.spec.vocab_size,
            inputs: self.spec.hidden_size,
            rows,
            output: GemmOutput::F32,
        };
        let logits = self.scratch.logits.ptr().cast_mut().cast();
        (shape, operands(self.weights.head(), &self.scratch.head_input, logits))
    }

    /// Chooses the algorithms of a step's products; `measure`: by timing them.
    ///
    /// # Errors
    /// When cuBLASLt has none, or the device failed.
    pub fn prepare(
        &self,
        sizes: StepSizes,
        measure: bool,
        gemm: &mut Gemm,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        for (shape, operands) in self.products(sizes).into_iter().filter(|(shape, _)| !is_skinny(*shape)) {
            if measure {
                // SAFETY: our own weights and scratch memory, made for at least these sizes.
                unsafe { gemm.tune(shape, operands, stream)? };
            } else {
                gemm.prepare(shape)?;
            }
        }
        Ok(())
    }

    /// Enqueues a forward pass: fills the cache and leaves logits in [`logits`](Self::logits).
    ///
    /// # Errors
    /// When a launch fails.
    ///
    /// # Safety
    /// `step` points to device memory that holds a step of these sizes, as the plan lays it
    /// out, alive until the stream has passed it; slots and tables name blocks of this pool.
    pub unsafe fn run(
        &mut self,
        step: &StepAddresses,
        sizes: StepSizes,
        gemm: &Gemm,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        assert!(
            sizes.rows * self.spec.hidden_size <= self.scratch.residual.len(),
            "step larger than scratch"
        );
        // SAFETY: for all launches below, pointers are our own scratch memory and weights, of the
        // sizes that the scratch sizes promise, or `step`'s, by our caller's contract.
        unsafe {
            self.embed(step, sizes, stream)?;
            let fused = self.is_fused(sizes);
            for index in 0..self.spec.layers {
                if fused {
                    self.fused_layer(index, step, sizes, stream)?;
                } else {
                    self.layer(index, step, sizes, gemm, stream)?;
                }
            }
            if sizes.logit_rows > 0 {
                self.head(step, sizes, gemm, stream)?;
            }
        }
        Ok(())
    }

    unsafe fn embed(
        &mut self,
        step: &StepAddresses,
        sizes: StepSizes,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let params = EmbeddingParams {
            table: self.weights.embedding.ptr(),
            tokens: step.tokens,
            residual: self.scratch.residual.mut_ptr(),
            rows: sizes.rows as i32,
            hidden: self.spec.hidden_size as i32,
            vocab: self.spec.vocab_size as i32,
        };
        // SAFETY: see `run`.
        check_launch(unsafe { kernels::specserve_embedding(&params, stream.raw()) }, "embedding")
    }

    /// The last norm and the logits, only of the rows that need them.
    unsafe fn head(
        &mut self,
        step: &StepAddresses,
        sizes: StepSizes,
        gemm: &Gemm,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let params = RmsNormParams {
            residual: self.scratch.residual.mut_ptr(),
            delta: if self.is_fused(sizes) { std::ptr::null() } else { self.scratch.delta.ptr() },
            weight: self.weights.final_norm.ptr(),
            out: self.scratch.head_input.mut_ptr(),
            gather: step.gather,
            scales: std::ptr::null_mut(),
            eps: self.spec.rms_norm_eps,
            rows: sizes.logit_rows as i32,
            hidden: self.spec.hidden_size as i32,
        };
        let (shape, operands) = self.head_product(sizes.logit_rows);
        // SAFETY: see `run`.
        unsafe {
            check_launch(kernels::specserve_rmsnorm(&params, stream.raw()), "rmsnorm")?;
            multiply(shape, operands, gemm, stream)
        }
    }
}

fn operands(weights: *const u16, x: &DeviceBuffer<u16>, y: *mut std::ffi::c_void) -> GemmOperands {
    GemmOperands { weights, x: x.ptr(), y }
}

/// Numbers in one block of the pool, all layers.
pub fn kv_block_elements(spec: &ModelSpec) -> usize {
    let tokens = crate::protocol::BLOCK_TOKENS as usize;
    spec.layers * 2 * spec.kv_heads * spec.head_dim * tokens
}

/// Cosine and sine of every position and pair.
fn rotations(spec: &ModelSpec) -> Vec<f32> {
    let frequencies = spec.rope.inverse_frequencies(spec.head_dim);
    let angles = |position: usize| frequencies.iter().map(move |frequency| position as f64 * frequency);
    (0..spec.context_tokens_max)
        .flat_map(|position| angles(position).flat_map(|angle| [angle.cos() as f32, angle.sin() as f32]))
        .collect()
}

fn decode_ctas(spec: &ModelSpec, large: bool) -> Result<i32, CudaError> {
    // SAFETY: reads facts about the current device.
    match unsafe { kernels::specserve_attention_decode_ctas(spec.head_dim as i32, i32::from(large), 0) } {
        count if count > 0 => Ok(count),
        status => Err(check_launch(-status, "attention_decode").err().unwrap_or_else(|| CudaError::Call {
            what: "attention_decode",
            code: 0,
            detail: "the kernel does not fit this GPU".to_owned(),
        })),
    }
}

/// What the kernels can run.
fn check_spec(spec: &ModelSpec) -> Result<(), crate::protocol::ExecutorError> {
    let refuse = |what: String| Err(crate::protocol::ExecutorError::Malformed(what));
    if !matches!(spec.head_dim, 64 | 128) {
        return refuse(format!("head_dim {}: the CUDA kernels take 64 and 128", spec.head_dim));
    }
    if spec.heads / spec.kv_heads > kernels::ATTENTION_TILE_ROWS_SMALL as usize {
        return refuse(format!("{} query heads share {} KV heads: too many", spec.heads, spec.kv_heads));
    }
    if !spec.hidden_size.is_multiple_of(8) || spec.hidden_size > kernels::LAYER_HIDDEN_MAX as usize {
        return refuse(format!(
            "hidden_size {}: the CUDA kernels take multiples of 8 up to {}",
            spec.hidden_size,
            kernels::LAYER_HIDDEN_MAX
        ));
    }
    if !spec.intermediate_size.is_multiple_of(8) || !spec.vocab_size.is_multiple_of(4) {
        return refuse(format!(
            "intermediate_size {} and vocab_size {}: the CUDA kernels take multiples of 8 and of 4",
            spec.intermediate_size, spec.vocab_size
        ));
    }
    Ok(())
}
