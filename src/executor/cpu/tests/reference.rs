//! A plain f64 forward pass, and the executor against it on every variant of a model.

use super::*;
use crate::executor::cpu::each_set::on_each_set;
use crate::executor::cpu::packed::vector;
use crate::model::{Dtype, LayerWeights, Linear, Tensor};

fn wide(tensor: &Tensor) -> Vec<f64> {
    vector(tensor).into_iter().map(f64::from).collect()
}

fn linear(layer: &Linear, x: &[f64]) -> Vec<f64> {
    let weight = wide(&layer.weight);
    let bias = layer.bias.as_ref().map_or_else(|| vec![0.0; layer.weight.shape[0]], wide);
    let dot = |row: &[f64]| row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
    weight.chunks(x.len()).zip(bias).map(|(row, bias)| dot(row) + bias).collect()
}

fn norm(x: &[f64], weight: &Tensor, epsilon: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(wide(weight)).map(|(x, weight)| x / (mean + epsilon).sqrt() * weight).collect()
}

struct Reference<'a> {
    model: &'a LoadedModel,
    /// Per layer and position: keys and values of all heads.
    cache: Vec<Vec<(Vec<f64>, Vec<f64>)>>,
}

impl Reference<'_> {
    fn heads(&self, x: Vec<f64>, weight: Option<&Tensor>, position: usize) -> Vec<f64> {
        let spec = &self.model.spec;
        let frequencies = spec.rope.inverse_frequencies(spec.head_dim);
        let half = spec.head_dim / 2;
        let rotated = x.chunks(spec.head_dim).flat_map(|head| {
            let head = weight.map_or(head.to_vec(), |weight| norm(head, weight, spec.rms_norm_eps.into()));
            let angle = |i: usize| frequencies[i % half] * position as f64;
            let partner = |i: usize| if i < half { -head[i + half] } else { head[i - half] };
            (0..2 * half).map(|i| head[i] * angle(i).cos() + partner(i) * angle(i).sin()).collect::<Vec<_>>()
        });
        rotated.collect()
    }

    fn attention(&mut self, index: usize, layer: &LayerWeights, x: &[f64], position: usize) -> Vec<f64> {
        let spec = &self.model.spec;
        let (dim, group) = (spec.head_dim, spec.heads / spec.kv_heads);
        let query = self.heads(linear(&layer.query, x), layer.query_norm.as_ref(), position);
        let key = self.heads(linear(&layer.key, x), layer.key_norm.as_ref(), position);
        self.cache[index].push((key, linear(&layer.value, x)));
        let mut out = Vec::new();
        for (head, query) in query.chunks(dim).enumerate() {
            let part = head / group * dim..(head / group + 1) * dim;
            let score =
                |key: &[f64]| query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>() / (dim as f64).sqrt();
            let weights: Vec<f64> =
                self.cache[index].iter().map(|(key, _)| score(&key[part.clone()]).exp()).collect();
            let total: f64 = weights.iter().sum();
            out.extend(part.map(|d| {
                self.cache[index]
                    .iter()
                    .zip(&weights)
                    .map(|((_, value), w)| w / total * value[d])
                    .sum::<f64>()
            }));
        }
        linear(&layer.output, &out)
    }

    fn step(&mut self, token: TokenId, position: usize) -> Vec<f64> {
        let model = self.model;
        let (hidden, epsilon) = (model.spec.hidden_size, f64::from(model.spec.rms_norm_eps));
        let mut x = wide(&model.weights.embedding)[token as usize * hidden..][..hidden].to_vec();
        for (index, layer) in model.weights.layers.iter().enumerate() {
            let attention = self.attention(index, layer, &norm(&x, &layer.attention_norm, epsilon), position);
            x.iter_mut().zip(attention).for_each(|(x, add)| *x += add);
            let normed = norm(&x, &layer.mlp_norm, epsilon);
            let gate = linear(&layer.gate, &normed).into_iter().zip(linear(&layer.up, &normed));
            let activation: Vec<f64> = gate.map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
            x.iter_mut().zip(linear(&layer.down, &activation)).for_each(|(x, add)| *x += add);
        }
        let head = Linear { weight: model.weights.head.clone(), bias: None };
        linear(&head, &norm(&x, &model.weights.final_norm, epsilon))
    }
}

on_each_set!(logits_agree_with_an_f64_forward_on_every_variant);

fn logits_agree_with_an_f64_forward_on_every_variant(set: InstructionSet) {
    let plain = RandomOptions::default();
    let variants = [
        plain,
        RandomOptions { qkv_bias: true, ..plain },
        RandomOptions { head_norms: true, tied_head: false, dtype: Dtype::F16, ..plain },
        RandomOptions { qkv_bias: true, other_bias: true, dtype: Dtype::F32, ..plain },
    ];
    let tokens = text(3, 37);
    for (seed, variant) in variants.into_iter().enumerate() {
        let model = random_model(&small_spec(VOCAB), seed as u64, variant);
        let mut reference = Reference { model: &model, cache: vec![Vec::new(); model.spec.layers] };
        let steps = tokens.iter().enumerate().map(|(position, &token)| reference.step(token, position));
        let expected = steps.last().unwrap();
        let largest = expected.iter().fold(0.0f64, |a, b| a.max(b.abs()));
        assert!(largest > 0.5, "logits that are all alike would show nothing");
        let mut executor = CpuExecutor::with_instruction_set(options(2), model.clone(), None, set).unwrap();
        let logits = executor.logits(ModelRole::Target, &input(&[5, 0, 9], &tokens, 0)).unwrap();
        for (ours, expected) in logits.iter().zip(&expected) {
            let error = (f64::from(*ours) - expected).abs();
            assert!(error < 1e-4 * largest.max(1.0), "{set:?} {variant:?}: {ours} for {expected}");
        }
    }
}
