//! Models of seeded noise: for tests, for benchmarks, and to serve as a draft that is
//! always wrong. Their weights have the scale of trained ones, so that numbers stay
//! in range through the layers and logits spread over a few units.
#![forbid(unsafe_code)]

mod heads;

use std::convert::Infallible;
use std::sync::Arc;

use super::{
    Dtype, LayerTensor, LayerWeights, LoadedModel, ModelSpec, ModelWeights, Rope, RopeScaling, Tensor,
};
use crate::protocol::TokenId;
use crate::random::SplitMix64;

pub use heads::{RandomHeadOptions, random_block_head, random_eagle3};

/// Variants of a random model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RandomOptions {
    /// Number format of all tensors.
    pub dtype: Dtype,
    /// Biases on query, key and value (qwen2).
    pub qkv_bias: bool,
    /// Biases on the other linear layers.
    pub other_bias: bool,
    /// Norms of query and key heads (qwen3).
    pub head_norms: bool,
    /// The head is the embedding.
    pub tied_head: bool,
}

impl Default for RandomOptions {
    /// As the embedded pair: bf16, no biases, no head norms, tied.
    fn default() -> RandomOptions {
        RandomOptions {
            dtype: Dtype::Bf16,
            qkv_bias: false,
            other_bias: false,
            head_norms: false,
            tied_head: true,
        }
    }
}

impl RandomOptions {
    /// Whether the layers have a tensor of this role.
    fn has(&self, role: LayerTensor) -> bool {
        match role {
            LayerTensor::QueryNorm | LayerTensor::KeyNorm => self.head_norms,
            LayerTensor::Bias(projection) if projection.is_qkv() => self.qkv_bias,
            LayerTensor::Bias(_) => self.other_bias,
            LayerTensor::AttentionNorm | LayerTensor::MlpNorm | LayerTensor::Weight(_) => true,
        }
    }
}

/// A shape that runs in microseconds: two layers, hidden size 64, four query and two KV
/// heads of 16, a context of 512 tokens.
pub fn small_spec(vocab_size: usize) -> ModelSpec {
    ModelSpec {
        model_type: "llama".into(),
        vocab_size,
        hidden_size: 64,
        intermediate_size: 120,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        context_tokens_max: 512,
        rms_norm_eps: 1e-5,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::Default },
    }
}

/// A model of this shape; equal seeds and options give equal weights.
pub fn random_model(spec: &ModelSpec, seed: u64, options: RandomOptions) -> LoadedModel {
    let mut source = Source::new(seed, options);
    let hidden = spec.hidden_size;
    let embedding = source.matrix(spec.vocab_size, hidden);
    let head = if options.tied_head { embedding.clone() } else { source.matrix(spec.vocab_size, hidden) };
    let layers = (0..spec.layers).map(|_| source.layer(spec)).collect();
    let final_norm = source.norm(hidden);
    let weights = ModelWeights { embedding, layers, final_norm, head, tied_head: options.tied_head };
    LoadedModel { spec: spec.clone(), weights }
}

/// The same model, but whose logits are NaN behind every place that sees `token`: its
/// embedding is NaN; the head stays as it was, on its own.
pub fn poisoned(mut model: LoadedModel, token: TokenId) -> LoadedModel {
    let weights = &mut model.weights;
    let mut bytes = weights.embedding.bytes().to_vec();
    let row = bytes.len() / weights.embedding.shape[0];
    // All bits set is a NaN in every format.
    bytes[token as usize * row..][..row].fill(0xff);
    weights.embedding.range = 0..bytes.len();
    weights.embedding.file = Arc::new(bytes);
    weights.tied_head = false;
    model
}

struct Noise(SplitMix64);

impl Noise {
    /// Uniform in -1..1.
    fn next(&mut self) -> f32 {
        2.0 * self.0.uniform() - 1.0
    }
}

struct Source {
    noise: Noise,
    options: RandomOptions,
}

impl Source {
    fn new(seed: u64, options: RandomOptions) -> Source {
        Source { noise: Noise(SplitMix64::new(seed)), options }
    }

