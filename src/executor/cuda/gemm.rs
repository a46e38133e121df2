//! Matrix products by cuBLASLt: `y = x Wᵀ`, bf16 in, fp32 accumulation, bf16 or fp32 out.
//!
//! The algorithm of a shape is chosen once and never changes, so that the same rows give the same
//! bits in every step: [`Gemm::prepare`] takes the first choice of the heuristic, [`Gemm::tune`] times
//! the candidates and departs from the first only for a clear gain.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr;

use super::buffer::DeviceBuffer;
use super::error::{CudaError, check_cublaslt};
use super::ffi::cublaslt::{
    CublasLt, cublasComputeType_t, cublasLtHandle_t, cublasLtMatmulAlgo_t, cublasLtMatmulDesc_t,
    cublasLtMatmulDescAttributes_t, cublasLtMatmulHeuristicResult_t, cublasLtMatmulPreference_t,
    cublasLtMatmulPreferenceAttributes_t, cublasLtMatrixLayout_t, cublasLtReductionScheme_t,
    cublasOperation_t, cudaDataType_t,
};
use super::library::open_cublaslt;
use super::stream::{Event, Stream};

/// Scratch memory that algorithms may use, in bytes.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Candidates that [`Gemm::tune`] measures.
const CANDIDATES: usize = 8;
/// A candidate replaces the heuristic's first choice only when it takes at most this share of
/// its time: near-ties are decided the same way in every run.
const CLEAR_GAIN: f64 = 0.95;
/// Timed runs of one candidate; the fastest counts.
const TIMED_RUNS: usize = 5;

/// Number format of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GemmOutput {
    /// bf16, rounded once.
    Bf16,
    /// fp32, for logits.
    F32,
    /// fp32, added to what is there.
    AddF32,
}

/// A product's shape: `y[rows][outputs] = x[rows][inputs] · w[outputs][inputs]ᵀ`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GemmShape {
    /// Rows of the weight matrix.
    pub outputs: usize,
    /// Columns of the weight matrix.
    pub inputs: usize,
    /// Rows of `x` and `y`.
    pub rows: usize,
    /// Format of `y`.
    pub output: GemmOutput,
}

/// Device addresses of one product, each 16-byte aligned.
#[derive(Clone, Copy, Debug)]
pub struct GemmOperands {
    /// bf16 `[outputs][inputs]`.
    pub weights: *const u16,
    /// bf16 `[rows][inputs]`.
    pub x: *const u16,
    /// `[rows][outputs]`.
    pub y: *mut c_void,
}

/// cuBLASLt with one chosen algorithm per shape and a fixed workspace.
pub struct Gemm {
    cublaslt: CublasLt,
    handle: cublasLtHandle_t,
    preference: cublasLtMatmulPreference_t,
    operation: cublasLtMatmulDesc_t,
    workspace: DeviceBuffer<u8>,
    chosen: HashMap<GemmShape, Chosen>,
}

// SAFETY: cuBLASLt handles and descriptors may be used from any one thread at a time.
unsafe impl Send for Gemm {}

struct Chosen {
    layouts: Layouts,
    /// Factor of what is there.
    beta: f32,
    algorithm: cublasLtMatmulAlgo_t,
    candidates: Vec<cublasLtMatmulAlgo_t>,
}

/// Descriptors of the three matrices. cuBLASLt is column-major, so it computes `yᵀ = W xᵀ`.
struct Layouts {
    weights: cublasLtMatrixLayout_t,
    x: cublasLtMatrixLayout_t,
    y: cublasLtMatrixLayout_t,
}

impl Gemm {
    /// Opens cuBLASLt in the current context.
    ///
    /// # Errors
    /// When the library is missing, too old, or the device has no memory for the workspace.
    pub fn new() -> Result<Gemm, CudaError> {
        let cublaslt = open_cublaslt()?;
        let mut handle = ptr::null_mut();
        let mut preference = ptr::null_mut();
        let mut operation = ptr::null_mut();
        // SAFETY: each call writes one handle to a local that outlives it.
        unsafe {
            check_cublaslt(cublaslt.cublasLtCreate(&mut handle), "cublasLtCreate")?;
            check_cublaslt(
                cublaslt.cublasLtMatmulPreferenceCreate(&mut preference),
                "cublasLtMatmulPreferenceCreate",
            )?;
            check_cublaslt(
                cublaslt.cublasLtMatmulDescCreate(
                    &mut operation,
                    cublasComputeType_t::CUBLAS_COMPUTE_32F,
                    cudaDataType_t::CUDA_R_32F,
                ),
                "cublasLtMatmulDescCreate",
            )?;
        }
        let workspace = DeviceBuffer::uninitialized(WORKSPACE_BYTES)?;
        let gemm = Gemm { cublaslt, handle, preference, operation, workspace, chosen: HashMap::new() };
        gemm.set_attributes()?;
        Ok(gemm)
    }

