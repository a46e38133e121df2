//! A plain fp64 forward pass of models and draft heads.

use super::super::plan;
use crate::model::{BlockHead, DraftHead, Eagle3Head, LayerWeights, Linear, LoadedModel, ModelSpec, Tensor};

fn numbers(tensor: &Tensor) -> Vec<f64> {
    plan::numbers(tensor).collect()
}

/// A row of a matrix.
pub(super) fn row(matrix: &Tensor, index: usize) -> Vec<f64> {
    let columns = matrix.shape[1];
    plan::numbers(matrix).skip(index * columns).take(columns).collect()
}

fn times(linear: &Linear, x: &[f64]) -> Vec<f64> {
    rows_times(&linear.weight, x)
}

fn rows_times(weights: &Tensor, x: &[f64]) -> Vec<f64> {
    numbers(weights).chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

fn norm(x: &[f64], weight: &Tensor, eps: f32) -> Vec<f64> {
    let scale = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + f64::from(eps)).sqrt();
    x.iter().zip(numbers(weight)).map(|(x, w)| x * scale * w).collect()
}

fn rotate(head: &mut [f64], position: usize, frequencies: &[f64]) {
    let half = frequencies.len();
    for (pair, frequency) in frequencies.iter().enumerate() {
        let (sine, cosine) = (position as f64 * frequency).sin_cos();
        let (low, high) = (head[pair], head[pair + half]);
        head[pair] = low * cosine - high * sine;
        head[pair + half] = high * cosine + low * sine;
    }
}

/// Queries or keys of an input: normalised if there is a norm, and rotated.
fn rotated(
    spec: &ModelSpec,
    linear: &Linear,
    head_norm: Option<&Tensor>,
    x: &[f64],
    position: usize,
) -> Vec<f64> {
    let frequencies = spec.rope.inverse_frequencies(spec.head_dim);
    let mut heads = times(linear, x);
    for head in heads.chunks_exact_mut(spec.head_dim) {
        if let Some(weight) = head_norm {
            head.copy_from_slice(&norm(head, weight, spec.rms_norm_eps));
        }
        rotate(head, position, &frequencies);
    }
    heads
}

/// Keys and values of a layer.
#[derive(Clone, Default)]
struct Cache {
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
}

impl Cache {
    fn push(&mut self, spec: &ModelSpec, layer: &LayerWeights, x: &[f64], position: usize) {
        self.keys.push(rotated(spec, &layer.key, layer.key_norm.as_ref(), x, position));
        self.values.push(times(&layer.value, x));
    }

    /// What a query gets from all of it.
    fn attend(&self, spec: &ModelSpec, query: &[f64]) -> Vec<f64> {
        let (dim, group) = (spec.head_dim, spec.heads / spec.kv_heads);
        let mut out = Vec::new();
        for (head, query) in query.chunks_exact(dim).enumerate() {
            let part = head / group * dim..(head / group + 1) * dim;
            let dot = |key: &Vec<f64>| query.iter().zip(&key[part.clone()]).map(|(q, k)| q * k).sum::<f64>();
            let scores: Vec<f64> =
                self.keys.iter().map(|key| (dot(key) / (dim as f64).sqrt()).exp()).collect();
            let total: f64 = scores.iter().sum();
            for i in part.clone() {
                let sum = scores.iter().zip(&self.values).map(|(s, value)| s * value[i]).sum::<f64>();
                out.push(sum / total);
            }
        }
        out
    }
}

/// The attention's output for an input.
fn attention(spec: &ModelSpec, layer: &LayerWeights, x: &[f64], position: usize, cache: &Cache) -> Vec<f64> {
    let query = rotated(spec, &layer.query, layer.query_norm.as_ref(), x, position);
    times(&layer.output, &cache.attend(spec, &query))
}

/// Adds the MLP's output to its input.
fn add_mlp(spec: &ModelSpec, layer: &LayerWeights, x: &mut [f64]) {
    let normed = norm(x, &layer.mlp_norm, spec.rms_norm_eps);
    let (gate, up) = (times(&layer.gate, &normed), times(&layer.up, &normed));
    let inner: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
    add(x, &times(&layer.down, &inner));
}

fn add(x: &mut [f64], more: &[f64]) {
    x.iter_mut().zip(more).for_each(|(x, more)| *x += more);
}

