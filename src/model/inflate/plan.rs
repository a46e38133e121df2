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
    /// `[length]`: a map of tokens.
    Integers(Vec<i64>),
    /// `[length]`: which tokens are mapped.
    Flags(Vec<bool>),
}

impl PlannedTensor {
    /// A tensor of this name.
    pub fn new(name: impl Into<String>, contents: Contents) -> PlannedTensor {
        PlannedTensor { name: name.into(), contents }
    }

    /// The same of a matrix.
    pub fn matrix(name: impl Into<String>, matrix: Matrix) -> PlannedTensor {
        PlannedTensor::new(name, Contents::Matrix(matrix))
    }

    /// How many numbers it has.
    pub fn numbers(&self) -> u64 {
        self.shape().iter().map(|&n| n as u64).product()
    }

    /// How many of them are parameters.
    pub fn parameters(&self) -> u64 {
        match self.contents {
            Contents::Integers(_) | Contents::Flags(_) => 0,
            Contents::Matrix(_) | Contents::F32(_) | Contents::Zeros(_) => self.numbers(),
        }
    }

    /// Its shape.
    pub fn shape(&self) -> Vec<usize> {
        match &self.contents {
            Contents::Matrix(matrix) => vec![matrix.rows.len(), matrix.columns],
            Contents::F32(numbers) => vec![numbers.len()],
            Contents::Zeros(len) => vec![*len],
            Contents::Integers(numbers) => vec![numbers.len()],
            Contents::Flags(flags) => vec![flags.len()],
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
    let planner = Planner { grown, attention_inputs: 1, head_norms: false };
    let mut all =
        vec![PlannedTensor::matrix("model.embed_tokens.weight", planner.embedding(&weights.embedding))];
    for layer in 0..grown.to.layers {
        all.extend(planner.layer(&format!("model.layers.{layer}"), weights.layers.get(layer)));
    }
    all.push(PlannedTensor::new("model.norm.weight", planner.final_norm(&weights.final_norm)));
    if !grown.tied_head {
        let head = planner.output_head(&weights.head, grown.from.vocab_size, grown.to.vocab_size);
        all.push(PlannedTensor::matrix("lm_head.weight", head));
    }
    seed(&mut all);
    all
}

/// Gives every matrix filler of its own.
pub(super) fn seed(tensors: &mut [PlannedTensor]) {
    for (index, tensor) in tensors.iter_mut().enumerate() {
        if let Contents::Matrix(matrix) = &mut tensor.contents {
            matrix.seed = (index as u64 + 1) << 44;
        }
    }
}

/// Plans the tensors of a model or of a draft head.
pub(super) struct Planner<'a> {
    /// Dimensions and layout.
    pub grown: &'a Grown,
    /// Normalised streams side by side that query, key and value read.
    pub attention_inputs: usize,
    /// Whether query and key heads are normalised.
    pub head_norms: bool,
}

impl Planner<'_> {
    /// Rows of tokens: the source's, then new ones. With a tied head, new tokens are pushed
    /// down here.
    pub fn embedding(&self, source: &Tensor) -> Matrix {
        let new = if self.grown.tied_head { self.pushed_row() } else { RowSource::New(Fill::Random) };
        let Grown { from, to, constant, .. } = self.grown;
        let rows = extended(from.vocab_size, to.vocab_size, new);
        let constant = constant.map(|value| (from.hidden_size, to_bf16(f64::from(value))));
        let constants = constant.into_iter().collect();
        Matrix {
            constants,
            ..self.matrix(Some(source), rows, to.hidden_size, self.stream_columns(1), Fill::Zero)
        }
    }

    /// Output head of `tokens` tokens, of which `to_tokens` are made.
    pub fn output_head(&self, source: &Tensor, tokens: usize, to_tokens: usize) -> Matrix {
        self.reading_constants(source, extended(tokens, to_tokens, self.pushed_row()), 1)
    }

    fn pushed_row(&self) -> RowSource {
        RowSource::Constant(to_bf16(PUSH))
    }

