//! One model on the device and its forward pass: which kernels are launched, in which order.

mod hidden_rows;
mod layer;
mod pass;
mod products;
mod step;

use super::attention_plan::AttentionRoom;
use super::buffer::DeviceBuffer;
use super::communicator::{Communicator, Solo};
use super::error::{CudaError, check_launch};
use super::ffi::kernels;
use super::gemm::Gemm;
use super::scratch::{Scratch, ScratchSizes};
use super::shard::Shard;
use super::stream::Stream;
use super::weights::DeviceWeights;
use crate::model::{LoadedModel, ModelSpec};
use crate::protocol::ExecutorError;

use products::{LayerProducts, head_product};

pub use hidden_rows::HiddenRows;
pub use pass::Pass;
pub use step::{StepAddresses, StepSizes};

/// One rank's part of a model on its device: weights, rotation table and scratch memory; the KV
/// pool is allocated once the size of the remaining memory is known.
pub struct DeviceModel {
    spec: ModelSpec,
    communicator: Box<dyn Communicator>,
    weights: DeviceWeights,
    rotations: DeviceBuffer<f32>,
    room: AttentionRoom,
    scratch: Scratch,
    kv: DeviceBuffer<u16>,
    blocks: u32,
    ctas: [i32; 2],
    /// The hidden states that a draft head reads.
    pub hidden_rows: Option<HiddenRows>,
}

impl DeviceModel {
    /// Uploads a model to one GPU and allocates its scratch memory.
    ///
    /// # Errors
    /// As [`for_rank`](Self::for_rank).
    pub fn new(
        model: &LoadedModel,
        sizes: ScratchSizes,
        stream: &Stream,
    ) -> Result<DeviceModel, ExecutorError> {
        DeviceModel::for_rank(model, sizes, Box::new(Solo), stream)
    }

    /// Uploads one rank's part of a model and allocates its scratch memory.
    ///
    /// # Errors
    /// [`ExecutorError::Malformed`] for a model that the kernels cannot run or that can't be split
    /// evenly among the ranks, [`ExecutorError::Device`] when memory runs out.
    pub fn for_rank(
        model: &LoadedModel,
        sizes: ScratchSizes,
        communicator: Box<dyn Communicator>,
        stream: &Stream,
    ) -> Result<DeviceModel, ExecutorError> {
        let shard = Shard::new(communicator.rank(), communicator.world())?;
        let spec = shard.spec(&model.spec)?;
        let weights = DeviceWeights::upload(model, shard, stream)?;
        DeviceModel::of_weights(spec, weights, sizes, communicator, stream)
    }

