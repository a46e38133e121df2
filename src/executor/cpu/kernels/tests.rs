//! Every path against f64.

use super::*;
use crate::executor::cpu::each_set::on_each_set;
use crate::protocol::BlockId;

on_each_set!(
    matrix_products_agree_with_f64,
    a_row_of_a_product_is_the_same_bits_in_any_batch,
    norms_agree_with_f64,
    swiglu_agrees_with_f64_and_keeps_nan,
    attention_agrees_with_f64,
);

/// Uneven numbers between -1 and 1.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
}

fn close(ours: f32, exact: f64, scale: f64) -> bool {
    (f64::from(ours) - exact).abs() <= 2e-6 * scale.max(1.0)
}

struct Matrices {
    panels: usize,
    inputs: usize,
    lanes: usize,
    weights: Vec<f32>,
    words: Vec<f32>,
    format: WeightFormat,
}

impl Matrices {
    fn new(set: InstructionSet, format: WeightFormat, panels: usize, inputs: usize) -> Matrices {
        let lanes = set.lanes();
        let outputs = panels * 2 * lanes;
        let mut weights = numbers(outputs * inputs, 1);
        let mut words = vec![0.0f32; panels * inputs * format.words_per_input(lanes)];
        if format == WeightFormat::Bf16 {
            weights.iter_mut().for_each(|weight| *weight = half::bf16::from_f32(*weight).to_f32());
        }
        for output in 0..outputs {
            let (panel, within) = (output / (2 * lanes), output % (2 * lanes));
            for input in 0..inputs {
                let weight = weights[output * inputs + input];
                let first = (panel * inputs + input) * format.words_per_input(lanes);
                match format {
                    WeightFormat::F32 => words[first + within] = weight,
                    WeightFormat::Bf16 => {
                        let word = &mut words[first + within % lanes];
                        let bits = (weight.to_bits() >> 16) << (16 * (within / lanes));
                        *word = f32::from_bits(word.to_bits() | bits);
                    }
                }
            }
        }
        Matrices { panels, inputs, lanes, weights, words, format }
    }

    fn outputs(&self) -> usize {
        self.panels * 2 * self.lanes
    }

    fn product(&self, set: InstructionSet, x: &[f32], rows: usize, accumulate: bool) -> Vec<f32> {
        let mut out = vec![1.0; rows * self.outputs()];
        let job = Matmul {
            format: self.format,
            weights: self.words.as_ptr(),
            inputs: self.inputs,
            panels: 0..self.panels,
            x: x.as_ptr(),
            x_stride: self.inputs,
            rows,
            out: out.as_mut_ptr(),
            out_stride: self.outputs(),
            accumulate,
        };
        // SAFETY: the set is available; all buffers have the sizes that the job names.
        unsafe { matmul(set, &job) };
        out
    }

    fn exact(&self, x: &[f32], output: usize) -> f64 {
        let weights = &self.weights[output * self.inputs..][..self.inputs];
        weights.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum()
    }
}

fn matrix_products_agree_with_f64(set: InstructionSet) {
    for format in [WeightFormat::Bf16, WeightFormat::F32] {
        let matrices = Matrices::new(set, format, 7, 37);
        let x = numbers(13 * 37, 2);
        for rows in 1..=13 {
            let out = matrices.product(set, &x, rows, true);
            for (index, &ours) in out.iter().enumerate() {
                let (row, output) = (index / matrices.outputs(), index % matrices.outputs());
                let exact = 1.0 + matrices.exact(&x[row * 37..], output);
                assert!(close(ours, exact, 10.0), "{set:?} {format:?} {rows} rows: {ours} for {exact}");
            }
        }
    }
}

fn a_row_of_a_product_is_the_same_bits_in_any_batch(set: InstructionSet) {
    let matrices = Matrices::new(set, WeightFormat::Bf16, 5, 384);
    let x = numbers(32 * 384, 3);
    let all = matrices.product(set, &x, 32, false);
    for row in 0..32 {
        let alone = matrices.product(set, &x[row * 384..], 1, false);
        assert_eq!(alone, all[row * matrices.outputs()..][..matrices.outputs()], "{set:?}, row {row}");
    }
}

fn norms_agree_with_f64(set: InstructionSet) {
    for width in [16, 48, 384] {
        let (x, weight) = (numbers(width, 4), numbers(width, 5));
        let mut out = vec![0.0; width];
        let job = Norm { x: x.as_ptr(), out: out.as_mut_ptr(), weight: &weight, epsilon: 1e-5 };
        // SAFETY: the set is available; all three have `width` floats.
        unsafe { rms_norm(set, &job) };
        let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / width as f64;
        for i in 0..width {
            let exact = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(weight[i]);
            assert!(close(out[i], exact, 1.0), "{set:?}: {} for {exact}", out[i]);
        }
    }
}