    /// The weight that fuses the hidden states of a target: it hands their constant on.
    pub fn fusion(&self, source: &Tensor, features: usize) -> Matrix {
        let mut rows = self.stream_rows();
        if self.grown.constant.is_some() {
            rows[self.grown.from.hidden_size] = RowSource::Constant(to_bf16(1.0));
        }
        self.reading_constants(source, rows, features)
    }

    /// A layer's tensors: norms, weights, biases. Seeds derive from the index of a tensor, so
    /// the order decides the bytes that are written.
    pub fn layer(&self, prefix: &str, source: Option<&LayerWeights>) -> Vec<PlannedTensor> {
        let mut roles: Vec<LayerTensor> =
            LayerTensor::ALL.into_iter().filter(|&role| self.has(role)).collect();
        roles.sort_by_key(|role| match role {
            LayerTensor::Weight(_) => 1,
            LayerTensor::Bias(_) => 2,
            _ => 0,
        });
        let planned = roles.into_iter().map(|role| {
            let contents = self.contents(role, source.and_then(|layer| layer.tensor(role)));
            PlannedTensor::new(format!("{prefix}.{}", role.name()), contents)
        });
        planned.collect()
    }

    /// Whether the layers of the result have a tensor of this role.
    fn has(&self, role: LayerTensor) -> bool {
        match role {
            LayerTensor::Bias(projection) => self.grown.to.qkv_bias && projection.is_qkv(),
            LayerTensor::QueryNorm | LayerTensor::KeyNorm => self.head_norms,
            _ => true,
        }
    }

