//! Draft heads of seeded noise.
#![forbid(unsafe_code)]

use super::{RandomOptions, Source};
use crate::model::{
    BlockHead, ConfidenceHead, Eagle3Head, FeatureNorm, Features, HeadKind, Interface, MarkovHead, ModelSpec,
};
use crate::protocol::TokenId;

/// Variants of a random head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RandomHeadOptions {
    /// The streams of the target that are fused: those that enter these layers.
    pub layers: Vec<usize>,
    /// Size of a draft vocabulary of the head's own, spread over the target's; `None`: the target's,
    /// and its output head.
    pub draft_tokens: Option<usize>,
    /// An embedding of its own.
    pub own_embedding: bool,
    /// Norms of query and key heads.
    pub head_norms: bool,
    /// EAGLE-3: the residual is the normed state.
    pub norm_before_residual: bool,
    /// EAGLE-3: passes hand on the normed state.
    pub norm_output: bool,
    /// EAGLE-3: one norm over all streams before they are fused.
    pub joint_norm: bool,
    /// EAGLE-3: a norm for each stream before they are fused.
    pub each_norm: bool,
    /// Block heads: layers.
    pub depth: usize,
    /// Block heads: tokens of a block.
    pub block_tokens: usize,
    /// Block heads: the anchor's slot drafts.
    pub sample_from_anchor: bool,
    /// Block heads: rank of a Markov head, with a confidence head that reads it; `None`: neither.
    pub markov_rank: Option<usize>,
}

impl Default for RandomHeadOptions {
    /// Three streams of a target of at least three layers, and what release and DeepSpec have.
    fn default() -> RandomHeadOptions {
        RandomHeadOptions {
            layers: vec![0, 1, 2],
            draft_tokens: None,
            own_embedding: false,
            head_norms: false,
            norm_before_residual: false,
            norm_output: false,
            joint_norm: false,
            each_norm: false,
            depth: 2,
            block_tokens: 5,
            sample_from_anchor: true,
            markov_rank: Some(16),
        }
    }
}

/// An EAGLE-3 head for a target of this shape, as wide as it; equal seeds and options give equal
/// weights.
pub fn random_eagle3(target: &ModelSpec, seed: u64, options: &RandomHeadOptions) -> Eagle3Head {
    let mut source = source(seed, options);
    let spec = ModelSpec { layers: 1, ..target.clone() };
    let hidden = spec.hidden_size;
    let streams = options.layers.len();
    let feature_norm = if options.joint_norm {
        FeatureNorm::Joint(source.norm(streams * hidden))
    } else if options.each_norm {
        FeatureNorm::Each((0..streams).map(|_| source.norm(hidden)).collect())
    } else {
        FeatureNorm::Raw
    };
    Eagle3Head {
        interface: interface(&mut source, target, options),
        norm_before_residual: options.norm_before_residual,
        norm_output: options.norm_output,
        feature_norm,
        layer: source.layer_reading(&spec, 2 * hidden),
        spec,
    }
}

/// A DSpark head for a target of this shape, as wide as it, or without a Markov head a DFlash head.
pub fn random_block_head(target: &ModelSpec, seed: u64, options: &RandomHeadOptions) -> BlockHead {
    let mut source = source(seed, options);
    let spec = ModelSpec { layers: options.depth, ..target.clone() };
    let interface = interface(&mut source, target, options);
    let markov = options.markov_rank.map(|rank| MarkovHead {
        w1: source.matrix(spec.vocab_size, rank),
        w2: source.matrix(interface.draft_tokens, rank),
    });
    let confidence = options.markov_rank.map(|rank| ConfidenceHead {
        weight: source.matrix(1, spec.hidden_size + rank),
        bias: Some(source.norm(1)),
        with_markov: true,
    });
    BlockHead {
        kind: if markov.is_some() { HeadKind::DSpark } else { HeadKind::DFlash },
        block_tokens: options.block_tokens,
        mask_token: 1,
        sample_from_anchor: options.sample_from_anchor,
        layers: (0..options.depth).map(|_| source.layer(&spec)).collect(),
        markov,
        confidence,
        spec,
        interface,
    }
}

fn source(seed: u64, options: &RandomHeadOptions) -> Source {
    let head_norms = options.head_norms;
    Source::new(seed, RandomOptions { head_norms, ..RandomOptions::default() })
}

fn interface(source: &mut Source, target: &ModelSpec, options: &RandomHeadOptions) -> Interface {
    let (hidden, vocab) = (target.hidden_size, target.vocab_size);
    let streams = options.layers.len();
    let spread = |draft_tokens: usize| -> Vec<TokenId> {
        // not ascending, as a reader must not expect it
        (0..draft_tokens).rev().map(|draft| (draft * vocab / draft_tokens) as TokenId).collect()
    };
    Interface {
        features: Features {
            target_hidden_size: hidden,
            count: streams,
            layers: Some(options.layers.clone()),
        },
        fusion: source.matrix(hidden, streams * hidden),
        hidden_norm: source.norm(hidden),
        embedding: options.own_embedding.then(|| source.matrix(vocab, hidden)),
        final_norm: source.norm(hidden),
        output_head: options.draft_tokens.map(|tokens| source.matrix(tokens, hidden)),
        draft_tokens: options.draft_tokens.unwrap_or(vocab),
        draft_to_target: options.draft_tokens.map(spread),
    }
}
