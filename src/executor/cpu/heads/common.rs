//! What heads of every kind are made of: layers, the fusion of hidden states, and the tokens.
#![forbid(unsafe_code)]

use crate::executor::committed_states::Committed;
use crate::model::{FeatureNorm, Interface, LayerWeights, ModelSpec, Tensor};
use crate::protocol::TokenId;
use crate::sampling::DraftVocabulary;

use super::super::forward::{LogitRows, Model};
use super::super::hidden_states::HiddenStates;
use super::super::kernels::InstructionSet;
use super::super::layers::{Layers, LayersBounds, PART_ROWS_MAX, VectorNorm};
use super::super::packed::vector;
use super::super::pool::{JobPanicked, Pool};
use super::super::rows::Rows;
use super::super::stages::Product;
use super::super::transformer::{Embedding, PackedAlone, PackedLayers, PackedLinear};
use super::super::{CpuError, LOGIT_ROWS};

/// Sizes that a head is built for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadBounds {
    /// Blocks of the head's cache; the first ones stand for the target's blocks.
    pub(crate) blocks: usize,
    pub(crate) block_tokens: usize,
    /// Positions that tokens may have, and slots that they may attend to.
    pub(crate) positions: usize,
    /// Most sequences of a round.
    pub(crate) sequences: usize,
    /// Most input tokens of one call of the target.
    pub(crate) batch_tokens: usize,
    pub(crate) threads: usize,
}

/// What heads of every kind are made of.
pub(crate) struct Parts {
    pub(crate) layers: Layers,
    pub(crate) fusion: Fusion,
    /// `None`: the target's.
    embedding: Option<Embedding>,
    pub(crate) final_norm: Vec<f32>,
    /// `None`: the target's.
    output_head: Option<PackedAlone>,
    pub(crate) vocabulary: Option<DraftVocabulary>,
    draft_tokens: usize,
    logits: Rows,
}

impl Parts {
    /// Packs a head.
    pub(crate) fn new(
        spec: &ModelSpec,
        interface: &Interface,
        feature_norm: &FeatureNorm,
        layers: &[LayerWeights],
        set: InstructionSet,
        bounds: HeadBounds,
    ) -> Result<Parts, CpuError> {
        let (packed, fusion) = PackedLayers::new(spec, layers, &interface.fusion, set, bounds.threads)?;
        let layers_bounds = LayersBounds {
            blocks: bounds.blocks,
            block_tokens: bounds.block_tokens,
            positions: bounds.positions,
            rows: PART_ROWS_MAX,
            threads: bounds.threads,
        };
        let own = |tensor| PackedAlone::new(tensor, set, bounds.threads);
        let output_head = interface.output_head.as_ref().map(own).transpose()?;
        Ok(Parts {
            layers: Layers::new(spec, packed, set, layers_bounds)?,
            fusion: Fusion::new(fusion, feature_norm, &interface.hidden_norm),
            embedding: interface.embedding.as_ref().map(Embedding::new),
            final_norm: vector(&interface.final_norm),
            output_head,
            vocabulary: interface
                .draft_to_target
                .as_ref()
                .map(|tokens| DraftVocabulary::new(tokens, spec.vocab_size)),
            draft_tokens: interface.draft_tokens,
            // the padding of the target's head is that of a head of the same size
            logits: Rows::new(LOGIT_ROWS, interface.draft_tokens),
        })
    }

    /// Bytes of the packed matrices of its own.
    pub(crate) fn weight_bytes(&self) -> usize {
        self.layers.weight_bytes() + self.output_head.as_ref().map_or(0, |head| head.arena.bytes())
    }

    /// Fuses the states of at most [`PART_ROWS_MAX`] tokens into the first rows of the fusion.
    pub(crate) fn fuse(
        &mut self,
        pool: &Pool,
        states: &HiddenStates,
        tokens: &[Committed],
    ) -> Result<(), JobPanicked> {
        self.fusion.run(pool, &self.layers, states, tokens)
    }

    /// Writes a token's embedding to `out`, as wide as the head.
    pub(crate) fn embed(&self, target: &Model, token: TokenId, out: &mut [f32]) {
        self.embedding.as_ref().unwrap_or(&target.embedding).write(token, out);
    }

