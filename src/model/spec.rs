//! Shape and weights of a model, the input of an executor.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

/// The shape of a decoder-only transformer of the Llama family
/// (llama, mistral, qwen2, qwen3): RMSNorm, grouped-query attention with rotary
/// embeddings, SwiGLU.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct ModelSpec {
    /// `model_type` of config.json.
    pub model_type: String,
    /// Vocabulary size: rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Context length, in tokens.
    pub context_tokens_max: usize,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f32,
    /// Rotary position embedding.
    pub rope: Rope,
}

/// Rotary position embedding, in the half-split ("NeoX") layout of Hugging Face.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Frequency scaling for long contexts.
    pub scaling: RopeScaling,
}

/// Rotary scaling, named as in `rope_scaling` and `rope_parameters` of config.json.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub enum RopeScaling {
    /// `default`: no scaling.
    Default,
    /// `linear`: positions are divided by `factor`.
    Linear {
        /// Divisor of the positions.
        factor: f64,
    },
    /// `llama3`: low frequencies are divided by `factor`, high ones kept, with a ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are scaled.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length of the original pre-training, in tokens.
        original_context: f64,
    },
}

impl Rope {
    /// Inverse frequencies `[head_dim / 2]`, in radians per position.
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f64> {
        (0..head_dim / 2)
            .map(|pair| {
                let plain = self.theta.powf(-((2 * pair) as f64) / head_dim as f64);
                self.scaling.apply(plain)
            })
            .collect()
    }
}

impl RopeScaling {
    fn apply(&self, frequency: f64) -> f64 {
        match *self {
            RopeScaling::Default => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let wavelength = 2.0 * std::f64::consts::PI / frequency;
                let ramp =
                    (original_context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let keep = ramp.clamp(0.0, 1.0);
                frequency * keep + frequency / factor * (1.0 - keep)
            }
        }
    }
}

/// Number format of a tensor, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum Dtype {
    /// bfloat16, 2 bytes.
    Bf16,
    /// IEEE binary16, 2 bytes.
    F16,
    /// IEEE binary32, 4 bytes.
    F32,
}

impl Dtype {
    /// Size of one number, in bytes.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::Bf16 | Dtype::F16 => 2,
            Dtype::F32 => 4,
        }
    }
}

/// Where the bytes of tensors are: in a mapped file, in the program, or in memory.
pub trait TensorFile: AsRef<[u8]> + Send + Sync {
    /// Frees the memory that holds `range` of a mapped file, as far as the system can. The bytes
    /// stay readable: they come from the file again. Without effect on bytes that are no file's.
    fn give_back(&self, range: Range<usize>) {
        let _ = range;
    }
}

impl TensorFile for Vec<u8> {}
impl TensorFile for &'static [u8] {}

/// Backing bytes of tensors.
pub type TensorBytes = Arc<dyn TensorFile>;

/// A row-major matrix or vector, borrowed from its file. The bytes may be unaligned.
#[derive(Clone)]
pub struct Tensor {
    /// Number format.
    pub dtype: Dtype,
    /// `[rows, columns]`, or `[length]`.
    pub shape: Vec<usize>,
    /// Bytes of the whole file.
    pub file: TensorBytes,
    /// Byte range within the file.
    pub range: Range<usize>,
}

impl Tensor {
    /// The stored bytes.
    pub fn bytes(&self) -> &[u8] {
        &(*self.file).as_ref()[self.range.clone()]
    }

    /// Frees the memory that mirrors the file, for one who has made a copy of the tensor: see
    /// [`TensorFile::give_back`].
    pub fn give_back(&self) {
        self.file.give_back(self.range.clone());
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({:?} {:?})", self.dtype, self.shape)
    }
}

/// All weights of a model; the loader checks shapes against the [`ModelSpec`].
/// Linear layers are `[outputs, inputs]`, applied as `y = W x (+ b)`.
#[derive(Clone, Debug)]
pub struct ModelWeights {
    /// Token embedding, `[vocab_size, hidden_size]`.
    pub embedding: Tensor,
    /// The layers in order.
    pub layers: Vec<LayerWeights>,
    /// Final RMSNorm, `[hidden_size]`.
    pub final_norm: Tensor,
    /// Output head, `[vocab_size, hidden_size]`; the embedding itself if tied.
    pub head: Tensor,
    /// Whether `head` is tied to the embedding.
    pub tied_head: bool,
}

/// One transformer layer's weights.
#[derive(Clone, Debug)]
pub struct LayerWeights {
    /// RMSNorm before attention, `[hidden_size]`.
    pub attention_norm: Tensor,
    /// Query projection, `[heads * head_dim, hidden_size]`.
    pub query: Linear,
    /// `[kv_heads * head_dim, hidden_size]`.
    pub key: Linear,
    /// `[kv_heads * head_dim, hidden_size]`.
    pub value: Linear,
    /// RMSNorm of each query head before the rotation, `[head_dim]` (qwen3).
    pub query_norm: Option<Tensor>,
    /// RMSNorm of each key head before the rotation, `[head_dim]` (qwen3).
    pub key_norm: Option<Tensor>,
    /// Attention output projection, `[hidden_size, heads * head_dim]`.
    pub output: Linear,
    /// RMSNorm before the MLP, `[hidden_size]`.
    pub mlp_norm: Tensor,
    /// `[intermediate_size, hidden_size]`.
    pub gate: Linear,
    /// `[intermediate_size, hidden_size]`.
    pub up: Linear,
    /// Down projection, `[hidden_size, intermediate_size]`.
    pub down: Linear,
}

/// A linear layer with optional bias.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Weight, `[outputs, inputs]`.
    pub weight: Tensor,
    /// Bias, `[outputs]`.
    pub bias: Option<Tensor>,
}

/// A model ready for an executor.
#[derive(Clone, Debug)]
pub struct LoadedModel {
    /// Shape of the model.
    pub spec: ModelSpec,
    /// Weights of the model.
    pub weights: ModelWeights,
}
