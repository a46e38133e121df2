//! Weights of a model prepared for the CPU kernels: matrices packed, vectors widened to fp32.
#![forbid(unsafe_code)]

use crate::model::{LayerWeights, Linear, ModelSpec, Tensor};
use crate::protocol::TokenId;

use super::CpuError;
use super::arena::Arena;
use super::kernels::{InstructionSet, STEP};
use super::packed::{MatrixPlan, PackedMatrix, numbers, vector};

/// A linear layer, or several that share their input.
#[derive(Clone, Debug)]
pub(crate) struct PackedLinear {
    pub(crate) matrix: PackedMatrix,
    /// One per output, padding included.
    pub(crate) bias: Option<Vec<f32>>,
}

/// One layer.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) attention_norm: Vec<f32>,
    /// Query, key and value heads, in this order.
    pub(crate) qkv: PackedLinear,
    pub(crate) query_norm: Option<Vec<f32>>,
    pub(crate) key_norm: Option<Vec<f32>>,
    pub(crate) output: PackedLinear,
    pub(crate) mlp_norm: Vec<f32>,
    /// Panels of gate and up in turn.
    pub(crate) gate_up: PackedLinear,
    pub(crate) down: PackedLinear,
}

/// The layers of a model, in the arena that holds its matrices.
pub(crate) struct PackedLayers {
    pub(crate) arena: Arena,
    pub(crate) layers: Vec<Layer>,
}

/// A row for each token, looked up in the model's file: a copy would double the vocabulary's memory.
#[derive(Clone, Debug)]
pub(crate) struct Embedding(Tensor);

/// One layer's matrices, measured and not yet copied.
struct LayerPlan<'a> {
    qkv: MatrixPlan<'a>,
    output: MatrixPlan<'a>,
    gate_up: MatrixPlan<'a>,
    down: MatrixPlan<'a>,
}

impl<'a> LayerPlan<'a> {
    fn new(layer: &'a LayerWeights, set: InstructionSet) -> LayerPlan<'a> {
        let [gate, up] = layer.gate_up();
        LayerPlan {
            qkv: MatrixPlan::stacked(&layer.qkv().map(|linear| &linear.weight), set),
            output: MatrixPlan::stacked(&[&layer.output.weight], set),
            gate_up: MatrixPlan::alternating(&gate.weight, &up.weight, set),
            down: MatrixPlan::stacked(&[&layer.down.weight], set),
        }
    }

    fn bytes(&self) -> usize {
        self.qkv.bytes() + self.output.bytes() + self.gate_up.bytes() + self.down.bytes()
    }

    fn pack(&self, layer: &LayerWeights, arena: &mut Arena, threads: usize) -> Layer {
        let qkv = self.qkv.pack(arena, threads);
        let output = self.output.pack(arena, threads);
        let gate_up = self.gate_up.pack(arena, threads);
        let down = self.down.pack(arena, threads);
        let [gate, up] = layer.gate_up();
        Layer {
            attention_norm: vector(&layer.attention_norm),
            qkv: PackedLinear { bias: stacked_bias(&layer.qkv(), &qkv), matrix: qkv },
            query_norm: layer.query_norm.as_ref().map(vector),
            key_norm: layer.key_norm.as_ref().map(vector),
            output: PackedLinear { bias: stacked_bias(&[&layer.output], &output), matrix: output },
            mlp_norm: vector(&layer.mlp_norm),
            gate_up: PackedLinear { bias: alternating_bias(gate, up, &gate_up), matrix: gate_up },
            down: PackedLinear { bias: stacked_bias(&[&layer.down], &down), matrix: down },
        }
    }
}

impl PackedLayers {
    /// Packs layers of this shape for an instruction set, then the matrix `other`. What
    /// has been packed of the model's files is given back at once, lest a model should take its
    /// memory twice.
    pub(crate) fn new(
        spec: &ModelSpec,
        layers: &[LayerWeights],
        other: &Tensor,
        set: InstructionSet,
        threads: usize,
    ) -> Result<(PackedLayers, PackedLinear), CpuError> {
        check_shape(spec)?;
        let plans: Vec<LayerPlan<'_>> = layers.iter().map(|layer| LayerPlan::new(layer, set)).collect();
        let other_plan = MatrixPlan::stacked(&[other], set);
        let bytes = plans.iter().map(LayerPlan::bytes).sum::<usize>() + other_plan.bytes();
        let mut arena = Arena::new(bytes).map_err(CpuError::Memory)?;
        let layers = plans.iter().zip(layers).map(|(plan, layer)| {
            let packed = plan.pack(layer, &mut arena, threads);
            layer.tensors().for_each(|(_, tensor)| tensor.give_back());
            packed
        });
        let layers = layers.collect();
        let matrix = other_plan.pack(&mut arena, threads);
        other.give_back();
        Ok((PackedLayers { arena, layers }, PackedLinear { matrix, bias: None }))
    }
}

/// A matrix in an arena of its own.
pub(crate) struct PackedAlone {
    pub(crate) arena: Arena,
    pub(crate) linear: PackedLinear,
}

impl PackedAlone {
    pub(crate) fn new(tensor: &Tensor, set: InstructionSet, threads: usize) -> Result<PackedAlone, CpuError> {
        let plan = MatrixPlan::stacked(&[tensor], set);
        let mut arena = Arena::new(plan.bytes()).map_err(CpuError::Memory)?;
        let linear = PackedLinear { matrix: plan.pack(&mut arena, threads), bias: None };
        tensor.give_back();
        Ok(PackedAlone { arena, linear })
    }
}

impl Embedding {
    pub(crate) fn new(tensor: &Tensor) -> Embedding {
        Embedding(tensor.clone())
    }

