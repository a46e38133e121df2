//! Models of real shapes with random weights, for benches.

#![allow(dead_code, reason = "each bench uses its own part")]

use std::sync::Arc;

use half::bf16;
use specserve::model::{
    Dtype, LayerWeights, Linear, LoadedModel, ModelSpec, ModelWeights, Rope, RopeScaling, Tensor, TensorBytes,
};

/// Longest context of any figure, in tokens.
pub const CONTEXT: usize = 4096;

/// A Llama of this shape; `heads` are query heads, KV heads and their width.
pub fn shape(vocab: usize, hidden: usize, mlp: usize, layers: usize, heads: [usize; 3]) -> ModelSpec {
    ModelSpec {
        model_type: "llama".to_owned(),
        vocab_size: vocab,
        hidden_size: hidden,
        intermediate_size: mlp,
        layers,
        heads: heads[0],
        kv_heads: heads[1],
        head_dim: heads[2],
        context_tokens_max: CONTEXT,
        rms_norm_eps: 1e-5,
        rope: Rope { theta: 500_000.0, scaling: RopeScaling::Default },
    }
}

/// A gigabyte of small random numbers that all tensors share.
pub fn numbers() -> TensorBytes {
    const PERIOD: usize = 3 << 20;
    let mut state = 0x1234_5678_9abc_def1u64;
    let period: Vec<u8> = (0..PERIOD)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let value = ((state >> 40) as f32 / 8_388_608.0 - 1.0) * 0.03;
            bf16::from_f32(value).to_le_bytes()
        })
        .collect();
    let mut all = Vec::with_capacity(1280 << 20);
    while all.len() < 1280 << 20 {
        all.extend_from_slice(&period);
    }
    Arc::new(all)
}

/// A tensor of this shape.
pub fn tensor(numbers: &TensorBytes, shape: &[usize]) -> Tensor {
    Tensor {
        dtype: Dtype::Bf16,
        shape: shape.to_vec(),
        file: Arc::clone(numbers),
        range: 0..2 * shape.iter().product::<usize>(),
    }
}

/// A layer of this shape whose attention reads `inputs` numbers.
pub fn layer(spec: &ModelSpec, inputs: usize, numbers: &TensorBytes) -> LayerWeights {
    let tensor = |shape: &[usize]| tensor(numbers, shape);
    let linear = |outputs: usize, inputs: usize| Linear { weight: tensor(&[outputs, inputs]), bias: None };
    let (hidden, mlp) = (spec.hidden_size, spec.intermediate_size);
    let (q, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    LayerWeights {
        attention_norm: tensor(&[hidden]),
        query: linear(q, inputs),
        key: linear(kv, inputs),
        value: linear(kv, inputs),
        query_norm: None,
        key_norm: None,
        output: linear(hidden, q),
        mlp_norm: tensor(&[hidden]),
        gate: linear(mlp, hidden),
        up: linear(mlp, hidden),
        down: linear(hidden, mlp),
    }
}

/// A model of this shape.
pub fn random_model(spec: &ModelSpec, numbers: &TensorBytes, tied_head: bool) -> LoadedModel {
    let tensor = |shape: &[usize]| tensor(numbers, shape);
    let hidden = spec.hidden_size;
    let weights = ModelWeights {
        embedding: tensor(&[spec.vocab_size, hidden]),
        layers: (0..spec.layers).map(|_| layer(spec, hidden, numbers)).collect(),
        final_norm: tensor(&[hidden]),
        head: tensor(&[spec.vocab_size, hidden]),
        tied_head,
    };
    LoadedModel { spec: spec.clone(), weights }
}
