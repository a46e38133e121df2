//! A forward pass while it is enqueued: what all of its launches share, and the launches before
//! and behind the layers.

use super::hidden_rows::HiddenRows;
use super::products::head_product;
use super::step::{StepAddresses, StepSizes};
use crate::executor::cuda::buffer::DeviceBuffer;
use crate::executor::cuda::communicator::Communicator;
use crate::executor::cuda::error::{CudaError, check_launch};
use crate::executor::cuda::ffi::kernels::{self, EmbeddingParams, RmsNormParams};
use crate::executor::cuda::gemm::Gemm;
use crate::executor::cuda::scratch::Scratch;
use crate::executor::cuda::stream::Stream;
use crate::executor::cuda::weights::DeviceWeights;
use crate::model::ModelSpec;

/// Everything that the launches of one pass share.
///
/// Only [`DeviceModel::run`](super::DeviceModel::run) builds one. It guarantees the following, on
/// which every launch of a pass relies:
/// - `weights`, `rotations` and `kv` are those of a model with this `spec`;
/// - `scratch` has room for `sizes`;
/// - `step` points to a step of these sizes whose positions, slots and tables lie within
///   `rotations` and `kv`;
/// - all of it stays alive until `stream` has passed the launches, and no other stream uses it
///   or `gemm` meanwhile.
pub struct Pass<'a> {
    /// Shape of this rank's part of the model.
    pub spec: &'a ModelSpec,
    /// Its weights.
    pub weights: &'a DeviceWeights,
    /// Cosines and sines, `[positions][head_dim / 2][2]`.
    pub rotations: &'a DeviceBuffer<f32>,
    /// Intermediate results.
    pub scratch: &'a mut Scratch,
    /// The KV pool, layer after layer.
    pub kv: &'a mut DeviceBuffer<u16>,
    /// The other ranks of the model.
    pub communicator: &'a dyn Communicator,
    /// CTAs of the decode attention with the small and with the large tile.
    pub ctas: [i32; 2],
    /// The step's inputs.
    pub step: &'a StepAddresses,
    /// The step's sizes.
    pub sizes: StepSizes,
    /// Matrix products for many rows.
    pub gemm: &'a Gemm,
    /// Where launches go.
    pub stream: &'a Stream,
    /// Whether products do the work of the norms, activations and additions around them.
    pub fused: bool,
    /// Where hidden states go.
    pub hidden_rows: Option<&'a mut HiddenRows>,
}

impl Pass<'_> {
    /// The residual stream becomes the embeddings of the step's tokens.
    pub fn embed(&mut self) -> Result<(), CudaError> {
        let params = EmbeddingParams {
            table: self.weights.embedding.ptr(),
            tokens: self.step.tokens,
            residual: self.scratch.residual.mut_ptr(),
            rows: self.sizes.rows as i32,
            hidden: self.spec.hidden_size as i32,
            vocab: self.spec.vocab_size as i32,
        };
        // SAFETY: the table is `[vocab][hidden]`, tokens and residual stream have `rows` rows
        // (see `Pass`).
        check_launch(unsafe { kernels::specserve_embedding(&params, self.stream.raw()) }, "embedding")
    }

    /// The last norm and the logits, only of the rows that need them. Each rank computes its
    /// columns of the logits and gets those of the others.
    pub fn head(&mut self) -> Result<(), CudaError> {
        self.final_norm()?;
        let rows = self.sizes.logit_rows;
        let product = head_product(self.weights, self.scratch, rows);
        // SAFETY: `head_input` and `logits` have `rows` rows (see `Pass`).
        unsafe { product.run(self.gemm, self.stream)? };
        let columns = self.weights.head.outputs();
        self.communicator.all_gather(&mut self.scratch.logits, rows, columns, self.stream)
    }

    /// The last norm, only of the rows that need logits.
    pub fn final_norm(&mut self) -> Result<(), CudaError> {
        let rows = self.sizes.logit_rows;
        let params = RmsNormParams {
            residual: self.scratch.residual.mut_ptr(),
            // A fused layer has already added its result to the residual stream.
            delta: if self.fused { std::ptr::null() } else { self.scratch.delta.ptr() },
            weight: self.weights.final_norm.ptr(),
            out: self.scratch.head_input.mut_ptr(),
            gather: self.step.gather,
            scales: std::ptr::null_mut(),
            eps: self.spec.rms_norm_eps,
            rows: rows as i32,
            hidden: self.spec.hidden_size as i32,
        };
        // SAFETY: `gather` names rows of the residual stream, `head_input` has `rows` rows (see
        // `Pass`).
        check_launch(unsafe { kernels::specserve_rmsnorm(&params, self.stream.raw()) }, "rmsnorm")
    }
}
