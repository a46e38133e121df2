//! A model's shape and weights, as executors take them.
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
    /// Tokens in the vocabulary: rows of the embedding.
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
    /// Longest sequence in tokens.
    pub context_tokens_max: usize,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f32,
    /// Rotary embedding.
    pub rope: Rope,
}

/// Rotary position embedding, in the half-split ("NeoX") layout of Hugging Face.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How frequencies are changed for long contexts.
    pub scaling: RopeScaling,
}

/// Rotary scaling, as config.json's `rope_scaling` or `rope_parameters` names it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub enum RopeScaling {
    /// `default`.
    Default,
    /// `linear`: positions divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// `llama3`: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are scaled.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context of the first training phase.
        original_context: f64,
    },
}

impl Rope {
    /// Inverse frequencies, one per pair: `head_dim / 2` of them, in radians per position.
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

/// How a tensor's numbers are stored, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum Dtype {
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
    /// IEEE single.
    F32,
}

impl Dtype {
    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::Bf16 | Dtype::F16 => 2,
            Dtype::F32 => 4,
        }
    }
}

/// Bytes that tensors point into: a mapped file or the program's own image.
pub type TensorBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A matrix or vector in row-major order, not copied out of its file. The bytes may
/// stand at any alignment.
#[derive(Clone)]
pub struct Tensor {
    /// Number format.
    pub dtype: Dtype,
    /// `[rows, columns]`, or `[length]`.
    pub shape: Vec<usize>,
    /// The file.
    pub file: TensorBytes,
    /// Where in the file.
    pub range: Range<usize>,
}

impl Tensor {
    /// The numbers, as stored.
    pub fn bytes(&self) -> &[u8] {
        &(*self.file).as_ref()[self.range.clone()]
    }

    /// How many numbers.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({:?} {:?})", self.dtype, self.shape)
    }
}

/// All weights of one model; shapes are checked against the [`ModelSpec`] by the loader.
/// Linear layers are `[outputs, inputs]`, applied as `y = W x (+ b)`.
#[derive(Clone, Debug)]
pub struct ModelWeights {
    /// `[vocab_size, hidden_size]`.
    pub embedding: Tensor,
    /// The layers in order.
    pub layers: Vec<LayerWeights>,
    /// `[hidden_size]`.
    pub final_norm: Tensor,
    /// `[vocab_size, hidden_size]`; the embedding itself when tied.
    pub head: Tensor,
    /// Whether `head` is the embedding.
    pub tied_head: bool,
}

/// One transformer layer's weights.
#[derive(Clone, Debug)]
pub struct LayerWeights {
    /// Before attention, `[hidden_size]`.
    pub attention_norm: Tensor,
    /// `[heads * head_dim, hidden_size]`.
    pub query: Linear,
    /// `[kv_heads * head_dim, hidden_size]`.
    pub key: Linear,
    /// `[kv_heads * head_dim, hidden_size]`.
    pub value: Linear,
    /// RMSNorm of each query head before the rotation, `[head_dim]` (qwen3).
    pub query_norm: Option<Tensor>,
    /// RMSNorm of each key head before the rotation, `[head_dim]` (qwen3).
    pub key_norm: Option<Tensor>,
    /// `[hidden_size, heads * head_dim]`.
    pub output: Linear,
    /// Before the MLP, `[hidden_size]`.
    pub mlp_norm: Tensor,
    /// `[intermediate_size, hidden_size]`.
    pub gate: Linear,
    /// `[intermediate_size, hidden_size]`.
    pub up: Linear,
    /// `[hidden_size, intermediate_size]`.
    pub down: Linear,
}

/// A linear layer.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[outputs, inputs]`.
    pub weight: Tensor,
    /// `[outputs]`.
    pub bias: Option<Tensor>,
}

/// A model ready for an executor.
#[derive(Clone, Debug)]
pub struct LoadedModel {
    /// Shape.
    pub spec: ModelSpec,
    /// Weights.
    pub weights: ModelWeights,
}
