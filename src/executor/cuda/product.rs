//! Matrix products of a forward pass: a linear layer, its input, and an epilogue that says what
//! happens to the result. Chooses the kernel: our skinny GEMM for few rows, cuBLASLt for many.

use std::ffi::c_void;

use super::error::{CudaError, check_launch};
use super::ffi::kernels::{
    self, QkvParams, SKINNY_ADD_F32, SKINNY_BF16, SKINNY_F32, SKINNY_INPUTS_MULTIPLE,
    SKINNY_OUTPUTS_MULTIPLE, SKINNY_QKV, SKINNY_RESIDUAL, SKINNY_ROWS_MAX, SKINNY_SWIGLU, SkinnyParams,
};
use super::gemm::{Gemm, GemmOperands, GemmOutput, GemmShape};
use super::linear::{Linear, Weight};
use super::stream::Stream;

/// Input rows of a product: bf16 `[rows][inputs]` in device memory, 16-byte aligned.
#[derive(Clone, Copy, Debug)]
pub struct Input {
    /// The first row.
    pub x: *const u16,
    /// How many, padding included.
    pub rows: usize,
}

/// The scale of an RMSNorm that [`Epilogue::Residual`] left to the next product: each row of
/// that product is multiplied by `1 / sqrt(sum of squares / inputs + eps)`.
#[derive(Clone, Copy, Debug)]
pub struct DeferredScale {
    /// Partial sums of squares, `[rows][inputs / SKINNY_SQUARES_WIDTH]`.
    pub squares: *const f32,
    /// Epsilon of the norm.
    pub eps: f32,
}

/// What happens to the product `x Wᵀ`, `[rows][outputs]`. All pointers are device memory.
///
/// Every kernel can store and add. The others are fused: only the skinny kernel has them, so they need
/// a matrix and a number of rows for which [`fuses`] or [`fuses_swiglu`] holds.
#[derive(Clone, Copy, Debug)]
pub enum Epilogue {
    /// Stores bf16 `[rows][outputs]`.
    StoreBf16(*mut u16),
    /// Stores fp32 `[rows][outputs]`.
    StoreF32(*mut f32),
    /// Adds to fp32 `[rows][outputs]`.
    AddF32(*mut f32),
    /// The matrix is gate, then up, `[2 * width][inputs]`: stores `silu(gate) * up`.
    SwiGlu {
        /// bf16 `[rows][width]`.
        y: *mut u16,
        /// Scale that the input still lacks.
        scale: Option<DeferredScale>,
    },
    /// Adds to the residual stream and does the work of the next norm except for its scale:
    /// see [`DeferredScale`].
    Residual {
        /// fp32 `[rows][outputs]`.
        residual: *mut f32,
        /// Weight of the next norm, bf16 `[outputs]`.
        norm_weight: *const u16,
        /// `residual * norm_weight`, bf16 `[rows][outputs]`.
        y: *mut u16,
        /// Sums of squares of the residual stream, `[rows][outputs / SKINNY_SQUARES_WIDTH]`.
        squares: *mut f32,
    },
    /// The matrix is the fused query, key and value projection: adds the bias, rotates,
    /// stores queries to `rotation.qkv` and keys and values to the cache. Without head norms.
    Qkv {
        /// Bias, rotation and destinations, as for the kernel `specserve_qkv`.
        rotation: QkvParams,
        /// Scale that the input still lacks.
        scale: Option<DeferredScale>,
    },
}

impl Epilogue {
    /// Destination and format of a product that is only stored or added; `None` for a fused epilogue.
    fn stored(&self) -> Option<(*mut c_void, GemmOutput)> {
        match *self {
            Epilogue::StoreBf16(y) => Some((y.cast(), GemmOutput::Bf16)),
            Epilogue::StoreF32(y) => Some((y.cast(), GemmOutput::F32)),
            Epilogue::AddF32(y) => Some((y.cast(), GemmOutput::AddF32)),
            Epilogue::SwiGlu { .. } | Epilogue::Residual { .. } | Epilogue::Qkv { .. } => None,
        }
    }
}