    fn layer(&mut self, spec: &ModelSpec) -> LayerWeights {
        self.layer_reading(spec, spec.hidden_size)
    }

    /// A layer whose attention reads inputs of `attention_inputs` numbers.
    fn layer_reading(&mut self, spec: &ModelSpec, attention_inputs: usize) -> LayerWeights {
        let options = self.options;
        let made = LayerWeights::try_build(
            |role| options.has(role),
            |role| {
                let shape = role.shape(spec);
                Ok::<Tensor, Infallible>(match role {
                    LayerTensor::Weight(projection) if projection.is_qkv() => {
                        self.matrix(shape[0], attention_inputs)
                    }
                    LayerTensor::Weight(_) => self.matrix(shape[0], shape[1]),
                    LayerTensor::Bias(_) => self.tensor(shape, |noise| 0.5 * noise),
                    LayerTensor::AttentionNorm
                    | LayerTensor::MlpNorm
                    | LayerTensor::QueryNorm
                    | LayerTensor::KeyNorm => self.norm(shape[0]),
                })
            },
        );
        made.unwrap_or_else(|never| match never {})
    }

    /// Outputs of about the inputs' size: variance 2 / inputs.
    fn matrix(&mut self, outputs: usize, inputs: usize) -> Tensor {
        let scale = (6.0 / inputs as f32).sqrt();
        self.tensor(vec![outputs, inputs], |noise| scale * noise)
    }

    fn norm(&mut self, width: usize) -> Tensor {
        self.tensor(vec![width], |noise| 1.0 + 0.2 * noise)
    }

    fn tensor(&mut self, shape: Vec<usize>, number: impl Fn(f32) -> f32) -> Tensor {
        let dtype = self.options.dtype;
        let mut bytes: Vec<u8> = Vec::new();
        for _ in 0..shape.iter().product() {
            let number = number(self.noise.next());
            match dtype {
                Dtype::Bf16 => bytes.extend(half::bf16::from_f32(number).to_le_bytes()),
                Dtype::F16 => bytes.extend(half::f16::from_f32(number).to_le_bytes()),
                Dtype::F32 => bytes.extend(number.to_le_bytes()),
            }
        }
        let range = 0..bytes.len();
        Tensor { dtype, shape, file: Arc::new(bytes), range }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_weights_and_others_do_not() {
        let model = |seed| random_model(&small_spec(32), seed, RandomOptions::default());
        assert_eq!(model(1).weights.embedding.bytes(), model(1).weights.embedding.bytes());
        assert_ne!(model(1).weights.embedding.bytes(), model(2).weights.embedding.bytes());
    }

    #[test]
    fn a_poisoned_model_differs_in_one_row_of_its_embedding() {
        let model = random_model(&small_spec(32), 1, RandomOptions::default());
        let poisoned = poisoned(model.clone(), 5);
        let rows = |model: &LoadedModel| -> Vec<Vec<u8>> {
            model.weights.embedding.bytes().chunks(2 * 64).map(<[u8]>::to_vec).collect()
        };
        for (row, (before, after)) in rows(&model).iter().zip(&rows(&poisoned)).enumerate() {
            assert_eq!(before == after, row != 5, "row {row}");
        }
        assert_eq!(model.weights.head.bytes(), poisoned.weights.head.bytes());
    }

    #[test]
    fn tensors_have_the_shapes_and_formats_that_the_options_ask_for() {
        let options = RandomOptions {
            dtype: Dtype::F16,
            qkv_bias: true,
            head_norms: true,
            tied_head: false,
            ..RandomOptions::default()
        };
        let weights = random_model(&small_spec(32), 3, options).weights;
        let layer = &weights.layers[1];
        assert_eq!(layer.key.weight.shape, [32, 64]);
        assert_eq!(layer.key.bias.as_ref().unwrap().shape, [32]);
        assert_eq!(layer.query_norm.as_ref().unwrap().elements(), 16);
        assert!(layer.down.bias.is_none());
        assert_eq!(layer.down.weight.bytes().len(), 64 * 120 * 2);
        assert_ne!(weights.embedding.bytes(), weights.head.bytes());
    }
}
