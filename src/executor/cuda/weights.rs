//! A model's weights on the device: bf16, projections that share an input fused into one
//! matrix, uploaded through double-buffered page-locked memory.

use std::sync::Arc;
use std::thread;

use half::{bf16, f16};

use super::buffer::{DeviceBuffer, PinnedBuffer};
use super::error::CudaError;
use super::linear::Linear;
use super::product::{fuses, fuses_swiglu};
use super::stream::{Event, Stream};
use crate::model::{Dtype, LayerTensor, LayerWeights, LoadedModel, ModelSpec, Projection, Tensor};
use crate::protocol::ExecutorError;

/// Numbers in one of the two staging buffers.
const STAGING_NUMBERS: usize = 16 << 20;
/// Most threads that fill a staging buffer: copying out of a mapped file takes several to
/// outrun the bus.
const COPY_THREADS_MAX: usize = 8;
/// Fewest numbers that are worth a thread.
const THREAD_NUMBERS_MIN: usize = 256 << 10;

/// Weights of one model in device memory. Vectors and the embedding are bf16; matrices carry
/// their format and shape `[outputs][inputs]`.
pub struct DeviceWeights {
    /// `[vocab][hidden]`.
    pub embedding: Arc<DeviceBuffer<u16>>,
    /// `[vocab][hidden]`; shares the storage of the embedding when tied.
    pub head: Linear,
    /// `[hidden]`.
    pub final_norm: DeviceBuffer<u16>,
    /// The layers in order.
    pub layers: Vec<DeviceLayer>,
}

/// One layer's weights.
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
    /// Copies a model to the device; returns when everything is there.
    ///
    /// # Errors
    /// [`ExecutorError::Malformed`] for a model with biases that no kernel adds;
    /// [`ExecutorError::Device`] when memory runs out or the device fails.
    pub fn upload(model: &LoadedModel, stream: &Stream) -> Result<DeviceWeights, ExecutorError> {
        check_biases(model)?;
        let mut uploader = Uploader::new(stream)?;
        let weights = uploader.model(model)?;
        stream.synchronize()?;
        Ok(weights)
    }
}

/// Bytes of a model's weights on the device.
pub fn weight_bytes(spec: &ModelSpec, tied_head: bool) -> usize {
    let embedding = spec.vocab_size * spec.hidden_size * if tied_head { 1 } else { 2 };
    let layer: usize =
        Projection::ALL.into_iter().map(|projection| projection.shape(spec).iter().product::<usize>()).sum();
    2 * (embedding + spec.layers * layer)
}

fn check_biases(model: &LoadedModel) -> Result<(), ExecutorError> {
    let unsupported = |layer: &LayerWeights| {
        layer.tensors().any(|(role, _)| matches!(role, LayerTensor::Bias(projection) if !projection.is_qkv()))
    };
    match model.weights.layers.iter().position(unsupported) {
        Some(layer) => Err(ExecutorError::Malformed(format!(
            "layer {layer} has a bias outside the query, key and value projections: not supported on CUDA"
        ))),
        None => Ok(()),
    }
}

/// Two staging buffers: one is filled while the other is on the bus.
struct Uploader<'a> {
    stream: &'a Stream,
    staging: [PinnedBuffer<u16>; 2],
    on_bus: [Event; 2],
    turn: usize,
    threads: usize,
}