    /// Writes a token's embedding to a row of the residual stream.
    pub(crate) fn embed_stream(&mut self, target: &Model, token: TokenId, row: usize) {
        let embedding = self.embedding.as_ref().unwrap_or(&target.embedding);
        embedding.write(token, self.layers.stream_mut(row));
    }

    /// Logits over the draft tokens of `count` rows of `states` from `first` on, normed final states:
    /// the first rows of [`logits`](Self::logits).
    pub(crate) fn compute_logits(
        &mut self,
        pool: &Pool,
        target: &Model,
        states: &mut Rows,
        first: usize,
        count: usize,
    ) -> Result<(), JobPanicked> {
        let (x, out) = (states.share(), self.logits.share());
        let product = match &self.output_head {
            Some(PackedAlone { arena, linear }) => self.layers.product_in(arena, linear, x, count, out),
            None => target.head_product(x, count, out),
        };
        Product { first_row: first, ..product }.run(pool)
    }

    /// The logits that were computed last.
    pub(crate) fn logits(&self) -> LogitRows<'_> {
        LogitRows::new(&self.logits, self.draft_tokens)
    }

    /// Adds a product with `matrix`, an output for each draft token, to `rows` rows of the logits from
    /// `first` on.
    pub(crate) fn add_to_logits(
        &mut self,
        pool: &Pool,
        matrix: &PackedAlone,
        input: &mut Rows,
        first: usize,
        rows: usize,
    ) -> Result<(), JobPanicked> {
        let (x, out) = (input.share(), self.logits.share());
        let product = self.layers.product_in(&matrix.arena, &matrix.linear, x, rows, out);
        Product { first_out: first, accumulate: true, ..product }.run(pool)
    }
}

/// Makes one state of the head's width of a token's hidden states.
pub(crate) struct Fusion {
    linear: PackedLinear,
    norm: StateNorm,
    pub(crate) hidden_norm: Vec<f32>,
    input: Rows,
    fused: Rows,
}

/// Norms of the hidden states before they are fused.
enum StateNorm {
    Raw,
    Joint(Vec<f32>),
    Each(Vec<Vec<f32>>),
}

impl StateNorm {
    fn write(&self, norm: VectorNorm, states: &[f32], out: &mut [f32]) {
        match self {
            StateNorm::Raw => out.copy_from_slice(states),
            StateNorm::Joint(weight) => norm.write(weight, states, out),
            StateNorm::Each(weights) => {
                let width = states.len() / weights.len();
                let parts = states.chunks_exact(width).zip(out.chunks_exact_mut(width));
                weights.iter().zip(parts).for_each(|(weight, (x, out))| norm.write(weight, x, out));
            }
        }
    }
}

impl Fusion {
    fn new(linear: PackedLinear, feature_norm: &FeatureNorm, hidden_norm: &Tensor) -> Fusion {
        let norm = match feature_norm {
            FeatureNorm::Raw => StateNorm::Raw,
            FeatureNorm::Joint(weight) => StateNorm::Joint(vector(weight)),
            FeatureNorm::Each(weights) => StateNorm::Each(weights.iter().map(vector).collect()),
        };
        Fusion {
            norm,
            hidden_norm: vector(hidden_norm),
            input: Rows::new(PART_ROWS_MAX, linear.matrix.inputs()),
            fused: Rows::new(PART_ROWS_MAX, linear.matrix.padded_outputs()),
            linear,
        }
    }

    /// Fuses the states of at most [`PART_ROWS_MAX`] tokens.
    fn run(
        &mut self,
        pool: &Pool,
        layers: &Layers,
        states: &HiddenStates,
        tokens: &[Committed],
    ) -> Result<(), JobPanicked> {
        let (norm, width) = (layers.vector_norm(), self.linear.matrix.inputs());
        for (index, token) in tokens.iter().enumerate() {
            self.norm.write(norm, states.row(token.row), &mut self.input.row_mut(index)[..width]);
        }
        let (x, out) = (self.input.share(), self.fused.share());
        layers.product(&self.linear, x, tokens.len(), out).run(pool)
    }

    /// A fused state, `width` wide.
    pub(crate) fn fused(&self, index: usize, width: usize) -> &[f32] {
        &self.fused.row(index)[..width]
    }
}