    fn set_attributes(&self) -> Result<(), CudaError> {
        use cublasLtMatmulPreferenceAttributes_t as Preference;
        let transpose = cublasOperation_t::CUBLAS_OP_T;
        let workspace = WORKSPACE_BYTES;
        // Partial sums in bf16 would cost accuracy; the other schemes are deterministic.
        let schemes = cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_INPLACE.0
            | cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE.0;
        // SAFETY: the descriptors live; each value is read during the call and has its
        // attribute's type.
        unsafe {
            check_cublaslt(
                self.cublaslt.cublasLtMatmulDescSetAttribute(
                    self.operation,
                    cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                    (&raw const transpose).cast(),
                    size_of_val(&transpose),
                ),
                "cublasLtMatmulDescSetAttribute",
            )?;
            check_cublaslt(
                self.cublaslt.cublasLtMatmulPreferenceSetAttribute(
                    self.preference,
                    Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                    (&raw const workspace).cast(),
                    size_of_val(&workspace),
                ),
                "cublasLtMatmulPreferenceSetAttribute",
            )?;
            check_cublaslt(
                self.cublaslt.cublasLtMatmulPreferenceSetAttribute(
                    self.preference,
                    Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                    (&raw const schemes).cast(),
                    size_of_val(&schemes),
                ),
                "cublasLtMatmulPreferenceSetAttribute",
            )
        }
    }

    /// Chooses an algorithm for a shape, once; does nothing for a known one.
    ///
    /// # Errors
    /// When cuBLASLt has none.
    pub fn prepare(&mut self, shape: GemmShape) -> Result<(), CudaError> {
        if self.chosen.contains_key(&shape) {
            return Ok(());
        }
        let layouts = self.layouts(shape)?;
        let candidates = match self.candidates(&layouts) {
            Ok(candidates) => candidates,
            Err(error) => {
                self.destroy(&layouts);
                return Err(error);
            }
        };
        let beta = if shape.output == GemmOutput::AddF32 { 1.0 } else { 0.0 };
        self.chosen.insert(shape, Chosen { layouts, beta, algorithm: candidates[0], candidates });
        Ok(())
    }

    /// Chooses an algorithm by timing the candidates; the product's result is overwritten.
    ///
    /// # Errors
    /// When cuBLASLt has no algorithm, or the device failed.
    ///
    /// # Safety
    /// The operands are device memory of the shape's sizes, and no other stream uses them or
    /// this `Gemm` until the call returns.
    pub unsafe fn tune(
        &mut self,
        shape: GemmShape,
        operands: GemmOperands,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        self.prepare(shape)?;
        let chosen = &self.chosen[&shape];
        if chosen.candidates.len() == 1 {
            return Ok(()); // timed before, or no choice
        }
        let mut best = (chosen.candidates[0], f64::INFINITY);
        for (index, algorithm) in chosen.candidates.iter().enumerate() {
            // SAFETY: our caller's contract.
            let Ok(time) = (unsafe { self.measure(chosen, algorithm, operands, stream) }) else { continue };
            if index == 0 || time < best.1 * CLEAR_GAIN {
                best = (*algorithm, time);
            }
        }
        let chosen = self.chosen.get_mut(&shape).expect("prepared above");
        chosen.algorithm = best.0;
        chosen.candidates.truncate(1);
        Ok(())
    }

    /// Enqueues one product of a prepared shape.
    ///
    /// # Errors
    /// When cuBLASLt refuses, or the shape was not prepared.
    ///
    /// # Safety
    /// The operands are device memory of the shape's sizes, alive until the stream has passed
    /// the product. Products of one `Gemm` share its workspace: they run on one stream.
    pub unsafe fn run(
        &self,
        shape: GemmShape,
        operands: GemmOperands,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let chosen = self.chosen.get(&shape).ok_or_else(|| CudaError::Call {
            what: "cublasLtMatmul",
            code: -1,
            detail: format!("no algorithm was chosen for {shape:?}"),
        })?;
        // SAFETY: our caller's contract.
        unsafe { self.enqueue(chosen, &chosen.algorithm, operands, stream) }
    }

