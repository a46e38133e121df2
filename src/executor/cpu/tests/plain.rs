//! Forward passes in f64, a position at a time, straight from the formulas.

use crate::executor::cpu::packed::vector;
use crate::model::{
    BlockHead, Eagle3Head, FeatureNorm, Interface, LayerWeights, Linear, LoadedModel, ModelSpec, Tensor,
};
use crate::protocol::TokenId;

fn wide(tensor: &Tensor) -> Vec<f64> {
    vector(tensor).into_iter().map(f64::from).collect()
}

fn times(weight: &Tensor, x: &[f64]) -> Vec<f64> {
    let dot = |row: &[f64]| row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
    wide(weight).chunks(x.len()).map(dot).collect()
}

fn linear(layer: &Linear, x: &[f64]) -> Vec<f64> {
    let bias = layer.bias.as_ref().map_or_else(|| vec![0.0; layer.weight.shape[0]], wide);
    sum(&times(&layer.weight, x), &bias)
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

fn norm(x: &[f64], weight: &Tensor, epsilon: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(wide(weight)).map(|(x, weight)| x / (mean + epsilon).sqrt() * weight).collect()
}

fn row(matrix: &Tensor, token: TokenId) -> Vec<f64> {
    let width = matrix.shape[1];
    wide(matrix)[token as usize * width..][..width].to_vec()
}

/// A key and a value, all heads.
type KeyAndValue = (Vec<f64>, Vec<f64>);

/// Norm and rotation of heads at a position.
fn heads(spec: &ModelSpec, x: &[f64], weight: Option<&Tensor>, position: usize) -> Vec<f64> {
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

fn key_and_value(spec: &ModelSpec, layer: &LayerWeights, x: &[f64], position: usize) -> KeyAndValue {
    let key = heads(spec, &linear(&layer.key, x), layer.key_norm.as_ref(), position);
    (key, linear(&layer.value, x))
}

fn attend(
    spec: &ModelSpec,
    layer: &LayerWeights,
    x: &[f64],
    position: usize,
    seen: &[KeyAndValue],
) -> Vec<f64> {
    let (dim, group) = (spec.head_dim, spec.heads / spec.kv_heads);
    let query = heads(spec, &linear(&layer.query, x), layer.query_norm.as_ref(), position);
    let mut out = Vec::new();
    for (head, query) in query.chunks(dim).enumerate() {
        let part = head / group * dim..(head / group + 1) * dim;
        let score =
            |key: &[f64]| query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>() / (dim as f64).sqrt();
        let weights: Vec<f64> = seen.iter().map(|(key, _)| score(&key[part.clone()]).exp()).collect();
        let total: f64 = weights.iter().sum();
        out.extend(
            part.map(|d| seen.iter().zip(&weights).map(|((_, value), w)| w / total * value[d]).sum::<f64>()),
        );
    }
    linear(&layer.output, &out)
}

fn mlp(spec: &ModelSpec, layer: &LayerWeights, x: &[f64]) -> Vec<f64> {
    let normed = norm(x, &layer.mlp_norm, spec.rms_norm_eps.into());
    let gate = linear(&layer.gate, &normed).into_iter().zip(linear(&layer.up, &normed));
    let activation: Vec<f64> = gate.map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
    sum(x, &linear(&layer.down, &activation))
}

/// A model over one sequence.
pub struct PlainModel<'a> {
    model: &'a LoadedModel,
    /// Per layer and position.
    cache: Vec<Vec<KeyAndValue>>,
}

/// What a position gives.
pub struct PlainStep {
    /// The stream before each layer.
    pub streams: Vec<Vec<f64>>,
    pub logits: Vec<f64>,
}

impl<'a> PlainModel<'a> {
    pub fn new(model: &'a LoadedModel) -> PlainModel<'a> {
        PlainModel { model, cache: vec![Vec::new(); model.spec.layers] }
    }

    pub fn step(&mut self, token: TokenId) -> PlainStep {
        let LoadedModel { spec, weights } = self.model;
        let (position, epsilon) = (self.cache[0].len(), f64::from(spec.rms_norm_eps));
        let mut x = row(&weights.embedding, token);
        let mut streams = Vec::new();
        for (layer, cache) in weights.layers.iter().zip(&mut self.cache) {
            streams.push(x.clone());
            let normed = norm(&x, &layer.attention_norm, epsilon);
            cache.push(key_and_value(spec, layer, &normed, position));
            x = mlp(spec, layer, &sum(&x, &attend(spec, layer, &normed, position, cache)));
        }
        PlainStep { streams, logits: times(&weights.head, &norm(&x, &weights.final_norm, epsilon)) }
    }
}

/// What ties a head to its target.
struct PlainInterface<'a> {
    interface: &'a Interface,
    target: &'a LoadedModel,
    epsilon: f64,
}

impl PlainInterface<'_> {
    fn fuse(&self, streams: &[Vec<f64>], feature_norm: &FeatureNorm) -> Vec<f64> {
        let layers = self.interface.features.layers.as_ref().unwrap();
        let read: Vec<&Vec<f64>> = layers.iter().map(|&layer| &streams[layer]).collect();
        let all = match feature_norm {
            FeatureNorm::Raw => read.into_iter().flatten().copied().collect(),
            FeatureNorm::Joint(weight) => {
                let joined: Vec<f64> = read.into_iter().flatten().copied().collect();
                norm(&joined, weight, self.epsilon)
            }
            FeatureNorm::Each(weights) => {
                read.iter().zip(weights).flat_map(|(x, weight)| norm(x, weight, self.epsilon)).collect()
            }
        };
        times(&self.interface.fusion, &all)
    }

    fn embed(&self, token: TokenId) -> Vec<f64> {
        row(self.interface.embedding.as_ref().unwrap_or(&self.target.weights.embedding), token)
    }

    fn final_state(&self, x: &[f64]) -> Vec<f64> {
        norm(x, &self.interface.final_norm, self.epsilon)
    }

    /// Over the draft tokens.
    fn logits(&self, state: &[f64]) -> Vec<f64> {
        times(self.interface.output_head.as_ref().unwrap_or(&self.target.weights.head), state)
    }

    fn best(&self, logits: &[f64]) -> TokenId {
        let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
        self.interface.draft_to_target.as_ref().map_or(best as TokenId, |tokens| tokens[best])
    }
}

