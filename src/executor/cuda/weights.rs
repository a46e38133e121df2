//! A rank's part of a model's weights on the device: projections that share an input are stacked
//! into one matrix. Uploads go through double-buffered page-locked memory.

use std::sync::Arc;
use std::thread;

use super::buffer::{DeviceBuffer, PinnedBuffer};
use super::error::CudaError;
use super::linear::Linear;
use super::product::{fuses, fuses_swiglu};
use super::scratch::qkv_width;
use super::shard::Shard;
use super::stream::{Event, Stream};
use super::tensor_part::TensorPart;
use crate::model::{LayerTensor, LayerWeights, LoadedModel, ModelSpec, Projection, Tensor};
use crate::protocol::ExecutorError;

/// Numbers in one of the two staging buffers.
const STAGING_NUMBERS: usize = 16 << 20;
/// Most threads that fill a staging buffer: one alone copies out of a mapped file more slowly than
/// the bus.
const COPY_THREADS_MAX: usize = 8;

/// One rank's weights of a model in device memory. Vectors and the embedding are bf16; matrices carry
/// their format and shape `[outputs][inputs]`.
pub struct DeviceWeights {
    /// `[vocab][hidden]`.
    pub embedding: Arc<DeviceBuffer<u16>>,
    /// `[vocab / world][hidden]`; shares the storage of the embedding when tied.
    pub head: Linear,
    /// `[hidden]`.
    pub final_norm: DeviceBuffer<u16>,
    /// The layers in order.
    pub layers: Vec<DeviceLayer>,
    /// Device memory that was allocated for these weights, in bytes: shared storage counts once, where
    /// it was uploaded.
    pub bytes: usize,
}

/// One layer's weights. `heads`, `kv_heads` and `intermediate` are the rank's.
pub struct DeviceLayer {
    /// `[hidden]`.
    pub attention_norm: DeviceBuffer<u16>,
    /// Queries, keys, values: `[(heads + 2 kv_heads) * head_dim][hidden]`.
    pub qkv: Linear,
    /// `[(heads + 2 kv_heads) * head_dim]`.
    pub qkv_bias: Option<DeviceBuffer<u16>>,
    /// `[head_dim]`.
    pub query_norm: Option<DeviceBuffer<u16>>,
    /// `[head_dim]`.
    pub key_norm: Option<DeviceBuffer<u16>>,
    /// `[hidden][heads * head_dim]`.
    pub output: Linear,
    /// `[hidden]`.
    pub mlp_norm: DeviceBuffer<u16>,
    /// Gate, then up: `[2 * intermediate][hidden]`.
    pub gate_up: Linear,
    /// `[hidden][intermediate]`.
    pub down: Linear,
}

impl DeviceLayer {
    /// Whether the products of `rows` rows can do the row-wise work around them, all of it.
    pub fn fuses(&self, rows: usize) -> bool {
        fuses(&self.qkv, rows)
            && fuses(&self.output, rows)
            && fuses_swiglu(&self.gate_up, rows)
            && fuses(&self.down, rows)
    }

    /// Whether the matrices of two layers have the same shapes.
    pub fn has_shapes_of(&self, other: &DeviceLayer) -> bool {
        let shapes = |layer: &DeviceLayer| {
            [&layer.qkv, &layer.output, &layer.gate_up, &layer.down]
                .map(|linear| (linear.outputs(), linear.inputs()))
        };
        shapes(self) == shapes(other)
    }
}

impl DeviceWeights {
    /// Copies this rank's part of a model to the device; returns when everything is there.
    ///
    /// # Errors
    /// [`ExecutorError::Malformed`] for a model with biases that no kernel adds, or that can't be
    /// split evenly; [`ExecutorError::Device`] when memory runs out or the device fails.
    pub fn upload(
        model: &LoadedModel,
        shard: Shard,
        stream: &Stream,
    ) -> Result<DeviceWeights, ExecutorError> {
        check_biases(&model.weights.layers)?;
        let mut uploader = Uploader::new(shard, stream)?;
        let weights = uploader.model(model)?;
        stream.synchronize()?;
        Ok(weights)
    }
}

/// Bytes of a whole model's matrices on the device.
pub fn weight_bytes(spec: &ModelSpec, tied_head: bool) -> usize {
    let embedding = spec.vocab_size * spec.hidden_size * if tied_head { 1 } else { 2 };
    let layer: usize =
        Projection::ALL.into_iter().map(|projection| projection.shape(spec).iter().product::<usize>()).sum();
    2 * (embedding + spec.layers * layer)
}

/// Checks that layers have no bias that no kernel adds.
pub(super) fn check_biases(layers: &[LayerWeights]) -> Result<(), ExecutorError> {
    let unsupported = |layer: &LayerWeights| {
        layer.tensors().any(|(role, _)| matches!(role, LayerTensor::Bias(projection) if !projection.is_qkv()))
    };
    match layers.iter().position(unsupported) {
        Some(layer) => Err(ExecutorError::Malformed(format!(
            "layer {layer} has a bias outside the query, key and value projections: not supported on CUDA"
        ))),
        None => Ok(()),
    }
}

/// Copies tensors to the device through two staging buffers: one is filled while the other is
/// on the bus.
pub(super) struct Uploader<'a> {
    shard: Shard,
    stream: &'a Stream,
    staging: [PinnedBuffer<u16>; 2],
    on_bus: [Event; 2],
    turn: usize,
    threads: usize,
    /// Bytes of the buffers made so far.
    bytes: usize,
}

