//! All tensors of the inflated model, by their Hugging Face names.

use super::super::{LayerTensor, LayerWeights, LoadedModel, ModelWeights, Projection, Tensor};
use super::grown::{Grown, HeadPlace, to_bf16};
use super::matrix::{ColumnRun, Fill, Matrix, RowSource, number_at};

/// The final norm's weight of the constant channel: so small that a head tied to the
/// embedding, which holds the constant for real tokens, adds nothing that matters to them.
const CONSTANT_WEIGHT: f32 = 1e-5;
/// The head's weight of new tokens for the constant channel. Their logits are below -1,000 as
/// long as the root mean square of the residual stream is below 10,000.
const PUSH: f64 = -1e15;

/// A tensor of the result.
pub(super) struct PlannedTensor {
    /// Its Hugging Face name.
    pub name: String,
    /// Its contents.
    pub contents: Contents,
}

/// What a tensor is made of.
pub(super) enum Contents {
    /// bf16, made row by row.
    Matrix(Matrix),
    /// fp32 `[length]`: norms.
    F32(Vec<f32>),
    /// bf16 `[length]`, all zero: biases.
    Zeros(usize),
}

impl PlannedTensor {
    /// How many numbers it has.
    pub fn numbers(&self) -> u64 {
        self.shape().iter().map(|&n| n as u64).product()
    }

    /// Its shape.
    pub fn shape(&self) -> Vec<usize> {
        match &self.contents {
            Contents::Matrix(matrix) => vec![matrix.rows.len(), matrix.columns],
            Contents::F32(numbers) => vec![numbers.len()],
            Contents::Zeros(len) => vec![*len],
        }
    }
}

/// Parameters of a model; a tied head counts once.
pub(super) fn parameters(model: &LoadedModel) -> u64 {
    let weights = &model.weights;
    let layers = weights.layers.iter().flat_map(LayerWeights::tensors);
    let layers: usize = layers.map(|(_, tensor)| tensor.elements()).sum();
    let head = if weights.tied_head { 0 } else { weights.head.elements() };
    (weights.embedding.elements() + head + weights.final_norm.elements() + layers) as u64
}

/// The tensors in the order in which they are written.
pub(super) fn tensors(weights: &ModelWeights, grown: &Grown) -> Vec<PlannedTensor> {
    let planner = Planner { grown };
    let mut all = vec![PlannedTensor {
        name: "model.embed_tokens.weight".to_owned(),
        contents: Contents::Matrix(planner.embedding(&weights.embedding)),
    }];
    for layer in 0..grown.to.layers {
        all.extend(planner.layer(layer, weights.layers.get(layer)));
    }
    all.push(PlannedTensor {
        name: "model.norm.weight".to_owned(),
        contents: planner.norm(Some(&weights.final_norm), CONSTANT_WEIGHT),
    });
    if !grown.tied_head {
        all.push(PlannedTensor {
            name: "lm_head.weight".to_owned(),
            contents: Contents::Matrix(planner.head(&weights.head)),
        });
    }
    for (index, tensor) in all.iter_mut().enumerate() {
        if let Contents::Matrix(matrix) = &mut tensor.contents {
            matrix.seed = (index as u64 + 1) << 44;
        }
    }
    all
}

struct Planner<'a> {
    grown: &'a Grown,
}

