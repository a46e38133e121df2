//! The forward pass of one model.

use std::ops::Range;

use crate::model::{LoadedModel, ModelSpec};

use super::CpuError;
use super::kernels::{AttentionTile, InstructionSet, QUERIES_MAX, attend};
use super::kv_cache::{CacheShape, KvCache};
use super::pass::{Pass, Tiles};
use super::pool::{JobPanicked, Pool};
use super::projection::HeadWriter;
use super::rope::RopeTable;
use super::rows::{Rows, SharedRows};
use super::stages::{Product, RowNorm, for_rows};
use super::transformer::{PackedLinear, Weights};

/// Rows that go through the layers together; larger batches go in parts, which bounds the
/// activations and keeps them in cache. Each weight is read once per part.
pub(crate) const PART_ROWS_MAX: usize = 256;

/// Sizes that a model is built for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ModelBounds {
    pub(crate) blocks: usize,
    pub(crate) block_tokens: usize,
    /// Most rows of a pass.
    pub(crate) rows: usize,
    /// Most rows of logits at once.
    pub(crate) logit_rows: usize,
    /// Threads of the pool.
    pub(crate) threads: usize,
}

/// A model with its cache and its working memory.
pub(crate) struct Model {
    pub(crate) spec: ModelSpec,
    pub(crate) cache: KvCache,
    set: InstructionSet,
    weights: Weights,
    rope: RopeTable,
    buffers: Buffers,
}

/// Working memory, sized once.
struct Buffers {
    /// The residual stream.
    x: Rows,
    /// Input of the next matrix product.
    normed: Rows,
    qkv: Rows,
    attention: Rows,
    gate_up: Rows,
    activation: Rows,
    /// Normed last states of the rows whose logits are wanted.
    features: Rows,
    logits: Rows,
    /// Per thread: `QUERIES_MAX` rows of scores.
    scores: Rows,
}

impl Buffers {
    fn new(spec: &ModelSpec, weights: &Weights, bounds: ModelBounds, slots: usize) -> Buffers {
        let part = bounds.rows.min(PART_ROWS_MAX);
        let widest = |width: fn(&super::transformer::Layer) -> &PackedLinear| {
            weights.layers.iter().map(|layer| width(layer).matrix.padded_outputs()).max().unwrap_or(0)
        };
        let gate_up = widest(|layer| &layer.gate_up);
        Buffers {
            x: Rows::new(part, spec.hidden_size),
            normed: Rows::new(part, spec.hidden_size),
            qkv: Rows::new(part, widest(|layer| &layer.qkv)),
            attention: Rows::new(part, spec.heads * spec.head_dim),
            gate_up: Rows::new(part, gate_up),
            activation: Rows::new(part, gate_up / 2),
            features: Rows::new(bounds.rows, spec.hidden_size),
            logits: Rows::new(bounds.logit_rows, weights.head.matrix.padded_outputs()),
            scores: Rows::new(bounds.threads * QUERIES_MAX, slots.next_multiple_of(bounds.block_tokens)),
        }
    }
}

impl Model {
    /// A model with an empty cache.
    pub(crate) fn new(
        model: &LoadedModel,
        set: InstructionSet,
        bounds: ModelBounds,
    ) -> Result<Model, CpuError> {
        let spec = model.spec.clone();
        let weights = Weights::new(model, set, bounds.threads)?;
        let slots = spec.context_tokens_max.min(bounds.blocks * bounds.block_tokens);
        let rope = RopeTable::new(&spec.rope, spec.head_dim, slots);
        let shape = CacheShape {
            blocks: bounds.blocks,
            block_tokens: bounds.block_tokens,
            kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
        };
        let cache = KvCache::new(shape, spec.layers).map_err(CpuError::Memory)?;
        let buffers = Buffers::new(&spec, &weights, bounds, slots);
        Ok(Model { spec, cache, set, weights, rope, buffers })
    }

    /// Runs all rows, fills the cache, and keeps the last states of the wanted rows as
    /// features, in order. Returns how many.
    pub(crate) fn forward(&mut self, pool: &Pool, pass: &Pass<'_>) -> Result<usize, JobPanicked> {
        let mut features = 0;
        let mut start = 0;
        while start < pass.rows.len() {
            let part = start..(start + PART_ROWS_MAX).min(pass.rows.len());
            start = part.end;
            features += self.part(pool, pass, part, features)?;
        }
        Ok(features)
    }

