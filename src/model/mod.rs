//! Models as files: what they are, where they lie, how they are read.

mod config_json;
mod embedded;
mod error;
mod files;
mod json_file;
mod load;
pub mod random;
mod rope_config;
mod safetensors_file;
mod source;
mod spec;
mod weights;

pub use error::ModelError;
pub use load::{Model, load};
pub use source::ModelSource;
pub use spec::{
    Dtype, LayerWeights, Linear, LoadedModel, ModelSpec, ModelWeights, Rope, RopeScaling, Tensor, TensorBytes,
};
