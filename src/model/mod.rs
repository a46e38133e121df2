//! Models as files: what they are, where they lie, how they are read.

pub mod random;
mod spec;

pub use spec::{
    Dtype, LayerWeights, Linear, LoadedModel, ModelSpec, ModelWeights, Rope, RopeScaling, Tensor, TensorBytes,
};