    fn contents(&self, role: LayerTensor, source: Option<&Tensor>) -> Contents {
        match role {
            LayerTensor::Weight(projection) => Contents::Matrix(self.projection(projection, source)),
            LayerTensor::Bias(projection) => Contents::Zeros(self.outputs(projection)),
            LayerTensor::AttentionNorm | LayerTensor::MlpNorm => self.norm(source),
            // both factors of the query's norm cancel
            LayerTensor::QueryNorm => self.head_norm(source, 1.0),
            LayerTensor::KeyNorm => self.head_norm(source, 1.0 / self.grown.query_scale()),
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

    /// Weights of a norm of the stream. Only the output head reads the constant channel.
    pub fn norm(&self, source: Option<&Tensor>) -> Contents {
        self.stream_norm(source, 0.0)
    }

    /// The norm before the output head.
    pub fn final_norm(&self, source: &Tensor) -> Contents {
        self.stream_norm(Some(source), CONSTANT_WEIGHT)
    }

    fn stream_norm(&self, source: Option<&Tensor>, constant: f32) -> Contents {
        let mut weights = vec![1.0; self.grown.to.hidden_size];
        for (weight, number) in weights.iter_mut().zip(source.into_iter().flat_map(numbers)) {
            *weight = (number * self.grown.norm_scale()) as f32;
        }
        if self.grown.constant.is_some() {
            weights[self.grown.from.hidden_size] = constant;
        }
        Contents::F32(weights)
    }

    /// Weights of the norm of query or key heads, of which what is new is 0.
    fn head_norm(&self, source: Option<&Tensor>, scale: f64) -> Contents {
        let mut weights = vec![1.0; self.grown.to.head_dim];
        for (dim, number) in source.into_iter().flat_map(numbers).enumerate() {
            weights[self.place_in_head(dim, Spread::Rotated)] = (number * scale) as f32;
        }
        Contents::F32(weights)
    }

    /// Queries: what is new in a head meets keys of 0, what is new beside it is not read. A norm
    /// of the heads would read what is new, and undo the scale.
    fn query(&self, source: Option<&Tensor>) -> Matrix {
        let (inside, scale) =
            if self.head_norms { (Fill::Zero, 1.0) } else { (Fill::Random, self.grown.query_scale()) };
        let rows = self.head_rows(&self.grown.query_heads, self.grown.to.heads, inside, Spread::Rotated);
        let matrix = self.reading_streams(source, rows, self.attention_inputs);
        Matrix { scale, ..matrix }
    }

    fn key(&self, source: Option<&Tensor>) -> Matrix {
        let rows = self.head_rows(&self.grown.kv_heads, self.grown.to.kv_heads, Fill::Zero, Spread::Rotated);
        self.reading_streams(source, rows, self.attention_inputs)
    }

    fn value(&self, source: Option<&Tensor>) -> Matrix {
        let rows = self.head_rows(&self.grown.kv_heads, self.grown.to.kv_heads, Fill::Random, Spread::Front);
        self.reading_streams(source, rows, self.attention_inputs)
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
        self.matrix(source, self.stream_rows(), to.heads * to.head_dim, runs, Fill::Zero)
    }

    /// Gate and up.
    fn widened(&self, source: Option<&Tensor>) -> Matrix {
        let Grown { from, to, .. } = self.grown;
        let rows = extended(from.intermediate_size, to.intermediate_size, RowSource::New(Fill::Random));
        self.reading_streams(source, rows, 1)
    }

    fn down(&self, source: Option<&Tensor>) -> Matrix {
        let Grown { from, to, .. } = self.grown;
        let runs = vec![ColumnRun { from: 0, to: 0, count: from.intermediate_size }];
        self.matrix(source, self.stream_rows(), to.intermediate_size, runs, Fill::Zero)
    }

    /// A matrix that reads `streams` residual streams side by side, whose new channels are 0.
    fn reading_streams(&self, source: Option<&Tensor>, rows: Vec<RowSource>, streams: usize) -> Matrix {
        let columns = self.stream_columns(streams);
        self.matrix(source, rows, streams * self.grown.to.hidden_size, columns, Fill::Random)
    }

    /// The same for streams that hold the constant: only rows that are made for it read it.
    fn reading_constants(&self, source: &Tensor, rows: Vec<RowSource>, streams: usize) -> Matrix {
        let Grown { from, to, constant, .. } = self.grown;
        let column = |stream| (stream * to.hidden_size + from.hidden_size, to_bf16(0.0));
        let constants = if constant.is_some() { (0..streams).map(column).collect() } else { Vec::new() };
        Matrix { constants, ..self.reading_streams(Some(source), rows, streams) }
    }

    fn stream_columns(&self, streams: usize) -> Vec<ColumnRun> {
        let (from, to) = (self.grown.from.hidden_size, self.grown.to.hidden_size);
        let run = |stream| ColumnRun { from: stream * from, to: stream * to, count: from };
        (0..streams).map(run).collect()
    }

    /// Rows that write to the residual stream.
    fn stream_rows(&self) -> Vec<RowSource> {
        extended(self.grown.from.hidden_size, self.grown.to.hidden_size, RowSource::New(Fill::Zero))
    }

    fn head_rows(&self, places: &[HeadPlace], heads: usize, inside: Fill, spread: Spread) -> Vec<RowSource> {
        let Grown { from, to, .. } = self.grown;
        let mut rows = vec![RowSource::New(Fill::Random); heads * to.head_dim];
        for place in places {
            let head = &mut rows[place.target * to.head_dim..(place.target + 1) * to.head_dim];
            head.fill(RowSource::New(inside));
            for dim in 0..from.head_dim {
                head[self.place_in_head(dim, spread)] = RowSource::Row(place.source * from.head_dim + dim);
            }
        }
        rows
    }

    /// Where a number of the source's heads lies in those of the result.
    fn place_in_head(&self, dim: usize, spread: Spread) -> usize {
        let Grown { from, to, head_factor, .. } = self.grown;
        let (half, half_to) = (from.head_dim / 2, to.head_dim / 2);
        match spread {
            Spread::Front => dim,
            Spread::Rotated => dim / half * half_to + dim % half * head_factor,
        }
    }

    /// A matrix without constant channels.
    pub fn matrix(
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
        Matrix {
            source: source.cloned(),
            rows,
            columns,
            runs,
            fill,
            scale: 1.0,
            constants: Vec::new(),
            seed: 0,
        }
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

/// The rows of the source, then new ones.
pub(super) fn extended(from: usize, to: usize, new: RowSource) -> Vec<RowSource> {
    (0..to).map(|row| if row < from { RowSource::Row(row) } else { new }).collect()
}

/// All numbers of a tensor.
pub(super) fn numbers(tensor: &Tensor) -> impl Iterator<Item = f64> {
    tensor.bytes().chunks_exact(tensor.dtype.bytes()).map(|bytes| number_at(tensor.dtype, bytes))
}