/// Whether a product of `rows` rows by this matrix can have the epilogues `Residual` and `Qkv`.
pub fn fuses(linear: &Linear, rows: usize) -> bool {
    is_skinny(linear.outputs(), linear.inputs(), rows)
}

/// Whether a product of `rows` rows by this matrix can have the epilogue `SwiGlu`: half of its
/// outputs, the width of the MLP, has to fill whole tiles, too.
pub fn fuses_swiglu(linear: &Linear, rows: usize) -> bool {
    fuses(linear, rows) && is_skinny(linear.outputs() / 2, linear.inputs(), rows)
}

/// Whether the skinny kernel multiplies `rows` rows by a matrix `[outputs][inputs]`. The rule
/// looks at the padded number of rows, so that a captured size always multiplies the same way.
fn is_skinny(outputs: usize, inputs: usize, rows: usize) -> bool {
    rows <= SKINNY_ROWS_MAX as usize
        && outputs.is_multiple_of(SKINNY_OUTPUTS_MULTIPLE as usize)
        && inputs.is_multiple_of(SKINNY_INPUTS_MULTIPLE as usize)
}

/// One matrix product.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    /// The matrix.
    pub linear: &'a Linear,
    /// What it multiplies.
    pub input: Input,
    /// What happens to the result.
    pub epilogue: Epilogue,
}

impl Product<'_> {
    /// Enqueues the product.
    ///
    /// # Errors
    /// When the launch fails, the epilogue does not fit the matrix, or cuBLASLt has to multiply
    /// and was not prepared for the shape.
    ///
    /// # Safety
    /// The input and every pointer of the epilogue are device memory of the documented sizes
    /// for this matrix and this number of rows. They and the matrix stay alive until the stream
    /// has passed the launch. Products that share a `Gemm` run on one stream.
    pub unsafe fn run(&self, gemm: &Gemm, stream: &Stream) -> Result<(), CudaError> {
        if let Some((shape, operands)) = self.as_gemm() {
            // SAFETY: our caller's contract.
            return unsafe { gemm.run(shape, operands, stream) };
        }
        let params = self.skinny_params();
        // SAFETY: our caller's contract.
        check_launch(unsafe { kernels::specserve_skinny_gemm(&params, stream.raw()) }, "skinny_gemm")
    }

    /// Makes the product ready to run: where cuBLASLt multiplies, chooses its algorithm.
    ///
    /// # Errors
    /// When cuBLASLt has none.
    fn prepare(&self, gemm: &mut Gemm) -> Result<(), CudaError> {
        self.as_gemm().map_or(Ok(()), |(shape, _)| gemm.prepare(shape))
    }

    /// As [`prepare`](Self::prepare), but chooses the algorithm by timing the candidates; the
    /// destination is overwritten.
    ///
    /// # Errors
    /// When cuBLASLt has no algorithm, or the device failed.
    ///
    /// # Safety
    /// Input and destination are device memory of the documented sizes for this matrix and
    /// this number of rows, and no other stream uses them or `gemm`.
    unsafe fn tune(&self, gemm: &mut Gemm, stream: &Stream) -> Result<(), CudaError> {
        let Some((shape, operands)) = self.as_gemm() else { return Ok(()) };
        // SAFETY: our caller's contract.
        unsafe { gemm.tune(shape, operands, stream) }
    }

    /// As [`tune`](Self::tune) if `tuned`, else as [`prepare`](Self::prepare).
    ///
    /// # Errors
    /// As theirs.
    ///
    /// # Safety
    /// As [`tune`](Self::tune).
    pub unsafe fn choose(&self, tuned: bool, gemm: &mut Gemm, stream: &Stream) -> Result<(), CudaError> {
        if tuned {
            // SAFETY: our caller's contract.
            unsafe { self.tune(gemm, stream) }
        } else {
            self.prepare(gemm)
        }
    }

    /// The product as cuBLASLt takes it; `None` where the skinny kernel multiplies.
    fn as_gemm(&self) -> Option<(GemmShape, GemmOperands)> {
        let (outputs, inputs, rows) = (self.linear.outputs(), self.linear.inputs(), self.input.rows);
        let (y, output) = self.epilogue.stored()?;
        let shape = GemmShape { outputs, inputs, rows, output };
        let operands = GemmOperands { weights: self.bf16(), x: self.input.x, y };
        (!is_skinny(outputs, inputs, rows)).then_some((shape, operands))
    }

    fn skinny_params(&self) -> SkinnyParams {
        let (outputs, inputs) = (self.linear.outputs(), self.linear.inputs());
        skinny_params(self.bf16(), [outputs, inputs], self.input, &self.epilogue)
    }

    /// Address of the matrix. A format beside bf16 has kernels of its own, and `run` chooses
    /// them here.
    fn bf16(&self) -> *const u16 {
        let Weight::Bf16 { numbers, start } = self.linear.weight();
        numbers.ptr().wrapping_add(*start)
    }
}