/// Greedy drafts: of each the token, the logits over the draft tokens, and what a confidence head
/// says.
pub type PlainDrafts = Vec<(TokenId, Vec<f64>, Option<f64>)>;

/// The greedy chain of `drafts` tokens behind `tokens`, whose streams before the last are `streams`.
pub fn eagle3_chain(
    head: &Eagle3Head,
    target: &LoadedModel,
    tokens: &[TokenId],
    streams: &[Vec<Vec<f64>>],
    drafts: usize,
) -> PlainDrafts {
    let epsilon = f64::from(head.spec.rms_norm_eps);
    let interface = PlainInterface { interface: &head.interface, target, epsilon };
    let mut cache = Vec::new();
    let mut made = PlainDrafts::new();
    let mut state = Vec::new();
    for position in 0..tokens.len() - 2 + drafts {
        if let Some(streams) = streams.get(position) {
            state = interface.fuse(streams, &head.feature_norm);
        }
        let behind = tokens.get(position + 1).copied();
        let token = behind.unwrap_or_else(|| made[position + 1 - tokens.len()].0);
        let normed = norm(&state, &head.interface.hidden_norm, epsilon);
        let embedded = norm(&interface.embed(token), &head.layer.attention_norm, epsilon);
        let input = [embedded, normed.clone()].concat();
        cache.push(key_and_value(&head.spec, &head.layer, &input, position));
        let residual = if head.norm_before_residual { &normed } else { &state };
        let attended = attend(&head.spec, &head.layer, &input, position, &cache);
        let out = mlp(&head.spec, &head.layer, &sum(residual, &attended));
        let last = interface.final_state(&out);
        if position + 2 >= tokens.len() {
            let logits = interface.logits(&last);
            made.push((interface.best(&logits), logits, None));
        }
        state = if head.norm_output { last } else { out };
    }
    made
}

/// The greedy block behind `tokens`, whose streams before the last are `streams`.
pub fn block_drafts(
    head: &BlockHead,
    target: &LoadedModel,
    tokens: &[TokenId],
    streams: &[Vec<Vec<f64>>],
) -> PlainDrafts {
    let (spec, epsilon) = (&head.spec, f64::from(head.spec.rms_norm_eps));
    let interface = PlainInterface { interface: &head.interface, target, epsilon };
    let anchor = tokens.len() - 1;
    let context: Vec<Vec<f64>> = streams[..anchor]
        .iter()
        .map(|streams| {
            norm(&interface.fuse(streams, &FeatureNorm::Raw), &head.interface.hidden_norm, epsilon)
        })
        .collect();
    let token_of = |slot| if slot == 0 { tokens[anchor] } else { head.mask_token };
    let mut block: Vec<Vec<f64>> =
        (0..head.block_tokens).map(|slot| interface.embed(token_of(slot))).collect();
    for layer in &head.layers {
        let normed: Vec<Vec<f64>> = block.iter().map(|x| norm(x, &layer.attention_norm, epsilon)).collect();
        let inputs = context.iter().chain(&normed).enumerate();
        let seen: Vec<KeyAndValue> =
            inputs.map(|(position, x)| key_and_value(spec, layer, x, position)).collect();
        for (slot, x) in block.iter_mut().enumerate() {
            let attended = attend(spec, layer, &normed[slot], anchor + slot, &seen);
            *x = mlp(spec, layer, &sum(x, &attended));
        }
    }
    let mut before = tokens[anchor];
    let mut made = PlainDrafts::new();
    for state in &block[usize::from(!head.sample_from_anchor)..] {
        let state = interface.final_state(state);
        let mut logits = interface.logits(&state);
        let markov = head.markov.as_ref().map(|markov| row(&markov.w1, before));
        if let (Some(head), Some(feature)) = (&head.markov, &markov) {
            logits = sum(&logits, &times(&head.w2, feature));
        }
        let confidence = head.confidence.as_ref().map(|confidence| {
            let input = [state, markov.unwrap_or_default()].concat();
            let bias = confidence.bias.as_ref().map_or(0.0, |bias| wide(bias)[0]);
            1.0 / (1.0 + (-times(&confidence.weight, &input)[0] - bias).exp())
        });
        before = interface.best(&logits);
        made.push((before, logits, confidence));
    }
    made
}
