//! The launches of one transformer layer. A step of many rows launches each operation as a
//! kernel of its own; for few rows the products do the row-wise work around them
//! (csrc/skinny_gemm.h), which saves launches and passes over memory.

use std::ptr;

use super::pass::Pass;
use super::products::LayerProducts;
use crate::executor::cuda::buffer::DeviceBuffer;
use crate::executor::cuda::error::{CudaError, check_launch};
use crate::executor::cuda::ffi::kernels::{self, AttentionParams, QkvParams, RmsNormParams, SwigluParams};
use crate::executor::cuda::linear::Linear;
use crate::executor::cuda::product::{DeferredScale, Epilogue, Input, Product};
use crate::executor::cuda::scratch::qkv_width;
use crate::executor::cuda::weights::DeviceLayer;

/// Who multiplies by the scale of an RMSNorm, one over the root mean square of a row.
#[derive(Clone, Copy)]
enum NormScale {
    /// The norm itself.
    Applied,
    /// The reader of the product that follows. A fused product can't do otherwise, and unfused
    /// ones follow it, so that both round at the same points.
    Deferred,
}

impl NormScale {
    /// Of the norm before attention. Before the first layer no product has summed squares.
    fn before(layer: usize) -> NormScale {
        if layer == 0 { NormScale::Applied } else { NormScale::Deferred }
    }
}

impl<'a> Pass<'a> {
    /// Enqueues a layer.
    ///
    /// # Errors
    /// When a launch fails.
    pub fn layer(&mut self, index: usize) -> Result<(), CudaError> {
        if self.fused { self.fused_layer(index) } else { self.unfused_layer(index) }
    }

    /// Norms, activation and residual additions are kernels of their own.
    fn unfused_layer(&mut self, index: usize) -> Result<(), CudaError> {
        let layer = self.layer_weights(index);
        let products = self.products(layer);
        self.norm(&layer.attention_norm, index > 0, NormScale::before(index))?;
        self.take_states(index)?;
        self.multiply(products.qkv)?;
        self.rotate(index)?;
        self.attend(index)?;
        self.after_attention(index, self.scratch.attended.ptr())
    }

    /// The output and down projections add to the residual stream and do the work of the next
    /// norm except for its scale, by which the next product multiplies. The first layer's input
    /// comes from the norm kernel.
    fn fused_layer(&mut self, index: usize) -> Result<(), CudaError> {
        self.take_states(index)?;
        let products = self.products(self.layer_weights(index));
        self.fused_qkv(index, products.qkv)?;
        self.attend(index)?;
        self.after_attention(index, self.scratch.attended.ptr())
    }

    /// Enqueues what follows the attention of a layer, whose result `attended` points to,
    /// `[rows][heads * head_dim]`. The last layer's addition is left to the norm behind it unless the
    /// pass is fused.
    ///
    /// # Errors
    /// When a launch fails.
    pub fn after_attention(&mut self, index: usize, attended: *const u16) -> Result<(), CudaError> {
        let layer = self.layer_weights(index);
        let LayerProducts { mut output, gate_up, down, .. } = self.products(layer);
        output.input.x = attended;
        if self.fused {
            self.fused_residual(output, &layer.mlp_norm)?;
            self.fused_swiglu(gate_up)?;
            // After the last layer the weighted result is not read, only the residual stream.
            let next = self.weights.layers.get(index + 1);
            let norm = next.map_or(&self.weights.final_norm, |layer| &layer.attention_norm);
            return self.fused_residual(down, norm);
        }
        self.multiply(output)?;
        self.sum_over_ranks()?;
        self.norm(&layer.mlp_norm, true, NormScale::Deferred)?;
        self.multiply(gate_up)?;
        self.activate()?;
        self.multiply(down)?;
        self.sum_over_ranks()
    }

    /// Enqueues queries, keys and values of a layer from `input`, `[rows][inputs of the projection]`,
    /// normed. For a first layer only: no scale is applied.
    ///
    /// # Errors
    /// When a launch fails.
    pub fn project_from(&mut self, index: usize, input: *const u16) -> Result<(), CudaError> {
        let layer = self.layer_weights(index);
        let mut qkv = self.products(layer).qkv;
        qkv.input.x = input;
        if !self.fused || layer.query_norm.is_some() || layer.key_norm.is_some() {
            self.multiply(qkv)?;
            return self.rotate(index);
        }
        let epilogue = Epilogue::Qkv { rotation: self.rotation(index), scale: None };
        self.multiply(Product { epilogue, ..qkv })
    }

