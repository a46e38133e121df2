//! What one layer enqueues: kernel by kernel, or, for few rows, with all that needs no other
//! row's numbers done by the products themselves.

use super::{DeviceModel, StepAddresses, StepSizes};
use crate::executor::cuda::buffer::DeviceBuffer;
use crate::executor::cuda::error::{CudaError, check_launch};
use crate::executor::cuda::ffi::kernels::{
    self, AttentionParams, QkvParams, RmsNormParams, SKINNY_QKV, SKINNY_RESIDUAL, SKINNY_SWIGLU, SwigluParams,
};
use crate::executor::cuda::gemm::{Gemm, GemmShape};
use crate::executor::cuda::product::{is_skinny, multiply, multiply_skinny, skinny_params};
use crate::executor::cuda::scratch::qkv_width;
use crate::executor::cuda::stream::Stream;

/// Where a norm's division by the root mean square happens.
#[derive(Clone, Copy)]
enum Scale {
    /// In the norm.
    Here,
    /// Behind the product that follows: what a product of few rows can do, and so what all do, to
    /// round at the same places.
    Behind,
}

impl Scale {
    /// Of the norm before attention: nobody has summed the first layer's squares yet.
    fn before(layer: usize) -> Scale {
        if layer == 0 { Scale::Here } else { Scale::Behind }
    }
}

impl DeviceModel {
    /// Whether the products of a step's layers are all the skinny kernel's. It looks at the
    /// padded number of rows only, as [`is_skinny`] does.
    pub(super) fn is_fused(&self, sizes: StepSizes) -> bool {
        let products = self.layer_products(sizes.rows);
        products.iter().all(|(shape, _)| is_skinny(*shape)) && self.fuses_swiglu(products[2].0)
    }

    /// Whether the MLP's first product also applies its activation.
    fn fuses_swiglu(&self, shape: GemmShape) -> bool {
        is_skinny(GemmShape { outputs: self.spec.intermediate_size, ..shape })
    }

    /// A layer whose norms, activation and residual additions are kernels of their own.
    ///
    /// # Safety
    /// As [`DeviceModel::run`].
    pub(super) unsafe fn layer(
        &mut self,
        index: usize,
        step: &StepAddresses,
        sizes: StepSizes,
        gemm: &Gemm,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let products = self.layer_products(sizes.rows);
        let product = |at: usize, weights: &DeviceBuffer<u16>| {
            let (shape, mut operands) = products[at];
            operands.weights = weights.ptr();
            // SAFETY: see `run`.
            unsafe { multiply(shape, operands, gemm, stream) }
        };
        // SAFETY: see `run`.
        unsafe {
            let norm = self.weights.layers[index].attention_norm.ptr();
            self.norm(norm, index > 0, Scale::before(index), sizes, stream)?;
            product(0, &self.weights.layers[index].qkv)?;
            self.rotate(index, step, sizes, stream)?;
            self.attend(index, step, sizes, stream)?;
            product(1, &self.weights.layers[index].output)?;
            let norm = self.weights.layers[index].mlp_norm.ptr();
            self.norm(norm, true, Scale::Behind, sizes, stream)?;
            product(2, &self.weights.layers[index].gate_up)?;
            self.activate(sizes, stream)?;
            product(3, &self.weights.layers[index].down)
        }
    }

    /// A layer of few rows. The output and down projections add to the residual stream and
    /// leave it ready for the next product but for the norm's scale, by which that product
    /// multiplies; the first layer's input comes from the norm kernel.
    ///
    /// # Safety
    /// As [`DeviceModel::run`].
    pub(super) unsafe fn fused_layer(
        &mut self,
        index: usize,
        step: &StepAddresses,
        sizes: StepSizes,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        // SAFETY: see `run`.
        unsafe {
            self.fused_qkv(index, step, sizes, stream)?;
            self.attend(index, step, sizes, stream)?;
            let layer = &self.weights.layers[index];
            let (weights, norm) = (layer.output.ptr(), layer.mlp_norm.ptr());
            self.fused_residual(1, weights, norm, sizes, stream)?;
            self.fused_mlp(index, sizes, stream)?;
            let weights = self.weights.layers[index].down.ptr();
            // behind the last layer nobody reads what this norm's weight makes
            let next = self.weights.layers.get(index + 1);
            let norm = next.map_or(&self.weights.final_norm, |layer| &layer.attention_norm).ptr();
            self.fused_residual(3, weights, norm, sizes, stream)
        }
    }