    /// Enqueues one product by a given algorithm.
    ///
    /// # Safety
    /// The operands are device memory of the sizes of `chosen.layouts`, alive until the stream
    /// has passed the product, and no other stream uses this `Gemm`.
    unsafe fn enqueue(
        &self,
        chosen: &Chosen,
        algorithm: &cublasLtMatmulAlgo_t,
        operands: GemmOperands,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let (alpha, beta) = (1f32, chosen.beta);
        let layouts = &chosen.layouts;
        // SAFETY: descriptors live as long as `self`; operands by our caller's contract; the
        // scalars are read during the call (host pointer mode).
        let status = unsafe {
            self.cublaslt.cublasLtMatmul(
                self.handle,
                self.operation,
                (&raw const alpha).cast(),
                operands.weights.cast(),
                layouts.weights,
                operands.x.cast(),
                layouts.x,
                (&raw const beta).cast(),
                operands.y,
                layouts.y,
                operands.y,
                layouts.y,
                algorithm,
                self.workspace.ptr().cast_mut().cast(),
                WORKSPACE_BYTES,
                stream.raw().cast(),
            )
        };
        check_cublaslt(status, "cublasLtMatmul")
    }

    /// Shortest of a few runs, in microseconds.
    ///
    /// # Safety
    /// The operands are device memory of the sizes of `chosen.layouts`, and no other stream uses
    /// them or this `Gemm` until the call returns.
    unsafe fn measure(
        &self,
        chosen: &Chosen,
        algorithm: &cublasLtMatmulAlgo_t,
        operands: GemmOperands,
        stream: &Stream,
    ) -> Result<f64, CudaError> {
        let (start, end) = (Event::timed()?, Event::timed()?);
        let mut best = f64::INFINITY;
        for run in 0..=TIMED_RUNS {
            start.record(stream)?;
            // SAFETY: our caller's contract.
            unsafe { self.enqueue(chosen, algorithm, operands, stream)? };
            end.record(stream)?;
            end.synchronize()?;
            if run > 0 {
                best = best.min(end.microseconds_since(&start)?);
            }
        }
        Ok(best)
    }

    fn layouts(&self, shape: GemmShape) -> Result<Layouts, CudaError> {
        let bf16 = cudaDataType_t::CUDA_R_16BF;
        let result = match shape.output {
            GemmOutput::Bf16 => bf16,
            GemmOutput::F32 | GemmOutput::AddF32 => cudaDataType_t::CUDA_R_32F,
        };
        Ok(Layouts {
            weights: self.layout(bf16, shape.inputs, shape.outputs)?,
            x: self.layout(bf16, shape.inputs, shape.rows)?,
            y: self.layout(result, shape.outputs, shape.rows)?,
        })
    }

    fn layout(
        &self,
        format: cudaDataType_t,
        rows: usize,
        columns: usize,
    ) -> Result<cublasLtMatrixLayout_t, CudaError> {
        let mut layout = ptr::null_mut();
        // SAFETY: writes one handle to a local that outlives the call.
        let status = unsafe {
            self.cublaslt.cublasLtMatrixLayoutCreate(
                &mut layout,
                format,
                rows as u64,
                columns as u64,
                rows as i64,
            )
        };
        check_cublaslt(status, "cublasLtMatrixLayoutCreate")?;
        Ok(layout)
    }

    fn candidates(&self, layouts: &Layouts) -> Result<Vec<cublasLtMatmulAlgo_t>, CudaError> {
        // SAFETY: plain data for which zeros are valid.
        let mut results: [cublasLtMatmulHeuristicResult_t; CANDIDATES] = unsafe { std::mem::zeroed() };
        let mut found = 0;
        // SAFETY: `results` has room for the count that is asked for; descriptors live.
        let status = unsafe {
            self.cublaslt.cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                self.operation,
                layouts.weights,
                layouts.x,
                layouts.y,
                layouts.y,
                self.preference,
                CANDIDATES as i32,
                results.as_mut_ptr(),
                &mut found,
            )
        };
        check_cublaslt(status, "cublasLtMatmulAlgoGetHeuristic")?;
        let usable = results[..found.max(0) as usize].iter().filter(|result| result.state.0 == 0);
        let algorithms: Vec<_> = usable.map(|result| result.algo).collect();
        if algorithms.is_empty() {
            return Err(CudaError::Call {
                what: "cublasLtMatmulAlgoGetHeuristic",
                code: 0,
                detail: "no algorithm for this shape".to_owned(),
            });
        }
        Ok(algorithms)
    }

    fn destroy(&self, layouts: &Layouts) {
        for layout in [layouts.weights, layouts.x, layouts.y] {
            // SAFETY: created by us, destroyed once.
            unsafe { self.cublaslt.cublasLtMatrixLayoutDestroy(layout) };
        }
    }
}

impl Drop for Gemm {
    fn drop(&mut self) {
        for chosen in self.chosen.values() {
            self.destroy(&chosen.layouts);
        }
        // SAFETY: created by us, destroyed once, after everything that uses them.
        unsafe {
            self.cublaslt.cublasLtMatmulPreferenceDestroy(self.preference);
            self.cublaslt.cublasLtMatmulDescDestroy(self.operation);
            self.cublaslt.cublasLtDestroy(self.handle);
        }
    }
}