    /// Enqueues keys and values alone from `input`, normed hidden states of the first rows of the step
    /// from `first_row` on; `linear` has the last rows of the fused projection.
    ///
    /// # Errors
    /// When a launch fails.
    pub fn write_keys_and_values(
        &mut self,
        index: usize,
        linear: &Linear,
        input: *const u16,
        first_row: usize,
        rows: usize,
    ) -> Result<(), CudaError> {
        let input = Input { x: input, rows };
        let epilogue = Epilogue::StoreBf16(self.scratch.qkv.mut_ptr());
        self.multiply(Product { linear, input, epilogue })?;
        let queries = self.spec.heads * self.spec.head_dim;
        let all = self.rotation(index);
        let params = QkvParams {
            scales: ptr::null(),
            bias: if all.bias.is_null() { all.bias } else { all.bias.wrapping_add(queries) },
            q_norm: ptr::null(),
            positions: all.positions.wrapping_add(first_row),
            slots: all.slots.wrapping_add(first_row),
            rows: rows as i32,
            heads: 0,
            ..all
        };
        // SAFETY: positions and slots lie within the rotation table and the pool (see `Pass`), and
        // `qkv` has room for fewer heads than those of a layer.
        check_launch(unsafe { kernels::specserve_qkv(&params, self.stream.raw()) }, "qkv")
    }

    /// Takes the stream that enters a layer, if a draft head reads it. The stream is complete: by a
    /// fused layer, or by the layer's own norm.
    fn take_states(&mut self, index: usize) -> Result<(), CudaError> {
        let Some(rows) = &mut self.hidden_rows else { return Ok(()) };
        let (residual, sizes) = (self.scratch.residual.ptr(), self.sizes);
        // SAFETY: the residual stream has `rows` rows, and `states` names rows of the buffer (see
        // `Pass`).
        unsafe { rows.take(index, residual, sizes.rows, self.step.states, self.stream) }
    }

    /// Queries, keys and values with bias and rotation. Where heads have norms of their own,
    /// norm, product and rotation are three kernels.
    fn fused_qkv(&mut self, index: usize, qkv: Product<'_>) -> Result<(), CudaError> {
        let layer = self.layer_weights(index);
        let head_norms = layer.query_norm.is_some() || layer.key_norm.is_some();
        if index == 0 || head_norms {
            self.norm(&layer.attention_norm, false, NormScale::before(index))?;
        }
        if head_norms {
            self.multiply(qkv)?;
            return self.rotate(index);
        }
        let scale = (index > 0).then(|| self.deferred_scale());
        let epilogue = Epilogue::Qkv { rotation: self.rotation(index), scale };
        self.multiply(Product { epilogue, ..qkv })
    }

    /// Adds a product to the residual stream; leaves its sums of squares, and `normed` weighted
    /// by the next norm.
    fn fused_residual(&mut self, product: Product<'_>, norm: &DeviceBuffer<u16>) -> Result<(), CudaError> {
        let epilogue = Epilogue::Residual {
            residual: self.scratch.residual.mut_ptr(),
            norm_weight: norm.ptr(),
            y: self.scratch.normed.mut_ptr(),
            squares: self.scratch.squares.mut_ptr(),
        };
        self.multiply(Product { epilogue, ..product })
    }

    fn fused_swiglu(&mut self, gate_up: Product<'_>) -> Result<(), CudaError> {
        let scale = Some(self.deferred_scale());
        let epilogue = Epilogue::SwiGlu { y: self.scratch.activated.mut_ptr(), scale };
        self.multiply(Product { epilogue, ..gate_up })
    }

    /// The scale that the last [`Epilogue::Residual`] left to the next product.
    fn deferred_scale(&self) -> DeferredScale {
        DeferredScale { squares: self.scratch.squares.ptr(), eps: self.spec.rms_norm_eps }
    }