    /// Queries, keys and values, with bias and rotation; where heads have norms of their own,
    /// three kernels do it.
    unsafe fn fused_qkv(
        &mut self,
        index: usize,
        step: &StepAddresses,
        sizes: StepSizes,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let (shape, mut operands) = self.layer_products(sizes.rows)[0];
        operands.weights = self.weights.layers[index].qkv.ptr();
        let mut params = skinny_params(shape, operands);
        let rotation = self.rotation(index, step, sizes);
        let heads_have_norms = !rotation.q_norm.is_null() || !rotation.k_norm.is_null();
        if index == 0 || heads_have_norms {
            let norm = self.weights.layers[index].attention_norm.ptr();
            // SAFETY: see `run`.
            unsafe { self.norm(norm, false, Scale::before(index), sizes, stream)? };
        } else {
            params.x_squares = self.scratch.squares.ptr();
            params.x_eps = self.spec.rms_norm_eps;
        }
        if heads_have_norms {
            // SAFETY: see `run`.
            return unsafe {
                multiply_skinny(&params, stream)?;
                self.rotate(index, step, sizes, stream)
            };
        }
        params.kind = SKINNY_QKV as i32;
        params.qkv = rotation;
        // SAFETY: see `run`.
        unsafe { multiply_skinny(&params, stream) }
    }

    /// Adds the layer's product number `product` to the residual stream; leaves its sums of
    /// squares, and `normed` weighted by `norm`.
    unsafe fn fused_residual(
        &mut self,
        product: usize,
        weights: *const u16,
        norm: *const u16,
        sizes: StepSizes,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let (shape, mut operands) = self.layer_products(sizes.rows)[product];
        operands.weights = weights;
        operands.y = self.scratch.normed.mut_ptr().cast();
        let mut params = skinny_params(shape, operands);
        params.kind = SKINNY_RESIDUAL as i32;
        params.residual = self.scratch.residual.mut_ptr();
        params.norm_weight = norm;
        params.y_squares = self.scratch.squares.mut_ptr();
        // SAFETY: see `run`.
        unsafe { multiply_skinny(&params, stream) }
    }

    unsafe fn fused_mlp(&mut self, index: usize, sizes: StepSizes, stream: &Stream) -> Result<(), CudaError> {
        let (shape, mut operands) = self.layer_products(sizes.rows)[2];
        operands.weights = self.weights.layers[index].gate_up.ptr();
        operands.y = self.scratch.activated.mut_ptr().cast();
        let half = GemmShape { outputs: shape.outputs / 2, ..shape };
        let mut params = skinny_params(half, operands);
        params.kind = SKINNY_SWIGLU as i32;
        params.x_squares = self.scratch.squares.ptr();
        params.x_eps = self.spec.rms_norm_eps;
        // SAFETY: see `run`.
        unsafe { multiply_skinny(&params, stream) }
    }

    /// Adds what the last block of the layer made (`delta`), then normalises.
    unsafe fn norm(
        &mut self,
        weight: *const u16,
        add_delta: bool,
        scale: Scale,
        sizes: StepSizes,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let delta = if add_delta { self.scratch.delta.ptr() } else { std::ptr::null() };
        let params = RmsNormParams {
            residual: self.scratch.residual.mut_ptr(),
            delta,
            weight,
            out: self.scratch.normed.mut_ptr(),
            gather: std::ptr::null(),
            scales: match scale {
                Scale::Here => std::ptr::null_mut(),
                Scale::Behind => self.scratch.scales.mut_ptr(),
            },
            eps: self.spec.rms_norm_eps,
            rows: sizes.rows as i32,
            hidden: self.spec.hidden_size as i32,
        };
        // SAFETY: see `run`.
        check_launch(unsafe { kernels::specserve_rmsnorm(&params, stream.raw()) }, "rmsnorm")
    }

