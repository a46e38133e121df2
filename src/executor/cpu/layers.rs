//! Transformer layers over a paged cache: what models and draft heads have in common.
//!
//! The caller fills the residual stream, runs the steps of each layer in order, and reads the stream
//! again. At most [`PART_ROWS_MAX`] rows go through together.

use std::ops::Range;

use crate::model::ModelSpec;

use super::CpuError;
use super::arena::Arena;
use super::kernels::{AttentionTile, InstructionSet, Norm, QUERIES_MAX, attend, rms_norm};
use super::kv_cache::{CacheShape, KvCache};
use super::pass::{Pass, Tiles};
use super::pool::{JobPanicked, Pool};
use super::projection::HeadWriter;
use super::rope::RopeTable;
use super::rows::{Rows, SharedRows};
use super::stages::{Product, RowNorm, for_rows};
use super::transformer::{Layer, PackedLayers, PackedLinear};
use crate::executor::committed_states::Slot;

/// Rows that go through the layers together; larger batches go in parts, which bounds the
/// activations and keeps them in cache. Each weight is read once per part.
pub(crate) const PART_ROWS_MAX: usize = 256;

/// Sizes that layers are built for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayersBounds {
    pub(crate) blocks: usize,
    pub(crate) block_tokens: usize,
    /// Positions from 0 on that tokens may stand at, and slots of a sequence that they may attend to.
    pub(crate) positions: usize,
    /// Rows that go through together, at most [`PART_ROWS_MAX`].
    pub(crate) rows: usize,
    /// Threads of the pool.
    pub(crate) threads: usize,
}

/// Layers with their cache and their working memory.
pub(crate) struct Layers {
    pub(crate) spec: ModelSpec,
    pub(crate) cache: KvCache,
    set: InstructionSet,
    weights: PackedLayers,
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
    /// Per thread: `QUERIES_MAX` rows of scores.
    scores: Rows,
}

impl Buffers {
    fn new(spec: &ModelSpec, layers: &[Layer], bounds: LayersBounds) -> Buffers {
        let widest = |width: &dyn Fn(&Layer) -> usize| layers.iter().map(width).max().unwrap_or(0);
        let gate_up = widest(&|layer| layer.gate_up.matrix.padded_outputs());
        Buffers {
            x: Rows::new(bounds.rows, spec.hidden_size),
            normed: Rows::new(bounds.rows, widest(&|layer| layer.qkv.matrix.inputs()).max(spec.hidden_size)),
            qkv: Rows::new(bounds.rows, widest(&|layer| layer.qkv.matrix.padded_outputs())),
            attention: Rows::new(bounds.rows, spec.heads * spec.head_dim),
            gate_up: Rows::new(bounds.rows, gate_up),
            activation: Rows::new(bounds.rows, gate_up / 2),
            scores: Rows::new(
                bounds.threads * QUERIES_MAX,
                bounds.positions.next_multiple_of(bounds.block_tokens),
            ),
        }
    }
}

impl Layers {
    /// Layers of this shape with an empty cache.
    pub(crate) fn new(
        spec: &ModelSpec,
        weights: PackedLayers,
        set: InstructionSet,
        bounds: LayersBounds,
    ) -> Result<Layers, CpuError> {
        let shape = CacheShape {
            blocks: bounds.blocks,
            block_tokens: bounds.block_tokens,
            kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
        };
        Ok(Layers {
            cache: KvCache::new(shape, spec.layers).map_err(CpuError::Memory)?,
            rope: RopeTable::new(&spec.rope, spec.head_dim, bounds.positions),
            buffers: Buffers::new(spec, &weights.layers, bounds),
            spec: spec.clone(),
            set,
            weights,
        })
    }

    /// Bytes of the packed matrices, with the one that was packed behind the layers.
    pub(crate) fn weight_bytes(&self) -> usize {
        self.weights.arena.bytes()
    }

    /// One row of the residual stream.
    pub(crate) fn stream(&self, row: usize) -> &[f32] {
        &self.buffers.x.row(row)[..self.spec.hidden_size]
    }