    fn layer_weights(&self, index: usize) -> &'a DeviceLayer {
        let weights = self.weights;
        &weights.layers[index]
    }

    fn products(&mut self, layer: &'a DeviceLayer) -> LayerProducts<'a> {
        LayerProducts::new(layer, self.scratch, self.sizes.rows)
    }

    fn multiply(&self, product: Product<'_>) -> Result<(), CudaError> {
        // SAFETY: the layer's matrices and scratch memory for `rows` rows of this model (see
        // `Pass`).
        unsafe { product.run(self.gemm, self.stream) }
    }

    /// Completes a block's result in `delta`: a rank's product covers only its own inputs.
    fn sum_over_ranks(&mut self) -> Result<(), CudaError> {
        let count = self.sizes.rows * self.spec.hidden_size;
        self.communicator.all_reduce(&mut self.scratch.delta, count, self.stream)
    }

    /// Normalizes the residual stream into `normed`, after adding to it what the last block
    /// left in `delta`, if `add_delta`.
    fn norm(
        &mut self,
        weight: &DeviceBuffer<u16>,
        add_delta: bool,
        scale: NormScale,
    ) -> Result<(), CudaError> {
        let params = RmsNormParams {
            residual: self.scratch.residual.mut_ptr(),
            delta: if add_delta { self.scratch.delta.ptr() } else { ptr::null() },
            weight: weight.ptr(),
            out: self.scratch.normed.mut_ptr(),
            gather: ptr::null(),
            scales: match scale {
                NormScale::Applied => ptr::null_mut(),
                NormScale::Deferred => self.scratch.scales.mut_ptr(),
            },
            eps: self.spec.rms_norm_eps,
            rows: self.sizes.rows as i32,
            hidden: self.spec.hidden_size as i32,
        };
        // SAFETY: scratch memory of `rows` rows and a norm of this model (see `Pass`).
        check_launch(unsafe { kernels::specserve_rmsnorm(&params, self.stream.raw()) }, "rmsnorm")
    }

    /// How a layer's queries, keys and values are finished.
    fn rotation(&mut self, index: usize) -> QkvParams {
        let layer = self.layer_weights(index);
        let optional =
            |buffer: &Option<DeviceBuffer<u16>>| buffer.as_ref().map_or(ptr::null(), DeviceBuffer::ptr);
        QkvParams {
            scales: match NormScale::before(index) {
                NormScale::Applied => ptr::null(),
                NormScale::Deferred => self.scratch.scales.ptr(),
            },
            qkv: self.scratch.qkv.mut_ptr(),
            bias: optional(&layer.qkv_bias),
            q_norm: optional(&layer.query_norm),
            k_norm: optional(&layer.key_norm),
            rotations: self.rotations.ptr(),
            positions: self.step.positions,
            slots: self.step.slots,
            kv: self.layer_kv(index),
            eps: self.spec.rms_norm_eps,
            rows: self.sizes.rows as i32,
            heads: self.spec.heads as i32,
            kv_heads: self.spec.kv_heads as i32,
            head_dim: self.spec.head_dim as i32,
        }
    }

    fn rotate(&mut self, index: usize) -> Result<(), CudaError> {
        let params = self.rotation(index);
        // SAFETY: positions and slots lie within the rotation table and the pool (see `Pass`).
        check_launch(unsafe { kernels::specserve_qkv(&params, self.stream.raw()) }, "qkv")
    }

    /// This layer's part of the KV pool.
    fn layer_kv(&mut self, index: usize) -> *mut u16 {
        let layer_elements = self.kv.len() / self.spec.layers;
        self.kv.mut_ptr().wrapping_add(index * layer_elements)
    }

    /// Enqueues the attention of a layer.
    ///
    /// # Errors
    /// When a launch fails.
    pub fn attend(&mut self, index: usize) -> Result<(), CudaError> {
        let params = self.attention(index);
        let (sizes, raw) = (self.sizes, self.stream.raw());
        let large = i32::from(sizes.large);
        if sizes.decode {
            let ctas = self.ctas[large as usize];
            // SAFETY: items, masks and tables are the plan's for this step, and partial results
            // have room for its rows (see `Pass`).
            let status = unsafe { kernels::specserve_attention_decode(&params, large, ctas, 0, raw) };
            check_launch(status, "attention_decode")?;
            // SAFETY: as above.
            let status = unsafe { kernels::specserve_attention_merge(&params, large, raw) };
            check_launch(status, "attention_merge")?;
        }
        if sizes.prefill_items > 0 {
            let params = AttentionParams { items: self.step.prefill_items, ..params };
            let items = sizes.prefill_items as i32;
            // SAFETY: as above.
            let status = unsafe { kernels::specserve_attention_prefill(&params, items, raw) };
            check_launch(status, "attention_prefill")?;
        }
        Ok(())
    }

    fn attention(&mut self, index: usize) -> AttentionParams {
        AttentionParams {
            q: self.scratch.qkv.ptr(),
            out: self.scratch.attended.mut_ptr(),
            kv: self.layer_kv(index),
            segments: ptr::null(),
            items: self.step.items,
            item_count: self.step.item_count,
            merges: self.step.merges,
            masks: self.step.masks,
            tables: self.step.tables,
            partial_out: self.scratch.partial_out.mut_ptr(),
            partial_stats: self.scratch.partial_stats.mut_ptr(),
            q_stride: qkv_width(self.spec) as i64,
            scale: 1.0 / (self.spec.head_dim as f32).sqrt(),
            heads: self.spec.heads as i32,
            kv_heads: self.spec.kv_heads as i32,
            head_dim: self.spec.head_dim as i32,
        }
    }

    fn activate(&mut self) -> Result<(), CudaError> {
        let params = SwigluParams {
            scales: self.scratch.scales.ptr(),
            gate_up: self.scratch.gate_up.ptr(),
            out: self.scratch.activated.mut_ptr(),
            rows: self.sizes.rows as i32,
            width: self.spec.intermediate_size as i32,
        };
        // SAFETY: scratch memory of `rows` rows (see `Pass`).
        check_launch(unsafe { kernels::specserve_swiglu(&params, self.stream.raw()) }, "swiglu")
    }
}