    /// Writes a token's row to `out`, which is as wide.
    pub(crate) fn write(&self, token: TokenId, out: &mut [f32]) {
        let (token, width) = (token as usize, out.len());
        let row = numbers(&self.0, token * width..(token + 1) * width);
        out.iter_mut().zip(row).for_each(|(out, number)| *out = number);
    }
}

/// What the kernels need of a shape.
fn check_shape(spec: &ModelSpec) -> Result<(), CpuError> {
    for (name, value) in [("hidden_size", spec.hidden_size), ("head_dim", spec.head_dim)] {
        if value == 0 || !value.is_multiple_of(STEP) {
            return Err(CpuError::Unsupported(format!("{name} is {value}, not a multiple of {STEP}")));
        }
    }
    if spec.kv_heads == 0 || !spec.heads.is_multiple_of(spec.kv_heads) {
        let (heads, kv_heads) = (spec.heads, spec.kv_heads);
        return Err(CpuError::Unsupported(format!(
            "{heads} query heads do not divide among {kv_heads} KV heads"
        )));
    }
    Ok(())
}

/// Biases one after the other, zeros where a layer has none; `None` if none has.
fn stacked_bias(linears: &[&Linear], matrix: &PackedMatrix) -> Option<Vec<f32>> {
    linears.iter().any(|linear| linear.bias.is_some()).then(|| {
        let mut bias: Vec<f32> = linears.iter().flat_map(|linear| bias_or_zeros(linear)).collect();
        bias.resize(matrix.padded_outputs(), 0.0);
        bias
    })
}

/// Biases of two layers whose panels alternate.
fn alternating_bias(first: &Linear, second: &Linear, matrix: &PackedMatrix) -> Option<Vec<f32>> {
    (first.bias.is_some() || second.bias.is_some()).then(|| {
        let panel = matrix.panel_outputs();
        let (first, second) = (bias_or_zeros(first), bias_or_zeros(second));
        let mut bias = vec![0.0; matrix.padded_outputs()];
        for (panels, (first, second)) in
            bias.chunks_mut(2 * panel).zip(first.chunks(panel).zip(second.chunks(panel)))
        {
            panels[..first.len()].copy_from_slice(first);
            panels[panel..panel + second.len()].copy_from_slice(second);
        }
        bias
    })
}

fn bias_or_zeros(linear: &Linear) -> Vec<f32> {
    linear.bias.as_ref().map_or_else(|| vec![0.0; linear.weight.shape[0]], vector)
}