impl<'a> Uploader<'a> {
    fn new(stream: &'a Stream) -> Result<Uploader<'a>, CudaError> {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(COPY_THREADS_MAX);
        Ok(Uploader {
            stream,
            staging: [PinnedBuffer::zeroed(STAGING_NUMBERS)?, PinnedBuffer::zeroed(STAGING_NUMBERS)?],
            on_bus: [Event::untimed()?, Event::untimed()?],
            turn: 0,
            threads,
        })
    }

    fn model(&mut self, model: &LoadedModel) -> Result<DeviceWeights, CudaError> {
        let weights = &model.weights;
        let (vocab, hidden) = (model.spec.vocab_size, model.spec.hidden_size);
        let embedding = Arc::new(self.stacked(&[&weights.embedding])?);
        let head = if weights.tied_head {
            Linear::rows_of(&embedding, 0, vocab, hidden)
        } else {
            self.linear(&[&weights.head])?
        };
        Ok(DeviceWeights {
            embedding,
            head,
            final_norm: self.stacked(&[&weights.final_norm])?,
            layers: weights
                .layers
                .iter()
                .map(|layer| self.layer(layer, &model.spec))
                .collect::<Result<_, CudaError>>()?,
        })
    }

    fn layer(&mut self, layer: &LayerWeights, spec: &ModelSpec) -> Result<DeviceLayer, CudaError> {
        Ok(DeviceLayer {
            attention_norm: self.stacked(&[&layer.attention_norm])?,
            qkv: self.linear(&layer.qkv().map(|linear| &linear.weight))?,
            qkv_bias: self.qkv_bias(layer, spec)?,
            query_norm: self.optional(layer.query_norm.as_ref())?,
            key_norm: self.optional(layer.key_norm.as_ref())?,
            output: self.linear(&[&layer.output.weight])?,
            mlp_norm: self.stacked(&[&layer.mlp_norm])?,
            gate_up: self.linear(&layer.gate_up().map(|linear| &linear.weight))?,
            down: self.linear(&[&layer.down.weight])?,
        })
    }

    fn optional(&mut self, tensor: Option<&Tensor>) -> Result<Option<DeviceBuffer<u16>>, CudaError> {
        tensor.map(|tensor| self.stacked(&[tensor])).transpose()
    }

    /// The three biases in one vector, zeros where a projection has none.
    fn qkv_bias(
        &mut self,
        layer: &LayerWeights,
        spec: &ModelSpec,
    ) -> Result<Option<DeviceBuffer<u16>>, CudaError> {
        let parts = layer.qkv();
        if parts.iter().all(|linear| linear.bias.is_none()) {
            return Ok(None);
        }
        let width = (spec.heads + 2 * spec.kv_heads) * spec.head_dim;
        let mut buffer = DeviceBuffer::filled(0, width, self.stream)?;
        let mut offset = 0;
        for linear in parts {
            if let Some(bias) = &linear.bias {
                self.copy(bias, &mut buffer, offset)?;
            }
            offset += linear.weight.shape[0];
        }
        Ok(Some(buffer))
    }

    /// One matrix from the rows of several that have the same inputs.
    fn linear(&mut self, tensors: &[&Tensor]) -> Result<Linear, CudaError> {
        let outputs = tensors.iter().map(|tensor| tensor.shape[0]).sum();
        Ok(Linear::bf16(self.stacked(tensors)?, outputs, tensors[0].shape[1]))
    }

    /// Tensors in one buffer, one after the other.
    fn stacked(&mut self, tensors: &[&Tensor]) -> Result<DeviceBuffer<u16>, CudaError> {
        let total = tensors.iter().map(|tensor| tensor.elements()).sum();
        let mut buffer = DeviceBuffer::uninitialized(total)?;
        let mut offset = 0;
        for tensor in tensors {
            self.copy(tensor, &mut buffer, offset)?;
            offset += tensor.elements();
        }
        Ok(buffer)
    }

    fn copy(&mut self, from: &Tensor, to: &mut DeviceBuffer<u16>, offset: usize) -> Result<(), CudaError> {
        let width = from.dtype.bytes();
        for (index, bytes) in from.bytes().chunks(STAGING_NUMBERS * width).enumerate() {
            let turn = self.turn;
            self.turn = 1 - turn;
            self.on_bus[turn].synchronize()?;
            let numbers = bytes.len() / width;
            let staged = &mut self.staging[turn][..numbers];
            convert(from.dtype, bytes, staged, self.threads);
            // SAFETY: this buffer is not written again before `on_bus` has passed, and both
            // live until the stream is synchronised at the end of the upload.
            unsafe { to.upload_async(offset + index * STAGING_NUMBERS, staged, self.stream)? };
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

/// Little-endian numbers of any format and alignment to bf16, rounded to nearest even.
fn convert(dtype: Dtype, from: &[u8], to: &mut [u16], threads: usize) {
    let per_thread = to.len().div_ceil(threads.max(1)).max(THREAD_NUMBERS_MIN);
    let width = dtype.bytes();
    thread::scope(|scope| {
        let mut parts = to.chunks_mut(per_thread).zip(from.chunks(per_thread * width));
        let own = parts.next();
        for (to, from) in parts {
            scope.spawn(move || convert_part(dtype, from, to));
        }
        if let Some((to, from)) = own {
            convert_part(dtype, from, to);
        }
    });
}

fn convert_part(dtype: Dtype, from: &[u8], to: &mut [u16]) {
    match dtype {
        Dtype::Bf16 => bytemuck::cast_slice_mut::<u16, u8>(to).copy_from_slice(from),
        Dtype::F16 => {
            for (to, from) in to.iter_mut().zip(from.chunks_exact(2)) {
                let value = f16::from_le_bytes([from[0], from[1]]);
                *to = bf16::from_f32(value.to_f32()).to_bits();
            }
        }
        Dtype::F32 => {
            for (to, from) in to.iter_mut().zip(from.chunks_exact(4)) {
                let value = f32::from_le_bytes([from[0], from[1], from[2], from[3]]);
                *to = bf16::from_f32(value).to_bits();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_formats_become_the_same_bf16_at_any_alignment_and_thread_count() {
        let values: Vec<f32> = (0..600_000).map(|i| (i % 251) as f32 * 0.25 - 20.0).collect();
        let want: Vec<u16> = values.iter().map(|&v| bf16::from_f32(v).to_bits()).collect();
        let bytes = |encode: &dyn Fn(f32) -> Vec<u8>| {
            let mut bytes = vec![0xffu8];
            bytes.extend(values.iter().flat_map(|&v| encode(v)));
            bytes
        };
        let bf16_bytes = bytes(&|v| bf16::from_f32(v).to_le_bytes().to_vec());
        let f16_bytes = bytes(&|v| f16::from_f32(v).to_le_bytes().to_vec());
        let f32_bytes = bytes(&|v| v.to_le_bytes().to_vec());
        for threads in [1, 3] {
            for (dtype, bytes) in
                [(Dtype::Bf16, &bf16_bytes), (Dtype::F16, &f16_bytes), (Dtype::F32, &f32_bytes)]
            {
                let mut got = vec![0; values.len()];
                convert(dtype, &bytes[1..], &mut got, threads);
                assert!(got == want, "{dtype:?} with {threads} threads");
            }
        }
    }
}