/// Parameters of the skinny kernel (csrc/skinny_gemm.h) for a bf16 matrix `[outputs, inputs]`.
fn skinny_params(weights: *const u16, shape: [usize; 2], input: Input, epilogue: &Epilogue) -> SkinnyParams {
    let [outputs, inputs] = shape;
    let params = SkinnyParams {
        weights,
        x: input.x,
        outputs: outputs as i32,
        inputs: inputs as i32,
        rows: input.rows as i32,
        ..SkinnyParams::default()
    };
    match *epilogue {
        Epilogue::StoreBf16(y) => SkinnyParams { kind: SKINNY_BF16 as i32, y: y.cast(), ..params },
        Epilogue::StoreF32(y) => SkinnyParams { kind: SKINNY_F32 as i32, y: y.cast(), ..params },
        Epilogue::AddF32(y) => SkinnyParams { kind: SKINNY_ADD_F32 as i32, y: y.cast(), ..params },
        Epilogue::SwiGlu { y, scale } => SkinnyParams {
            kind: SKINNY_SWIGLU as i32,
            y: y.cast(),
            outputs: (outputs / 2) as i32,
            ..with_scale(params, scale)
        },
        Epilogue::Residual { residual, norm_weight, y, squares } => SkinnyParams {
            kind: SKINNY_RESIDUAL as i32,
            y: y.cast(),
            residual,
            norm_weight,
            y_squares: squares,
            ..params
        },
        Epilogue::Qkv { rotation, scale } => SkinnyParams {
            kind: SKINNY_QKV as i32,
            y: rotation.qkv.cast(),
            qkv: rotation,
            ..with_scale(params, scale)
        },
    }
}

