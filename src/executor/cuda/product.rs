//! Which kernel multiplies: our own for few rows, cuBLASLt for many.

use super::error::{CudaError, check_launch};
use super::ffi::kernels::{
    self, SKINNY_BF16, SKINNY_F32, SKINNY_INPUTS_MULTIPLE, SKINNY_OUTPUTS_MULTIPLE, SKINNY_ROWS_MAX,
    SkinnyParams,
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
    // SAFETY: our caller's contract.
    unsafe { multiply_skinny(&skinny_params(shape, operands), stream) }
}

/// The skinny kernel's parameters for a plain product. What else it does with the rows, and
/// with another `kind`, is for the caller to fill in (csrc/skinny_gemm.h).
pub fn skinny_params(shape: GemmShape, operands: GemmOperands) -> SkinnyParams {
    let kind = match shape.output {
        GemmOutput::Bf16 => SKINNY_BF16,
        GemmOutput::F32 => SKINNY_F32,
    };
    SkinnyParams {
        weights: operands.weights,
        x: operands.x,
        y: operands.y,
        outputs: shape.outputs as i32,
        inputs: shape.inputs as i32,
        rows: shape.rows as i32,
        kind: kind as i32,
        ..SkinnyParams::default()
    }
}

/// Enqueues a skinny product.
///
/// # Errors
/// When the parameters break the kernel's contract or the launch fails.
///
/// # Safety
/// Every pointer that the parameters' kind uses names device memory of the size in
/// csrc/skinny_gemm.h, alive until the stream has passed the launch.
pub unsafe fn multiply_skinny(params: &SkinnyParams, stream: &Stream) -> Result<(), CudaError> {
    // SAFETY: our caller's contract.
    check_launch(unsafe { kernels::specserve_skinny_gemm(params, stream.raw()) }, "skinny_gemm")
}
