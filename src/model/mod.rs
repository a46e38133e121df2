//! Model files: configuration, weights, tokenizer and chat template; where they are, by path or by
//! name on the Hugging Face hub; and `inflate`, which gives a small model the dimensions of a large
//! one.
//!
//! May import: protocol, random.

mod chat_template;
mod config_json;
mod draft_head;
mod draft_weights;
mod embedded;
mod error;
mod files;
mod generation_config;
mod gguf;
mod head_kind;
mod head_settings;
mod hub;
mod hub_name;
pub mod inflate;
mod json_file;
mod layer_tensors;
mod load;
mod mismatch;
mod model_ref;
mod pair;
pub mod random;
mod rope_config;
mod safetensors_file;
mod source;
mod spec;
mod stand_in;
#[cfg(test)]
mod tests;
mod tokenizer;
mod tokenizer_config;
mod weights;

pub use chat_template::{ChatInput, ChatTemplate, ChatTemplateError};
pub use draft_head::{
    BlockHead, ConfidenceHead, DraftHead, Eagle3Head, FeatureNorm, Features, Interface, MarkovHead,
};
pub use draft_weights::DraftWeights;
pub use error::ModelError;
pub use generation_config::RecommendedSampling;
pub use head_kind::{DraftKind, HeadKind};
pub use head_settings::{
    HIDDEN_STATE_LAYERS, HeadSettings, KIND, Misplaced, NORM_BEFORE_RESIDUAL, names_a_layer_twice,
};
pub use hub::{CachedRepository, HubCache, REQUIRED_FILES, WEIGHTS_FILE, WEIGHTS_INDEX, hub_home, shards};
pub use hub_name::{HubName, HubNameError, is_commit};
pub use layer_tensors::{LayerTensor, Projection};
pub use load::{Model, ModelPair, load, load_model, load_pair, load_pair_within};
pub use mismatch::Mismatch;
pub use model_ref::ModelRef;
pub use pair::same_token_list;
pub use source::ModelSource;
pub use spec::{
    Dtype, LayerWeights, Linear, LoadedModel, ModelSpec, ModelWeights, Rope, RopeScaling, Tensor,
    TensorBytes, TensorFile,
};
pub use tokenizer::{StreamDecoder, Tokenizer, TokenizerError};