fn swiglu_agrees_with_f64_and_keeps_nan(set: InstructionSet) {
    let panel = 2 * set.lanes();
    let mut gate_up: Vec<f32> = numbers(4 * panel, 6).iter().map(|x| 30.0 * x).collect();
    gate_up[1] = f32::NAN;
    (gate_up[2], gate_up[3]) = (-200.0, 200.0);
    let mut out = vec![0.0; 2 * panel];
    let job = SwiGlu { gate_up: gate_up.as_ptr(), out: out.as_mut_ptr(), pairs: 2 };
    // SAFETY: the set is available; four panels in, two out.
    unsafe { swiglu(set, &job) };
    assert!(out[1].is_nan(), "{set:?}");
    for i in (0..2 * panel).filter(|&i| i != 1) {
        let from = i / panel * 2 * panel + i % panel;
        let (gate, up) = (f64::from(gate_up[from]), f64::from(gate_up[from + panel]));
        let exact = gate / (1.0 + (-gate).exp()) * up;
        assert!(close(out[i], exact, exact.abs()), "{set:?}: {} for {exact}", out[i]);
    }
}

fn attention_agrees_with_f64(set: InstructionSet) {
    const DIM: usize = 32;
    const BLOCK: usize = 16;
    let blocks = [3, 0, 2, 1].map(BlockId);
    let mut cache = vec![f32::NAN; 4 * 2 * DIM * BLOCK];
    let (keys, values) = (numbers(60 * DIM, 7), numbers(60 * DIM, 8));
    for slot in 0..60 {
        let block = &mut cache[blocks[slot / BLOCK].index() * 2 * DIM * BLOCK..];
        for dim in 0..DIM {
            block[dim * BLOCK + slot % BLOCK] = keys[slot * DIM + dim];
            block[(BLOCK + slot % BLOCK) * DIM + dim] = values[slot * DIM + dim];
        }
    }
    let tail = [52, 55, 59];
    let seen: [(usize, &[u32]); QUERIES_MAX] =
        [(1, &[]), (16, &[]), (17, &[]), (50, &tail), (60, &[]), (50, &tail[..1])];
    let x = numbers(QUERIES_MAX * DIM, 9);
    for count in 1..=QUERIES_MAX {
        let mut out = vec![0.0f32; QUERIES_MAX * DIM];
        let mut scores = vec![0.0; QUERIES_MAX * 64];
        let queries: Vec<Query<'_>> = (0..count)
            .map(|q| Query {
                query: x[q * DIM..].as_ptr(),
                out: out[q * DIM..].as_mut_ptr(),
                prefix: seen[q].0,
                tail: seen[q].1,
            })
            .collect();
        let tile = AttentionTile {
            queries: &queries,
            blocks: &blocks,
            cache: cache.as_ptr(),
            block_stride: 2 * DIM * BLOCK,
            block_tokens: BLOCK,
            head_dim: DIM,
            scale: 0.5,
            scores: scores.as_mut_ptr(),
            scores_stride: 64,
        };
        // SAFETY: the set is available; blocks, queries and scores are as the tile says.
        unsafe { attend(set, &tile) };
        for q in 0..count {
            let slots: Vec<usize> = (0..seen[q].0).chain(seen[q].1.iter().map(|&s| s as usize)).collect();
            let exact = exact_attention(&x[q * DIM..][..DIM], &keys, &values, &slots);
            for dim in 0..DIM {
                let ours = out[q * DIM + dim];
                assert!(close(ours, exact[dim], 1.0), "{set:?} {count} queries: {ours} for {}", exact[dim]);
            }
        }
    }
}

fn exact_attention(query: &[f32], keys: &[f32], values: &[f32], slots: &[usize]) -> Vec<f64> {
    let dim = query.len();
    let score = |slot: usize| -> f64 {
        let key = &keys[slot * dim..][..dim];
        0.5 * query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>()
    };
    let weights: Vec<f64> = slots.iter().map(|&slot| score(slot).exp()).collect();
    let total: f64 = weights.iter().sum();
    let value = |d: usize| {
        slots.iter().zip(&weights).map(move |(&s, w)| w * f64::from(values[s * dim + d])).sum::<f64>()
    };
    (0..dim).map(|d| value(d) / total).collect()
}