    /// A model of this rank's weights, which are those of the shape `spec`, with scratch memory.
    ///
    /// # Errors
    /// [`ExecutorError::Malformed`] for a shape that the kernels cannot run,
    /// [`ExecutorError::Device`] when memory runs out.
    pub fn of_weights(
        spec: ModelSpec,
        weights: DeviceWeights,
        sizes: ScratchSizes,
        communicator: Box<dyn Communicator>,
        stream: &Stream,
    ) -> Result<DeviceModel, ExecutorError> {
        check_spec(&spec)?;
        let room =
            AttentionRoom::for_rows(spec.heads, spec.kv_heads, sizes.masked_rows, spec.context_tokens_max);
        let rotations = DeviceBuffer::from_slice(&rotations(&spec), stream)?;
        let scratch = Scratch::new(&spec, sizes, room, stream)?;
        let ctas = [decode_ctas(&spec, false)?, decode_ctas(&spec, true)?];
        let kv = DeviceBuffer::uninitialized(0)?;
        Ok(DeviceModel {
            spec,
            communicator,
            weights,
            rotations,
            room,
            scratch,
            kv,
            blocks: 0,
            ctas,
            hidden_rows: None,
        })
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

    /// Shape of this rank's part: heads, KV heads and MLP columns are its own, the rest is the
    /// model's.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Heads and capacity for partial results, for the attention plan.
    pub fn room(&self) -> AttentionRoom {
        self.room
    }

    /// Device memory of the weights, in bytes.
    pub fn weight_bytes(&self) -> usize {
        self.weights.bytes
    }

    /// Device memory of the KV pool, in bytes.
    pub fn kv_bytes(&self) -> usize {
        self.kv.bytes()
    }

    /// Blocks in the KV pool.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Start of the KV pool.
    pub fn kv_address(&mut self) -> *mut u16 {
        self.kv.mut_ptr()
    }

    /// Elements of the KV pool per layer.
    pub fn kv_layer_elements(&self) -> usize {
        self.blocks as usize * kv_block_elements(&self.spec) / self.spec.layers
    }

    /// Its weights and its scratch memory.
    pub fn parts(&mut self) -> (&DeviceWeights, &mut Scratch) {
        (&self.weights, &mut self.scratch)
    }

    /// Logits of the last pass, `[logit rows][vocab]`.
    pub fn logits(&mut self) -> &mut DeviceBuffer<f32> {
        &mut self.scratch.logits
    }

    /// Makes the products of a step ready: chooses their algorithms, by timing them if `tune`.
    ///
    /// # Errors
    /// When cuBLASLt has none, or the device failed.
    pub fn prepare(
        &mut self,
        sizes: StepSizes,
        tune: bool,
        gemm: &mut Gemm,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        self.check_rows(sizes);
        let layers = &self.weights.layers;
        for (index, layer) in layers.iter().enumerate() {
            // Algorithms are chosen per shape, and layers usually share theirs.
            if index > 0 && layer.has_shapes_of(&layers[index - 1]) {
                continue;
            }
            for product in LayerProducts::new(layer, &mut self.scratch, sizes.rows).all() {
                // SAFETY: weights and scratch memory of this model, whose rows were checked above.
                unsafe { product.choose(tune, gemm, stream)? };
            }
        }
        if sizes.logit_rows > 0 {
            let product = head_product(&self.weights, &mut self.scratch, sizes.logit_rows);
            // SAFETY: weights and scratch memory of this model, whose rows were checked above.
            unsafe { product.choose(tune, gemm, stream)? };
        }
        Ok(())
    }

    /// Whether the products of all layers do the row-wise work around them. Not with several
    /// ranks: a rank's product is a partial sum, so it must be summed over the ranks before it is
    /// added to the residual stream and normalized. Otherwise the padded number of rows alone
    /// decides, so that a captured size always computes the same way.
    fn is_fused(&self, rows: usize) -> bool {
        self.communicator.world() == 1 && self.weights.layers.iter().all(|layer| layer.fuses(rows))
    }

    /// # Panics
    /// When a step is larger than the scratch memory.
    fn check_rows(&self, sizes: StepSizes) {
        let residual = sizes.rows * self.spec.hidden_size;
        let logits = sizes.logit_rows * self.spec.vocab_size;
        assert!(
            residual <= self.scratch.residual.len() && logits <= self.scratch.logits.len(),
            "step larger than scratch"
        );
    }

    /// Enqueues a forward pass: fills the cache and leaves logits in [`logits`](Self::logits).
    ///
    /// # Errors
    /// When a launch fails.
    ///
    /// # Panics
    /// When the step is larger than the scratch memory.
    ///
    /// # Safety
    /// `step` points to device memory that holds a step of these sizes, as the plan lays it
    /// out: its positions are below the context's length, its slots and tables name blocks of
    /// this pool. The memory, this model and `gemm` stay alive until the stream has passed the
    /// launches, and no other stream uses the latter two meanwhile.
    pub unsafe fn run(
        &mut self,
        step: &StepAddresses,
        sizes: StepSizes,
        gemm: &Gemm,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let layers = self.spec.layers;
        // SAFETY: our caller's contract.
        let mut pass = unsafe { self.pass(step, sizes, gemm, stream) };
        pass.embed()?;
        for index in 0..layers {
            pass.layer(index)?;
        }
        if sizes.logit_rows > 0 {
            pass.head()?;
        }
        Ok(())
    }

    /// A forward pass whose launches the caller enqueues.
    ///
    /// # Panics
    /// When the step is larger than the scratch memory.
    ///
    /// # Safety
    /// As [`run`](Self::run).
    pub unsafe fn pass<'a>(
        &'a mut self,
        step: &'a StepAddresses,
        sizes: StepSizes,
        gemm: &'a Gemm,
        stream: &'a Stream,
    ) -> Pass<'a> {
        self.check_rows(sizes);
        let fused = self.is_fused(sizes.rows);
        // What `Pass` asks for: weights, rotations, pool and scratch memory are of one model and
        // the sizes were checked; the rest is our caller's contract.
        Pass {
            spec: &self.spec,
            weights: &self.weights,
            rotations: &self.rotations,
            scratch: &mut self.scratch,
            kv: &mut self.kv,
            communicator: self.communicator.as_ref(),
            ctas: self.ctas,
            step,
            sizes,
            gemm,
            stream,
            fused,
            hidden_rows: self.hidden_rows.as_mut(),
        }
    }
}

/// Elements of one KV block over all layers.
pub fn kv_block_elements(spec: &ModelSpec) -> usize {
    let tokens = crate::protocol::BLOCK_TOKENS as usize;
    spec.layers * 2 * spec.kv_heads * spec.head_dim * tokens
}

/// Cosine and sine of every position and rotary pair, `[positions][head_dim / 2][2]`.
fn rotations(spec: &ModelSpec) -> Vec<f32> {
    let frequencies = spec.rope.inverse_frequencies(spec.head_dim);
    let angles = |position: usize| frequencies.iter().map(move |frequency| position as f64 * frequency);
    (0..spec.context_tokens_max)
        .flat_map(|position| angles(position).flat_map(|angle| [angle.cos() as f32, angle.sin() as f32]))
        .collect()
}

fn decode_ctas(spec: &ModelSpec, large: bool) -> Result<i32, CudaError> {
    // SAFETY: only queries the current device.
    match unsafe { kernels::specserve_attention_decode_ctas(spec.head_dim as i32, i32::from(large), 0) } {
        count if count > 0 => Ok(count),
        status => Err(check_launch(-status, "attention_decode").err().unwrap_or_else(|| CudaError::Call {
            what: "attention_decode",
            code: 0,
            detail: "the kernel does not fit this GPU".to_owned(),
        })),
    }
}

/// Checks that the kernels can run a model of this shape.
fn check_spec(spec: &ModelSpec) -> Result<(), ExecutorError> {
    let refuse = |what: String| Err(ExecutorError::Malformed(what));
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
