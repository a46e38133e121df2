//! The forward pass of one model.
#![forbid(unsafe_code)]

use std::ops::Range;

use crate::model::{LoadedModel, ModelSpec};

use super::CpuError;
use super::hidden_states::HiddenStates;
use super::kernels::InstructionSet;
use super::layers::{Layers, LayersBounds, PART_ROWS_MAX};
use super::packed::vector;
use super::pass::Pass;
use super::pool::{JobPanicked, Pool};
use super::rows::{Rows, SharedRows};
use super::stages::{Product, RowNorm};
use super::transformer::{Embedding, PackedLayers, PackedLinear};

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
    pub(crate) layers: Layers,
    pub(crate) embedding: Embedding,
    final_norm: Vec<f32>,
    head: PackedLinear,
    /// Normed last states of the rows whose logits are wanted.
    features: Rows,
    logits: Rows,
}

impl Model {
    /// A model with an empty cache.
    pub(crate) fn new(
        model: &LoadedModel,
        set: InstructionSet,
        bounds: ModelBounds,
    ) -> Result<Model, CpuError> {
        let LoadedModel { spec, weights } = model;
        let (packed, head) = PackedLayers::new(spec, &weights.layers, &weights.head, set, bounds.threads)?;
        let layer_bounds = LayersBounds {
            blocks: bounds.blocks,
            block_tokens: bounds.block_tokens,
            positions: spec.context_tokens_max.min(bounds.blocks * bounds.block_tokens),
            rows: bounds.rows.min(PART_ROWS_MAX),
            threads: bounds.threads,
        };
        Ok(Model {
            layers: Layers::new(spec, packed, set, layer_bounds)?,
            // if it is the head as well, its rows are read again as tokens need them
            embedding: Embedding::new(&weights.embedding),
            final_norm: vector(&weights.final_norm),
            features: Rows::new(bounds.rows, spec.hidden_size),
            logits: Rows::new(bounds.logit_rows, head.matrix.padded_outputs()),
            head,
        })
    }

    /// Its shape.
    pub(crate) fn spec(&self) -> &ModelSpec {
        &self.layers.spec
    }

    /// Runs all rows, fills the cache, and keeps the last states of the wanted rows as
    /// features, in order. Returns how many. The hidden states that `states` takes are appended to it,
    /// a row for each row of the pass.
    pub(crate) fn forward(
        &mut self,
        pool: &Pool,
        pass: &Pass<'_>,
        mut states: Option<&mut HiddenStates>,
    ) -> Result<usize, JobPanicked> {
        let mut features = 0;
        let mut start = 0;
        while start < pass.rows.len() {
            let part = start..(start + PART_ROWS_MAX).min(pass.rows.len());
            start = part.end;
            features += self.part(pool, pass, part, features, states.as_deref_mut())?;
        }
        Ok(features)
    }

    /// Logits after some features, one row each.
    pub(crate) fn logits(
        &mut self,
        pool: &Pool,
        features: Range<usize>,
    ) -> Result<LogitRows<'_>, JobPanicked> {
        let (x, out) = (self.features.share(), self.logits.share());
        let product = self.layers.product(&self.head, x, features.len(), out);
        Product { first_row: features.start, ..product }.run(pool)?;
        Ok(LogitRows { rows: &self.logits, vocab_size: self.layers.spec.vocab_size })
    }

    /// The output head over the first rows of `x`, normed states of this model's width.
    pub(crate) fn head_product(&self, x: SharedRows, rows: usize, out: SharedRows) -> Product<'_> {
        self.layers.product(&self.head, x, rows, out)
    }

    /// At most `PART_ROWS_MAX` rows through all layers; returns the features added.
    fn part(
        &mut self,
        pool: &Pool,
        pass: &Pass<'_>,
        part: Range<usize>,
        first_feature: usize,
        mut states: Option<&mut HiddenStates>,
    ) -> Result<usize, JobPanicked> {
        let layers = &mut self.layers;
        let all = layers.tiles(pass, part.clone().collect(), pool);
        let wanted = layers.tiles(pass, part.clone().filter(|&row| pass.rows[row].wanted).collect(), pool);
        for (index, row) in pass.rows[part.clone()].iter().enumerate() {
            self.embedding.write(row.token, layers.stream_mut(index));
        }
        let first_state = states.as_deref_mut().map_or(0, |states| states.tokens.append(part.len()));
        let count = layers.spec.layers;
        for layer in 0..count {
            if let Some(states) = states.as_deref_mut() {
                states.take(layer, first_state, part.len(), |row| layers.stream(row));
            }
            layers.norm_attention_input(pool, part.len(), layer)?;
            layers.project(pool, pass, part.clone(), layer)?;
            // Behind the last cache write only the wanted rows matter.
            let active = if layer + 1 == count { &wanted } else { &all };
            layers.keep_rows(active.active().iter().map(|&row| row - part.start));
            layers.attention(pool, pass, active, part.start, layer)?;
            layers.mlp(pool, active.active().len(), layer)?;
        }
        let (x, out) = (layers.share_stream(), self.features.share());
        let norm = layers.norm(&self.final_norm, x, wanted.active().len(), out);
        RowNorm { first_out: first_feature, ..norm }.run(pool)?;
        Ok(wanted.active().len())
    }
}

/// Rows of logits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogitRows<'a> {
    rows: &'a Rows,
    vocab_size: usize,
}

impl<'a> LogitRows<'a> {
    pub(crate) fn new(rows: &'a Rows, vocab_size: usize) -> LogitRows<'a> {
        LogitRows { rows, vocab_size }
    }

    /// The logits of one row.
    pub(crate) fn row(&self, row: usize) -> &'a [f32] {
        &self.rows.row(row)[..self.vocab_size]
    }
}