fn with_scale(params: SkinnyParams, scale: Option<DeferredScale>) -> SkinnyParams {
    match scale {
        Some(scale) => SkinnyParams { x_squares: scale.squares, x_eps: scale.eps, ..params },
        None => params,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::cuda::buffer::DeviceBuffer;

    const WEIGHTS: *const u16 = 0x1000 as *const u16;
    const INPUT: Input = Input { x: 0x2000 as *const u16, rows: 3 };
    const Y: *mut u16 = 0x3000 as *mut u16;

    fn params(epilogue: Epilogue) -> SkinnyParams {
        skinny_params(WEIGHTS, [96, 64], INPUT, &epilogue)
    }

    #[test]
    fn the_skinny_kernel_takes_few_rows_of_whole_tiles() {
        assert!(is_skinny(16, 64, 1) && is_skinny(16, 64, 16));
        assert!(!is_skinny(16, 64, 17), "rows");
        assert!(!is_skinny(24, 64, 1), "outputs");
        assert!(!is_skinny(16, 96, 1), "inputs");
    }

    #[test]
    fn cublaslt_multiplies_what_is_only_stored_and_does_not_fit_the_skinny_kernel() {
        let nothing = DeviceBuffer::uninitialized(0).expect("allocates nothing");
        let linear = Linear::bf16(nothing, 0, 64);
        let as_gemm = |rows, epilogue| {
            let product = Product { linear: &linear, input: Input { rows, ..INPUT }, epilogue };
            product.as_gemm().map(|(shape, operands)| (shape, operands.x, operands.y))
        };
        assert_eq!(as_gemm(16, Epilogue::StoreBf16(Y)), None);
        for (epilogue, output) in
            [(Epilogue::StoreBf16(Y), GemmOutput::Bf16), (Epilogue::StoreF32(Y.cast()), GemmOutput::F32)]
        {
            let shape = GemmShape { outputs: 0, inputs: 64, rows: 17, output };
            assert_eq!(as_gemm(17, epilogue), Some((shape, INPUT.x, Y.cast())));
        }
        assert_eq!(as_gemm(17, Epilogue::SwiGlu { y: Y, scale: None }), None, "the kernel refuses it");
        assert!(fuses(&linear, 16) && !fuses(&linear, 17) && !fuses_swiglu(&linear, 17));
    }

    #[test]
    fn a_stored_product_has_its_destination_and_format() {
        for (epilogue, kind) in
            [(Epilogue::StoreBf16(Y), SKINNY_BF16), (Epilogue::StoreF32(Y.cast()), SKINNY_F32)]
        {
            let got = params(epilogue);
            assert_eq!((got.kind, got.y), (kind as i32, Y.cast()));
            assert_eq!((got.weights, got.x), (WEIGHTS, INPUT.x));
            assert_eq!((got.outputs, got.inputs, got.rows), (96, 64, 3));
            assert!(got.x_squares.is_null() && got.residual.is_null() && got.qkv.qkv.is_null());
            assert!(epilogue.stored().is_some());
        }
    }

    #[test]
    fn swiglu_stores_half_of_the_outputs_and_applies_the_scale_of_the_norm_before() {
        let squares = 0x4000 as *const f32;
        let scale = Some(DeferredScale { squares, eps: 1e-5 });
        let got = params(Epilogue::SwiGlu { y: Y, scale });
        assert_eq!((got.kind, got.y, got.outputs), (SKINNY_SWIGLU as i32, Y.cast(), 48));
        assert_eq!((got.x_squares, got.x_eps), (squares, 1e-5));
    }

    #[test]
    fn the_residual_epilogue_names_the_next_norm() {
        let (residual, norm_weight) = (0x4000 as *mut f32, 0x5000 as *const u16);
        let squares = 0x6000 as *mut f32;
        let epilogue = Epilogue::Residual { residual, norm_weight, y: Y, squares };
        let got = params(epilogue);
        assert_eq!((got.kind, got.y, got.outputs), (SKINNY_RESIDUAL as i32, Y.cast(), 96));
        assert_eq!((got.residual, got.norm_weight, got.y_squares), (residual, norm_weight, squares));
        assert!(got.x_squares.is_null() && epilogue.stored().is_none(), "cuBLASLt can't do it");
    }

    #[test]
    fn queries_go_where_the_rotation_says_and_a_scale_is_optional() {
        let rotation = QkvParams { qkv: Y, heads: 4, kv_heads: 1, head_dim: 16, ..QkvParams::default() };
        let got = params(Epilogue::Qkv { rotation, scale: None });
        assert_eq!((got.kind, got.y, got.outputs), (SKINNY_QKV as i32, Y.cast(), 96));
        assert_eq!((got.qkv.heads, got.qkv.kv_heads, got.qkv.head_dim), (4, 1, 16));
        assert!(got.x_squares.is_null());
    }
}