impl<'a> Uploader<'a> {
    pub(super) fn new(shard: Shard, stream: &'a Stream) -> Result<Uploader<'a>, CudaError> {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(COPY_THREADS_MAX);
        Ok(Uploader {
            shard,
            stream,
            staging: [PinnedBuffer::zeroed(STAGING_NUMBERS)?, PinnedBuffer::zeroed(STAGING_NUMBERS)?],
            on_bus: [Event::untimed()?, Event::untimed()?],
            turn: 0,
            threads,
            bytes: 0,
        })
    }

    fn model(&mut self, model: &LoadedModel) -> Result<DeviceWeights, ExecutorError> {
        let weights = &model.weights;
        let embedding = Arc::new(self.whole(&weights.embedding)?);
        let rows = self.shard.vocabulary(&model.spec)?;
        let head = if weights.tied_head {
            Linear::rows_of(&embedding, rows.start, rows.len(), model.spec.hidden_size)
        } else {
            self.linear(&[TensorPart::whole(&weights.head).with_rows(rows)])?
        };
        let layers = weights.layers.iter().map(|layer| self.layer(layer, &model.spec));
        let layers = layers.collect::<Result<_, ExecutorError>>()?;
        let final_norm = self.whole(&weights.final_norm)?;
        Ok(DeviceWeights { embedding, head, final_norm, layers, bytes: self.bytes })
    }

    /// Bytes of the device memory that it has allocated so far.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A layer of a model of this shape.
    pub(super) fn layer(
        &mut self,
        layer: &LayerWeights,
        spec: &ModelSpec,
    ) -> Result<DeviceLayer, ExecutorError> {
        use Projection::{Down, Gate, Key, Output, Query, Up, Value};
        let shard = self.shard;
        let weight = |projection: Projection| {
            let tensor = &layer.projection(projection).weight;
            shard.layer_tensor(LayerTensor::Weight(projection), tensor, spec)
        };
        Ok(DeviceLayer {
            attention_norm: self.whole(&layer.attention_norm)?,
            qkv: self.linear(&[weight(Query)?, weight(Key)?, weight(Value)?])?,
            qkv_bias: self.qkv_bias(layer, spec)?,
            query_norm: layer.query_norm.as_ref().map(|norm| self.whole(norm)).transpose()?,
            key_norm: layer.key_norm.as_ref().map(|norm| self.whole(norm)).transpose()?,
            output: self.linear(&[weight(Output)?])?,
            mlp_norm: self.whole(&layer.mlp_norm)?,
            gate_up: self.linear(&[weight(Gate)?, weight(Up)?])?,
            down: self.linear(&[weight(Down)?])?,
        })
    }

    /// The three biases in one vector, zeros where a projection has none.
    fn qkv_bias(
        &mut self,
        layer: &LayerWeights,
        spec: &ModelSpec,
    ) -> Result<Option<DeviceBuffer<u16>>, ExecutorError> {
        if layer.qkv().iter().all(|linear| linear.bias.is_none()) {
            return Ok(None);
        }
        let local = self.shard.spec(spec)?;
        let mut buffer = DeviceBuffer::filled(0, qkv_width(&local), self.stream)?;
        self.bytes += buffer.bytes();
        let mut offset = 0;
        for projection in [Projection::Query, Projection::Key, Projection::Value] {
            if let Some(bias) = &layer.projection(projection).bias {
                let part = self.shard.layer_tensor(LayerTensor::Bias(projection), bias, spec)?;
                self.copy(&part, &mut buffer, offset)?;
            }
            offset += projection.shape(&local)[0];
        }
        Ok(Some(buffer))
    }

    /// One matrix from the rows of several that have the same inputs.
    pub(super) fn linear(&mut self, parts: &[TensorPart<'_>]) -> Result<Linear, CudaError> {
        let outputs = parts.iter().map(TensorPart::rows).sum();
        Ok(Linear::bf16(self.stacked(parts)?, outputs, parts[0].columns()))
    }

    /// A tensor that every rank holds.
    pub(super) fn whole(&mut self, tensor: &Tensor) -> Result<DeviceBuffer<u16>, CudaError> {
        self.stacked(&[TensorPart::whole(tensor)])
    }

    /// Parts of tensors in one buffer, one after the other.
    pub(super) fn stacked(&mut self, parts: &[TensorPart<'_>]) -> Result<DeviceBuffer<u16>, CudaError> {
        let total = parts.iter().map(TensorPart::elements).sum();
        let mut buffer = DeviceBuffer::uninitialized(total)?;
        self.bytes += buffer.bytes();
        let mut offset = 0;
        for part in parts {
            self.copy(part, &mut buffer, offset)?;
            offset += part.elements();
        }
        Ok(buffer)
    }

    fn copy(
        &mut self,
        from: &TensorPart<'_>,
        to: &mut DeviceBuffer<u16>,
        offset: usize,
    ) -> Result<(), CudaError> {
        let total = from.elements();
        for first in (0..total).step_by(STAGING_NUMBERS) {
            let turn = self.turn;
            self.turn = 1 - turn;
            self.on_bus[turn].synchronize()?;
            let staged = &mut self.staging[turn][..STAGING_NUMBERS.min(total - first)];
            from.read(first, staged, self.threads);
            // SAFETY: this buffer is not written again before `on_bus` has passed, and both
            // live until the stream is synchronised at the end of the upload.
            unsafe { to.upload_async(offset + first, staged, self.stream)? };
            self.on_bus[turn].record(self.stream)?;
        }
        Ok(())
    }
}

impl Drop for Uploader<'_> {
    fn drop(&mut self) {
        // After an error, copies may still read the staging buffers. Should the wait fail,
        // the context is lost and nothing reads them any more.
        let _ = self.stream.synchronize();
    }
}