impl Planner<'_> {
    /// Rows of tokens: the source's, then new ones. With a tied head, new tokens are pushed
    /// down here.
    fn embedding(&self, source: &Tensor) -> Matrix {
        let new = if self.grown.tied_head { self.pushed_row() } else { RowSource::New(Fill::Random) };
        let constant = self.grown.constant.map(|value| to_bf16(f64::from(value)));
        Matrix { constant: self.channel(constant), ..self.token_rows(source, new, Fill::Zero) }
    }

    fn head(&self, source: &Tensor) -> Matrix {
        let constant = self.grown.constant.map(|_| 0);
        Matrix {
            constant: self.channel(constant),
            ..self.token_rows(source, self.pushed_row(), Fill::Random)
        }
    }

    fn pushed_row(&self) -> RowSource {
        RowSource::Pushed(to_bf16(PUSH))
    }

    fn channel(&self, value: Option<u16>) -> Option<(usize, u16)> {
        value.map(|value| (self.grown.from.hidden_size, value))
    }

    fn token_rows(&self, source: &Tensor, new: RowSource, fill: Fill) -> Matrix {
        let Grown { from, to, .. } = self.grown;
        let rows =
            (0..to.vocab_size).map(|row| if row < from.vocab_size { RowSource::Row(row) } else { new });
        self.matrix(Some(source), rows.collect(), to.hidden_size, self.residual_columns(), fill)
    }

    /// A layer's tensors: norms, weights, biases. Seeds derive from the index of a tensor, so
    /// the order decides the bytes that are written.
    fn layer(&self, index: usize, source: Option<&LayerWeights>) -> Vec<PlannedTensor> {
        let mut roles: Vec<LayerTensor> =
            LayerTensor::ALL.into_iter().filter(|&role| self.has(role)).collect();
        roles.sort_by_key(|role| match role {
            LayerTensor::Weight(_) => 1,
            LayerTensor::Bias(_) => 2,
            _ => 0,
        });
        let planned = roles.into_iter().map(|role| PlannedTensor {
            name: format!("model.layers.{index}.{}", role.name()),
            contents: self.contents(role, source.and_then(|layer| layer.tensor(role))),
        });
        planned.collect()
    }

    /// Whether the layers of the result have a tensor of this role.
    fn has(&self, role: LayerTensor) -> bool {
        match role {
            LayerTensor::Bias(projection) => self.grown.to.qkv_bias && projection.is_qkv(),
            _ => !role.is_optional(),
        }
    }

    fn contents(&self, role: LayerTensor, source: Option<&Tensor>) -> Contents {
        match role {
            LayerTensor::Weight(projection) => Contents::Matrix(self.projection(projection, source)),
            LayerTensor::Bias(projection) => Contents::Zeros(self.outputs(projection)),
            LayerTensor::AttentionNorm
            | LayerTensor::MlpNorm
            | LayerTensor::QueryNorm
            | LayerTensor::KeyNorm => self.norm(source, 0.0),
        }
    }

    fn projection(&self, projection: Projection, source: Option<&Tensor>) -> Matrix {
        match projection {
            Projection::Query => self.query(source),
            Projection::Key => self.key(source),
            Projection::Value => self.value(source),
            Projection::Output => self.output(source),
            Projection::Gate | Projection::Up => self.widened(source),
            Projection::Down => self.down(source),
        }
    }

    /// Rows of a projection of the result, and so the length of its bias.
    fn outputs(&self, projection: Projection) -> usize {
        let to = &self.grown.to;
        match projection {
            Projection::Query => to.heads * to.head_dim,
            Projection::Key | Projection::Value => to.kv_heads * to.head_dim,
            Projection::Output | Projection::Down => to.hidden_size,
            Projection::Gate | Projection::Up => to.intermediate_size,
        }
    }

    /// Norm weights; `constant` is that of the constant channel, which only the head reads.
    fn norm(&self, source: Option<&Tensor>, constant: f32) -> Contents {
        let mut numbers = vec![1.0; self.grown.to.hidden_size];
        if let Some(source) = source {
            let stored = source.bytes().chunks_exact(source.dtype.bytes());
            for (number, bytes) in numbers.iter_mut().zip(stored) {
                *number = (number_at(source.dtype, bytes) * self.grown.norm_scale()) as f32;
            }
        }
        if self.grown.constant.is_some() {
            numbers[self.grown.from.hidden_size] = constant;
        }
        Contents::F32(numbers)
    }

    /// Queries: what is new in a head meets keys of 0, what is new beside it is not read.
    fn query(&self, source: Option<&Tensor>) -> Matrix {
        let rows =
            self.head_rows(&self.grown.query_heads, self.grown.to.heads, Fill::Random, Spread::Rotated);
        let matrix = self.reading_residual(source, rows);
        Matrix { scale: self.grown.query_scale(), ..matrix }
    }

    fn key(&self, source: Option<&Tensor>) -> Matrix {
        let rows = self.head_rows(&self.grown.kv_heads, self.grown.to.kv_heads, Fill::Zero, Spread::Rotated);
        self.reading_residual(source, rows)
    }

    fn value(&self, source: Option<&Tensor>) -> Matrix {
        let rows = self.head_rows(&self.grown.kv_heads, self.grown.to.kv_heads, Fill::Random, Spread::Front);
        self.reading_residual(source, rows)
    }

    /// From heads back to the residual stream; values stand at the front of their heads.
    fn output(&self, source: Option<&Tensor>) -> Matrix {
        let Grown { from, to, query_heads, .. } = self.grown;
        let run = |head: &HeadPlace| ColumnRun {
            from: head.source * from.head_dim,
            to: head.target * to.head_dim,
            count: from.head_dim,
        };
        let runs = query_heads.iter().map(run).collect();
        self.matrix(source, self.residual_rows(), to.heads * to.head_dim, runs, Fill::Zero)
    }

    /// Gate and up.
    fn widened(&self, source: Option<&Tensor>) -> Matrix {
        let Grown { from, to, .. } = self.grown;
        let rows = grow_rows(from.intermediate_size, to.intermediate_size, Fill::Random);
        self.reading_residual(source, rows)
    }

    fn down(&self, source: Option<&Tensor>) -> Matrix {
        let Grown { from, to, .. } = self.grown;
        let runs = vec![ColumnRun { from: 0, to: 0, count: from.intermediate_size }];
        self.matrix(source, self.residual_rows(), to.intermediate_size, runs, Fill::Zero)
    }

    /// A matrix that reads the normalised residual stream, whose new channels are 0.
    fn reading_residual(&self, source: Option<&Tensor>, rows: Vec<RowSource>) -> Matrix {
        self.matrix(source, rows, self.grown.to.hidden_size, self.residual_columns(), Fill::Random)
    }

    fn residual_columns(&self) -> Vec<ColumnRun> {
        vec![ColumnRun { from: 0, to: 0, count: self.grown.from.hidden_size }]
    }

    /// Rows that write to the residual stream.
    fn residual_rows(&self) -> Vec<RowSource> {
        grow_rows(self.grown.from.hidden_size, self.grown.to.hidden_size, Fill::Zero)
    }

    fn head_rows(&self, places: &[HeadPlace], heads: usize, inside: Fill, spread: Spread) -> Vec<RowSource> {
        let Grown { from, to, head_factor, .. } = self.grown;
        let mut rows = vec![RowSource::New(Fill::Random); heads * to.head_dim];
        for place in places {
            let head = &mut rows[place.target * to.head_dim..(place.target + 1) * to.head_dim];
            head.fill(RowSource::New(inside));
            for dim in 0..from.head_dim {
                let (half, half_to) = (from.head_dim / 2, to.head_dim / 2);
                let target = match spread {
                    Spread::Front => dim,
                    Spread::Rotated => dim / half * half_to + dim % half * head_factor,
                };
                head[target] = RowSource::Row(place.source * from.head_dim + dim);
            }
        }
        rows
    }

    fn matrix(
        &self,
        source: Option<&Tensor>,
        mut rows: Vec<RowSource>,
        columns: usize,
        runs: Vec<ColumnRun>,
        fill: Fill,
    ) -> Matrix {
        if source.is_none() {
            // A new layer: what would write to the residual stream is zero, the rest is filler.
            rows.fill(RowSource::New(fill));
        }
        Matrix { source: source.cloned(), rows, columns, runs, fill, scale: 1.0, constant: None, seed: 0 }
    }
}

/// How a head's numbers lie in a wider head.
#[derive(Clone, Copy)]
enum Spread {
    /// At its front.
    Front,
    /// Rotary pairs at the places with their frequency.
    Rotated,
}

fn grow_rows(from: usize, to: usize, fill: Fill) -> Vec<RowSource> {
    (0..to).map(|row| if row < from { RowSource::Row(row) } else { RowSource::New(fill) }).collect()
}