/// The residual stream of each token as it enters each layer, and as it leaves the last.
pub(super) fn streams(model: &LoadedModel, tokens: &[usize]) -> Vec<Vec<Vec<f64>>> {
    let (spec, weights) = (&model.spec, &model.weights);
    let embedded = tokens.iter().map(|&token| row(&weights.embedding, token)).collect();
    let mut streams: Vec<Vec<Vec<f64>>> = vec![embedded];
    for layer in &weights.layers {
        let mut cache = Cache::default();
        let mut leaving = streams.last().expect("the embedding").clone();
        for (position, x) in leaving.iter_mut().enumerate() {
            let normed = norm(x, &layer.attention_norm, spec.rms_norm_eps);
            cache.push(spec, layer, &normed, position);
            add(x, &attention(spec, layer, &normed, position, &cache));
            add_mlp(spec, layer, x);
        }
        streams.push(leaving);
    }
    streams
}

/// Logits after the last of `tokens`.
pub(super) fn logits(model: &LoadedModel, tokens: &[usize]) -> Vec<f64> {
    let streams = streams(model, tokens);
    let last = streams.last().and_then(|leaving| leaving.last()).expect("at least one token");
    rows_times(&model.weights.head, &norm(last, &model.weights.final_norm, model.spec.rms_norm_eps))
}

/// The fused hidden states of each token, from those that the head reads.
pub(super) fn fused(head: &DraftHead, streams: &[Vec<Vec<f64>>]) -> Vec<Vec<f64>> {
    let interface = head.interface();
    let layers = interface.features.layers.as_ref().expect("the head lists them");
    let features = |token: usize| -> Vec<f64> {
        layers.iter().flat_map(|&layer| streams[layer][token].iter().copied()).collect()
    };
    (0..streams[0].len()).map(|token| rows_times(&interface.fusion, &features(token))).collect()
}

/// The output and logits of an EAGLE-3 pass at the last row: `fused` has one vector a row, and
/// `embedded` that of the token after it.
pub(super) fn eagle3(head: &Eagle3Head, fused: &[Vec<f64>], embedded: &[Vec<f64>]) -> (Vec<f64>, Vec<f64>) {
    let Eagle3Head { spec, interface, layer, .. } = head;
    let eps = spec.rms_norm_eps;
    let mut cache = Cache::default();
    let mut output = Vec::new();
    for (position, (g, token)) in fused.iter().zip(embedded).enumerate() {
        let x = [norm(token, &layer.attention_norm, eps), norm(g, &interface.hidden_norm, eps)].concat();
        cache.push(spec, layer, &x, position);
        output.clone_from(g);
        add(&mut output, &attention(spec, layer, &x, position, &cache));
        add_mlp(spec, layer, &mut output);
    }
    let own = interface.output_head.as_ref().expect("its own output head");
    let logits = rows_times(own, &norm(&output, &interface.final_norm, eps));
    (output, logits)
}

/// What a DSpark head says of a slot.
pub(super) struct Slot {
    pub logits: Vec<f64>,
    pub confidence: f64,
}

/// The slots of a DSpark pass. `fused` has one vector for each token before the anchor, `embedded`
/// that of the anchor and the masks, and `previous` the token before each slot's. `output_head` is
/// the target's.
pub(super) fn dspark(
    head: &BlockHead,
    fused: &[Vec<f64>],
    embedded: &[Vec<f64>],
    previous: &[usize],
    output_head: &Tensor,
) -> Vec<Slot> {
    let (spec, eps) = (&head.spec, head.spec.rms_norm_eps);
    let context: Vec<Vec<f64>> =
        fused.iter().map(|fused| norm(fused, &head.interface.hidden_norm, eps)).collect();
    let mut block = embedded.to_vec();
    for layer in &head.layers {
        let normed: Vec<Vec<f64>> = block.iter().map(|x| norm(x, &layer.attention_norm, eps)).collect();
        let mut cache = Cache::default();
        for (position, x) in context.iter().chain(&normed).enumerate() {
            cache.push(spec, layer, x, position);
        }
        for (slot, (x, normed)) in block.iter_mut().zip(&normed).enumerate() {
            add(x, &attention(spec, layer, normed, context.len() + slot, &cache));
            add_mlp(spec, layer, x);
        }
    }
    let slots = block.iter().zip(previous);
    slots
        .map(|(x, &token)| slot(head, &norm(x, &head.interface.final_norm, eps), token, output_head))
        .collect()
}

fn slot(head: &BlockHead, output: &[f64], previous: usize, output_head: &Tensor) -> Slot {
    let markov = head.markov.as_ref().expect("a Markov head");
    let feature = row(&markov.w1, previous);
    let mut logits = rows_times(output_head, output);
    add(&mut logits, &rows_times(&markov.w2, &feature));
    let confidence = head.confidence.as_ref().expect("a confidence head");
    let mut sum = rows_times(&confidence.weight, &[output, &feature].concat());
    add(&mut sum, &numbers(confidence.bias.as_ref().expect("a bias")));
    Slot { logits, confidence: 1.0 / (1.0 + (-sum[0]).exp()) }
}
