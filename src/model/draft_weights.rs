//! The weights of what drafts.
#![forbid(unsafe_code)]

use super::{DraftHead, LoadedModel, ModelSpec, Tensor};
use crate::protocol::DrafterNeeds;

/// A draft model or a draft head, ready for an executor.
#[derive(Clone, Debug)]
pub enum DraftWeights {
    /// A small model.
    Model(Box<LoadedModel>),
    /// A head that reads hidden states of the target.
    Head(DraftHead),
}

impl DraftWeights {
    /// Shape of the model, or of the head's layers.
    pub fn spec(&self) -> &ModelSpec {
        match self {
            DraftWeights::Model(model) => &model.spec,
            DraftWeights::Head(head) => head.spec(),
        }
    }

    /// The draft model, if it is one.
    pub fn model(&self) -> Option<&LoadedModel> {
        match self {
            DraftWeights::Model(model) => Some(model),
            DraftWeights::Head(_) => None,
        }
    }

    /// The draft head, if it is one.
    pub fn head(&self) -> Option<&DraftHead> {
        match self {
            DraftWeights::Model(_) => None,
            DraftWeights::Head(head) => Some(head),
        }
    }

    /// What it has to be given; `kv_blocks` are those of a model's own cache.
    pub fn needs(&self, kv_blocks: u32) -> DrafterNeeds {
        match self {
            DraftWeights::Model(_) => DrafterNeeds { branches: true, ..DrafterNeeds::kv_cache(kv_blocks) },
            DraftWeights::Head(head) => head.needs(),
        }
    }

    /// Most drafts of a row in a step: those of a head's block. A chain has no end of its own.
    pub fn drafts_max(&self) -> u32 {
        match self {
            DraftWeights::Head(DraftHead::Block(head)) => head.drafts() as u32,
            _ => u32::MAX,
        }
    }

    /// Its matrices, each once: what executors keep copies of.
    pub fn matrices(&self) -> Vec<&Tensor> {
        match self {
            DraftWeights::Model(model) => model.matrices(),
            DraftWeights::Head(head) => head.matrices(),
        }
    }
}

impl From<LoadedModel> for DraftWeights {
    fn from(model: LoadedModel) -> DraftWeights {
        DraftWeights::Model(Box::new(model))
    }
}

impl From<DraftHead> for DraftWeights {
    fn from(head: DraftHead) -> DraftWeights {
        DraftWeights::Head(head)
    }
}

impl LoadedModel {
    /// The tensors of its layers and its head: what executors keep copies of.
    pub fn matrices(&self) -> Vec<&Tensor> {
        let layers = self.weights.layers.iter().flat_map(|layer| layer.tensors().map(|(_, tensor)| tensor));
        layers.chain([&self.weights.head]).collect()
    }
}

impl DraftHead {
    /// What it has to be given.
    pub fn needs(&self) -> DrafterNeeds {
        let layers = self.interface().features.layers.iter().flatten();
        let needs = DrafterNeeds::hidden_states(layers.map(|&layer| layer as u32).collect());
        match self {
            DraftHead::Eagle3(_) => DrafterNeeds { branches: true, ..needs },
            DraftHead::Block(head) => DrafterNeeds { block_tokens: head.drafts() as u32, ..needs },
        }
    }

    /// The tensors of its layers, its fusion, its output head and its Markov head: what executors keep
    /// copies of.
    pub fn matrices(&self) -> Vec<&Tensor> {
        let (layers, markov) = match self {
            DraftHead::Eagle3(head) => (std::slice::from_ref(&head.layer), None),
            DraftHead::Block(head) => (&head.layers[..], head.markov.as_ref().map(|markov| &markov.w2)),
        };
        let interface = self.interface();
        let layers = layers.iter().flat_map(|layer| layer.tensors().map(|(_, tensor)| tensor));
        layers.chain([&interface.fusion]).chain(&interface.output_head).chain(markov).collect()
    }
}
