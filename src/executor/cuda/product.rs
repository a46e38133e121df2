//! Which kernel multiplies: our own for few rows, cuBLASLt for many.

use super::error::{CudaError, check_launch};
use super::ffi::kernels::{
    self, SKINNY_BF16, SKINNY_F32, SKINNY_INPUTS_MULTIPLE, SKINNY_OUTPUTS_MULTIPLE, SKINNY_ROWS_MAX,
    SKINNY_SWIGLU, SkinnyParams,
};
use super::gemm::{Gemm, GemmOperands, GemmOutput, GemmShape};
use super::stream::Stream;

/// Whether a product is the skinny kernel's. The rule looks at the padded number of rows
/// only, so that a captured size always multiplies the same way.
pub fn is_skinny(shape: GemmShape) -> bool {
    shape.rows <= SKINNY_ROWS_MAX as usize
        && shape.outputs.is_multiple_of(SKINNY_OUTPUTS_MULTIPLE as usize)
        && shape.inputs.is_multiple_of(SKINNY_INPUTS_MULTIPLE as usize)
}

/// Enqueues a product by whichever kernel takes it.
///
/// # Errors
/// When the launch fails, or cuBLASLt was not prepared for the shape.
///
/// # Safety
/// As [`Gemm::run`].
pub unsafe fn multiply(
    shape: GemmShape,
    operands: GemmOperands,
    gemm: &Gemm,
    stream: &Stream,
) -> Result<(), CudaError> {
    if !is_skinny(shape) {
        // SAFETY: our caller's contract.
        return unsafe { gemm.run(shape, operands, stream) };
    }
    let kind = match shape.output {
        GemmOutput::Bf16 => SKINNY_BF16,
        GemmOutput::F32 => SKINNY_F32,
    };
    // SAFETY: our caller's contract.
    unsafe { skinny(shape, shape.outputs, kind, operands, stream) }
}

/// Enqueues `silu(gate) * up` of few rows; `shape` is that of the fused product, whose
/// weights are the gate's, then as many of the up projection.
///
/// # Errors
/// When the launch fails.
///
/// # Safety
/// As [`Gemm::run`], except that `y` holds half of the shape's outputs.
pub unsafe fn multiply_swiglu(
    shape: GemmShape,
    operands: GemmOperands,
    stream: &Stream,
) -> Result<(), CudaError> {
    // SAFETY: our caller's contract.
    unsafe { skinny(shape, shape.outputs / 2, SKINNY_SWIGLU, operands, stream) }
}

unsafe fn skinny(
    shape: GemmShape,
    outputs: usize,
    kind: u32,
    operands: GemmOperands,
    stream: &Stream,
) -> Result<(), CudaError> {
    let params = SkinnyParams {
        weights: operands.weights,
        x: operands.x,
        y: operands.y,
        outputs: outputs as i32,
        inputs: shape.inputs as i32,
        rows: shape.rows as i32,
        kind: kind as i32,
        few_stages: 0,
    };
    // SAFETY: our callers' contract.
    check_launch(unsafe { kernels::specserve_skinny_gemm(&params, stream.raw()) }, "skinny_gemm")
}