    /// Logits after some features, one row each.
    pub(crate) fn logits(
        &mut self,
        pool: &Pool,
        features: Range<usize>,
    ) -> Result<LogitRows<'_>, JobPanicked> {
        let (x, out) = (self.buffers.features.share(), self.buffers.logits.share());
        let product = self.product(&self.weights.head, x, features.len(), out);
        Product { first_row: features.start, ..product }.run(pool)?;
        Ok(LogitRows { rows: &self.buffers.logits, vocab_size: self.spec.vocab_size })
    }

    /// At most `PART_ROWS_MAX` rows through all layers; returns the features added.
    fn part(
        &mut self,
        pool: &Pool,
        pass: &Pass<'_>,
        part: Range<usize>,
        first_feature: usize,
    ) -> Result<usize, JobPanicked> {
        let ModelSpec { heads, kv_heads, hidden_size, layers, .. } = self.spec;
        let tiles = |active: Vec<usize>| Tiles::new(pass, active, heads, kv_heads, pool.threads());
        let all = tiles(part.clone().collect());
        let wanted = tiles(part.clone().filter(|&row| pass.rows[row].wanted).collect());
        for (index, row) in pass.rows[part.clone()].iter().enumerate() {
            self.weights.embed(row.token as usize, &mut self.buffers.x.row_mut(index)[..hidden_size]);
        }
        for layer in 0..layers {
            self.write_keys_and_values(pool, pass, part.clone(), layer)?;
            // Behind the last cache write only the wanted rows matter.
            let active = if layer + 1 == layers { &wanted } else { &all };
            for (to, &from) in active.active().iter().enumerate() {
                self.buffers.x.copy_row(from - part.start, to, hidden_size);
            }
            self.attention(pool, pass, active, part.start, layer)?;
            self.mlp(pool, active.active().len(), layer)?;
        }
        let (x, out) = (self.buffers.x.share(), self.buffers.features.share());
        let norm = self.norm(&self.weights.final_norm, x, wanted.active().len(), out);
        RowNorm { first_out: first_feature, ..norm }.run(pool)?;
        Ok(wanted.active().len())
    }

    /// Norm, fused projection, head norms, rotation, cache write.
    fn write_keys_and_values(
        &mut self,
        pool: &Pool,
        pass: &Pass<'_>,
        part: Range<usize>,
        layer: usize,
    ) -> Result<(), JobPanicked> {
        let buffers = &mut self.buffers;
        let (x, normed, qkv) = (buffers.x.share(), buffers.normed.share(), buffers.qkv.share());
        let cache = SharedRows::flat(self.cache.layer_mut(layer));
        let weights = &self.weights.layers[layer];
        self.norm(&weights.attention_norm, x, part.len(), normed).run(pool)?;
        self.product(&weights.qkv, normed, part.len(), qkv).run(pool)?;
        let writer = HeadWriter {
            spec: &self.spec,
            set: self.set,
            layer: weights,
            rope: &self.rope,
            shape: self.cache.shape,
            qkv,
            cache,
        };
        for_rows(pool, part.len(), &|index| {
            let row = &pass.rows[part.start + index];
            // SAFETY: each row of `qkv` belongs to one call, and so does each slot of the cache, as
            // the executor has checked of the batch.
            unsafe { writer.finish(index, row, pass.sequences[row.sequence]) };
        })
    }

    /// Attention over the cache, output projection, residual.
    fn attention(
        &mut self,
        pool: &Pool,
        pass: &Pass<'_>,
        tiles: &Tiles,
        first_row: usize,
        layer: usize,
    ) -> Result<(), JobPanicked> {
        let buffers = &mut self.buffers;
        let (x, qkv) = (buffers.x.share(), buffers.qkv.share());
        let (attention, scores) = (buffers.attention.share(), buffers.scores.share());
        let head_dim = self.spec.head_dim;
        let shape = self.cache.shape;
        let cache = self.cache.layer(layer);
        // scores and weighted values, over the context of each row
        let attended: usize = tiles.active().iter().map(|&row| pass.rows[row].slot + 1).sum();
        pool.run_sized(2 * attended * self.spec.heads * head_dim, tiles.pieces(), &|thread, piece| {
            let mut queries = Vec::with_capacity(QUERIES_MAX);
            for tile in tiles.of(piece) {
                let query = |row: usize, head: usize| qkv.at(row - first_row, head * head_dim).cast_const();
                let out = |index: usize, head: usize| attention.at(index, head * head_dim);
                tiles.queries(pass, tile, query, out, &mut queries);
                let job = AttentionTile {
                    queries: &queries,
                    blocks: pass.sequences[tiles.row(pass, tile).sequence],
                    cache: cache[shape.head_offset(tile.kv_head)..].as_ptr(),
                    block_stride: shape.block_stride(),
                    block_tokens: shape.block_tokens,
                    head_dim,
                    scale: 1.0 / (head_dim as f32).sqrt(),
                    scores: scores.at(thread * QUERIES_MAX, 0),
                    scores_stride: scores.stride(),
                };
                // SAFETY: the processor has the set; the blocks are in the pool and cover the slots,
                // as the executor has checked of the batch; each output belongs to one tile.
                unsafe { attend(self.set, &job) };
            }
        })?;
        let output = self.product(&self.weights.layers[layer].output, attention, tiles.active().len(), x);
        Product { accumulate: true, ..output }.run(pool)
    }

    /// Norm, gate and up, SwiGLU, down, residual.
    fn mlp(&mut self, pool: &Pool, rows: usize, layer: usize) -> Result<(), JobPanicked> {
        let buffers = &mut self.buffers;
        let (x, normed) = (buffers.x.share(), buffers.normed.share());
        let (gate_up, activation) = (buffers.gate_up.share(), buffers.activation.share());
        let weights = &self.weights.layers[layer];
        self.norm(&weights.mlp_norm, x, rows, normed).run(pool)?;
        self.product(&weights.gate_up, normed, rows, gate_up).run_swiglu(pool, activation)?;
        let down = self.product(&weights.down, activation, rows, x);
        Product { accumulate: true, ..down }.run(pool)
    }

    fn product<'a>(
        &'a self,
        linear: &'a PackedLinear,
        x: SharedRows,
        rows: usize,
        out: SharedRows,
    ) -> Product<'a> {
        let arena = &self.weights.arena;
        Product { set: self.set, arena, linear, x, first_row: 0, rows, out, accumulate: false }
    }

    fn norm<'a>(&'a self, weight: &'a [f32], x: SharedRows, rows: usize, out: SharedRows) -> RowNorm<'a> {
        RowNorm { set: self.set, weight, epsilon: self.spec.rms_norm_eps, x, rows, out, first_out: 0 }
    }
}

/// Rows of logits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogitRows<'a> {
    rows: &'a Rows,
    vocab_size: usize,
}

impl<'a> LogitRows<'a> {
    /// The logits of one row.
    pub(crate) fn row(&self, row: usize) -> &'a [f32] {
        &self.rows.row(row)[..self.vocab_size]
    }
}