    /// One row of the residual stream, to fill.
    pub(crate) fn stream_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.buffers.x.row_mut(row)[..self.spec.hidden_size]
    }

    /// The residual stream of all rows.
    pub(crate) fn share_stream(&mut self) -> SharedRows {
        self.buffers.x.share()
    }

    /// Keeps the rows `kept` of the residual stream, ascending, and moves them to the front.
    pub(crate) fn keep_rows(&mut self, kept: impl Iterator<Item = usize>) {
        for (to, from) in kept.enumerate() {
            self.buffers.x.copy_row(from, to, self.spec.hidden_size);
        }
    }

    /// Tiles of the attention of these rows of a pass.
    pub(crate) fn tiles(&self, pass: &Pass<'_>, active: Vec<usize>, pool: &Pool) -> Tiles {
        Tiles::new(pass, active, self.spec.heads, self.spec.kv_heads, pool.threads())
    }

    /// One row of the input of the attention, to fill where it is not the norm of the stream.
    pub(crate) fn attention_input_mut(&mut self, row: usize) -> &mut [f32] {
        self.buffers.normed.row_mut(row)
    }

    /// The input of a layer's attention: the norm of the residual stream.
    pub(crate) fn norm_attention_input(
        &mut self,
        pool: &Pool,
        rows: usize,
        layer: usize,
    ) -> Result<(), JobPanicked> {
        let (x, normed) = (self.buffers.x.share(), self.buffers.normed.share());
        self.norm(&self.weights.layers[layer].attention_norm, x, rows, normed).run(pool)
    }

    /// Fused projection of the attention's input, head norms, rotation, cache write.
    pub(crate) fn project(
        &mut self,
        pool: &Pool,
        pass: &Pass<'_>,
        part: Range<usize>,
        layer: usize,
    ) -> Result<(), JobPanicked> {
        let (normed, qkv) = (self.buffers.normed.share(), self.buffers.qkv.share());
        self.product(&self.weights.layers[layer].qkv, normed, part.len(), qkv).run(pool)?;
        let tokens = self.cache.shape.block_tokens;
        let writer = self.head_writer(layer, qkv);
        for_rows(pool, part.len(), &|index| {
            let row = &pass.rows[part.start + index];
            let slot = Slot::of(pass.sequences[row.sequence], row.slot, tokens);
            // SAFETY: each row of `qkv` belongs to one call, and so does each slot of the cache, as
            // the executor has checked of the batch.
            unsafe { writer.finish(index, row.position, slot) };
        })
    }

    /// Projects the attention's input to keys and values alone, and writes them to these positions
    /// and slots, no two of which are the same.
    pub(crate) fn write_keys_and_values(
        &mut self,
        pool: &Pool,
        places: &[(usize, Slot)],
        layer: usize,
    ) -> Result<(), JobPanicked> {
        let (normed, qkv) = (self.buffers.normed.share(), self.buffers.qkv.share());
        let product = self.product(&self.weights.layers[layer].qkv, normed, places.len(), qkv);
        let queries = self.spec.heads * self.spec.head_dim;
        let first_panel = queries / product.linear.matrix.panel_outputs();
        Product { first_panel, ..product }.run(pool)?;
        let writer = self.head_writer(layer, qkv);
        for_rows(pool, places.len(), &|index| {
            let (position, slot) = places[index];
            // SAFETY: each row of `qkv` belongs to one call, and the slots differ.
            unsafe { writer.write(index, position, slot) };
        })
    }

    fn head_writer(&mut self, layer: usize, qkv: SharedRows) -> HeadWriter<'_> {
        HeadWriter {
            cache: SharedRows::flat(self.cache.layer_mut(layer)),
            shape: self.cache.shape,
            spec: &self.spec,
            set: self.set,
            layer: &self.weights.layers[layer],
            rope: &self.rope,
            qkv,
        }
    }

    /// Attention over the cache, output projection, residual. Row `first_row` of the pass is the
    /// first that was projected; the residual stream has the active rows alone.
    pub(crate) fn attention(
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
    pub(crate) fn mlp(&mut self, pool: &Pool, rows: usize, layer: usize) -> Result<(), JobPanicked> {
        let buffers = &mut self.buffers;
        let (x, normed) = (buffers.x.share(), buffers.normed.share());
        let (gate_up, activation) = (buffers.gate_up.share(), buffers.activation.share());
        let weights = &self.weights.layers[layer];
        self.norm(&weights.mlp_norm, x, rows, normed).run(pool)?;
        self.product(&weights.gate_up, normed, rows, gate_up).run_swiglu(pool, activation)?;
        let down = self.product(&weights.down, activation, rows, x);
        Product { accumulate: true, ..down }.run(pool)
    }

    /// A linear layer of this arena over the first rows of `x`.
    pub(crate) fn product<'a>(
        &'a self,
        linear: &'a PackedLinear,
        x: SharedRows,
        rows: usize,
        out: SharedRows,
    ) -> Product<'a> {
        self.product_in(&self.weights.arena, linear, x, rows, out)
    }

    /// A linear layer of another arena over the first rows of `x`.
    pub(crate) fn product_in<'a>(
        &self,
        arena: &'a Arena,
        linear: &'a PackedLinear,
        x: SharedRows,
        rows: usize,
        out: SharedRows,
    ) -> Product<'a> {
        Product {
            set: self.set,
            arena,
            linear,
            x,
            first_row: 0,
            rows,
            first_panel: 0,
            out,
            first_out: 0,
            accumulate: false,
        }
    }

    /// RMSNorms of single rows.
    pub(crate) fn vector_norm(&self) -> VectorNorm {
        VectorNorm { set: self.set, epsilon: self.spec.rms_norm_eps }
    }

    /// An RMSNorm of the first rows of `x`.
    pub(crate) fn norm<'a>(
        &'a self,
        weight: &'a [f32],
        x: SharedRows,
        rows: usize,
        out: SharedRows,
    ) -> RowNorm<'a> {
        RowNorm { set: self.set, weight, epsilon: self.spec.rms_norm_eps, x, rows, out, first_out: 0 }
    }
}

/// An RMSNorm of one row.
#[derive(Clone, Copy)]
pub(crate) struct VectorNorm {
    set: InstructionSet,
    epsilon: f32,
}

impl VectorNorm {
    /// The norm of `x`, which is as wide as `weight` and as `out`.
    pub(crate) fn write(&self, weight: &[f32], x: &[f32], out: &mut [f32]) {
        assert!(weight.len() == x.len() && x.len() == out.len(), "a norm is as wide as its input");
        let job = Norm { x: x.as_ptr(), out: out.as_mut_ptr(), weight, epsilon: self.epsilon };
        // SAFETY: the processor has the set; all three have the same length.
        unsafe { rms_norm(self.set, &job) };
    }
}