    /// What becomes of a layer's queries, keys and values.
    fn rotation(&mut self, index: usize, step: &StepAddresses, sizes: StepSizes) -> QkvParams {
        let kv = self.layer_kv(index);
        let layer = &self.weights.layers[index];
        let pointer =
            |buffer: &Option<DeviceBuffer<u16>>| buffer.as_ref().map_or(std::ptr::null(), DeviceBuffer::ptr);
        QkvParams {
            scales: match Scale::before(index) {
                Scale::Here => std::ptr::null(),
                Scale::Behind => self.scratch.scales.ptr(),
            },
            qkv: self.scratch.qkv.mut_ptr(),
            bias: pointer(&layer.qkv_bias),
            q_norm: pointer(&layer.query_norm),
            k_norm: pointer(&layer.key_norm),
            rotations: self.rotations.ptr(),
            positions: step.positions,
            slots: step.slots,
            kv,
            eps: self.spec.rms_norm_eps,
            rows: sizes.rows as i32,
            heads: self.spec.heads as i32,
            kv_heads: self.spec.kv_heads as i32,
            head_dim: self.spec.head_dim as i32,
        }
    }

    unsafe fn rotate(
        &mut self,
        index: usize,
        step: &StepAddresses,
        sizes: StepSizes,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let params = self.rotation(index, step, sizes);
        // SAFETY: see `run`.
        check_launch(unsafe { kernels::specserve_qkv(&params, stream.raw()) }, "qkv")
    }

    fn layer_kv(&mut self, index: usize) -> *mut u16 {
        let offset = index * self.kv_layer_elements();
        self.kv.mut_ptr().wrapping_add(offset)
    }

    unsafe fn attend(
        &mut self,
        index: usize,
        step: &StepAddresses,
        sizes: StepSizes,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let kv = self.layer_kv(index);
        let params = AttentionParams {
            q: self.scratch.qkv.ptr(),
            out: self.scratch.attended.mut_ptr(),
            kv,
            segments: std::ptr::null(),
            items: step.items,
            item_count: step.item_count,
            merges: step.merges,
            masks: step.masks,
            tables: step.tables,
            partial_out: self.scratch.partial_out.mut_ptr(),
            partial_stats: self.scratch.partial_stats.mut_ptr(),
            q_stride: qkv_width(&self.spec) as i64,
            scale: 1.0 / (self.spec.head_dim as f32).sqrt(),
            heads: self.spec.heads as i32,
            kv_heads: self.spec.kv_heads as i32,
            head_dim: self.spec.head_dim as i32,
        };
        let (large, raw) = (i32::from(sizes.large), stream.raw());
        if sizes.decode {
            // SAFETY: see `run`.
            let status = unsafe {
                kernels::specserve_attention_decode(&params, large, self.ctas[large as usize], 0, raw)
            };
            check_launch(status, "attention_decode")?;
            // SAFETY: see `run`.
            let status = unsafe { kernels::specserve_attention_merge(&params, large, raw) };
            check_launch(status, "attention_merge")?;
        }
        if sizes.prefill_items > 0 {
            let params = AttentionParams { items: step.prefill_items, ..params };
            // SAFETY: see `run`.
            let status =
                unsafe { kernels::specserve_attention_prefill(&params, sizes.prefill_items as i32, raw) };
            check_launch(status, "attention_prefill")?;
        }
        Ok(())
    }

    unsafe fn activate(&mut self, sizes: StepSizes, stream: &Stream) -> Result<(), CudaError> {
        let params = SwigluParams {
            scales: self.scratch.scales.ptr(),
            gate_up: self.scratch.gate_up.ptr(),
            out: self.scratch.activated.mut_ptr(),
            rows: sizes.rows as i32,
            width: self.spec.intermediate_size as i32,
        };
        // SAFETY: see `run`.
        check_launch(unsafe { kernels::specserve_swiglu(&params, stream.raw()) }, "swiglu")
    }
}
