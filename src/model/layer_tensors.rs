//! The tensors of a transformer layer, enumerated once: their roles, their names in Hugging
//! Face checkpoints and their shapes. Loaders, uploaders and tools iterate over this list
//! rather than keep lists of their own.
#![forbid(unsafe_code)]

use super::{LayerWeights, Linear, ModelSpec, Tensor};

/// A linear layer of a transformer layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Projection {
    /// Queries of the attention.
    Query,
    /// Keys of the attention.
    Key,
    /// Values of the attention.
    Value,
    /// From the attention heads back to the residual stream.
    Output,
    /// The gate of SwiGLU.
    Gate,
    /// The factor that the gate multiplies.
    Up,
    /// From the MLP back to the residual stream.
    Down,
}

impl Projection {
    /// All of them, in the order of a forward pass.
    pub const ALL: [Projection; 7] = [
        Projection::Query,
        Projection::Key,
        Projection::Value,
        Projection::Output,
        Projection::Gate,
        Projection::Up,
        Projection::Down,
    ];

    /// Whether it reads the attention's input: query, key and value.
    pub fn is_qkv(self) -> bool {
        matches!(self, Projection::Query | Projection::Key | Projection::Value)
    }

    /// Outputs and inputs: `[outputs, inputs]` is the shape of its weight.
    pub fn shape(self, spec: &ModelSpec) -> [usize; 2] {
        let (hidden, mlp) = (spec.hidden_size, spec.intermediate_size);
        let (queries, keys) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        match self {
            Projection::Query => [queries, hidden],
            Projection::Key | Projection::Value => [keys, hidden],
            Projection::Output => [hidden, queries],
            Projection::Gate | Projection::Up => [mlp, hidden],
            Projection::Down => [hidden, mlp],
        }
    }
}

/// The role of a tensor in its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerTensor {
    /// RMSNorm before the attention.
    AttentionNorm,
    /// RMSNorm of each query head (qwen3).
    QueryNorm,
    /// RMSNorm of each key head (qwen3).
    KeyNorm,
    /// RMSNorm before the MLP.
    MlpNorm,
    /// Weight of a linear layer.
    Weight(Projection),
    /// Bias of a linear layer.
    Bias(Projection),
}

impl LayerTensor {
    /// Every tensor that a layer can have, in the order of a forward pass. Random models draw
    /// their numbers in this order, and the digest of a model and the seeds of an inflated one
    /// derive from it: it can only be extended.
    pub const ALL: [LayerTensor; 18] = [
        LayerTensor::AttentionNorm,
        LayerTensor::Weight(Projection::Query),
        LayerTensor::Bias(Projection::Query),
        LayerTensor::Weight(Projection::Key),
        LayerTensor::Bias(Projection::Key),
        LayerTensor::Weight(Projection::Value),
        LayerTensor::Bias(Projection::Value),
        LayerTensor::QueryNorm,
        LayerTensor::KeyNorm,
        LayerTensor::Weight(Projection::Output),
        LayerTensor::Bias(Projection::Output),
        LayerTensor::MlpNorm,
        LayerTensor::Weight(Projection::Gate),
        LayerTensor::Bias(Projection::Gate),
        LayerTensor::Weight(Projection::Up),
        LayerTensor::Bias(Projection::Up),
        LayerTensor::Weight(Projection::Down),
        LayerTensor::Bias(Projection::Down),
    ];

    /// Name in a Hugging Face checkpoint, without the prefix `model.layers.N.`.
    pub fn name(self) -> &'static str {
        match self {
            LayerTensor::AttentionNorm => "input_layernorm.weight",
            LayerTensor::QueryNorm => "self_attn.q_norm.weight",
            LayerTensor::KeyNorm => "self_attn.k_norm.weight",
            LayerTensor::MlpNorm => "post_attention_layernorm.weight",
            LayerTensor::Weight(Projection::Query) => "self_attn.q_proj.weight",
            LayerTensor::Weight(Projection::Key) => "self_attn.k_proj.weight",
            LayerTensor::Weight(Projection::Value) => "self_attn.v_proj.weight",
            LayerTensor::Weight(Projection::Output) => "self_attn.o_proj.weight",
            LayerTensor::Weight(Projection::Gate) => "mlp.gate_proj.weight",
            LayerTensor::Weight(Projection::Up) => "mlp.up_proj.weight",
            LayerTensor::Weight(Projection::Down) => "mlp.down_proj.weight",
            LayerTensor::Bias(Projection::Query) => "self_attn.q_proj.bias",
            LayerTensor::Bias(Projection::Key) => "self_attn.k_proj.bias",
            LayerTensor::Bias(Projection::Value) => "self_attn.v_proj.bias",
            LayerTensor::Bias(Projection::Output) => "self_attn.o_proj.bias",
            LayerTensor::Bias(Projection::Gate) => "mlp.gate_proj.bias",
            LayerTensor::Bias(Projection::Up) => "mlp.up_proj.bias",
            LayerTensor::Bias(Projection::Down) => "mlp.down_proj.bias",
        }
    }

    /// Shape in a model of this spec: `[outputs, inputs]` or `[length]`.
    pub fn shape(self, spec: &ModelSpec) -> Vec<usize> {
        match self {
            LayerTensor::AttentionNorm | LayerTensor::MlpNorm => vec![spec.hidden_size],
            LayerTensor::QueryNorm | LayerTensor::KeyNorm => vec![spec.head_dim],
            LayerTensor::Weight(projection) => projection.shape(spec).to_vec(),
            LayerTensor::Bias(projection) => vec![projection.shape(spec)[0]],
        }
    }

    /// Whether it normalizes query or key heads.
    pub fn is_head_norm(self) -> bool {
        matches!(self, LayerTensor::QueryNorm | LayerTensor::KeyNorm)
    }

    /// Whether it is a bias.
    pub fn is_bias(self) -> bool {
        matches!(self, LayerTensor::Bias(_))
    }

    /// Whether only some models have it: biases and head norms.
    pub fn is_optional(self) -> bool {
        self.is_bias() || self.is_head_norm()
    }
}

impl LayerWeights {
    /// Builds a layer tensor by tensor, in the order of [`LayerTensor::ALL`]. `has` decides
    /// which optional tensors exist; the others are always made.
    ///
    /// # Errors
    /// The first error of `make`.
    pub fn try_build<E>(
        has: impl Fn(LayerTensor) -> bool,
        make: impl FnMut(LayerTensor) -> Result<Tensor, E>,
    ) -> Result<LayerWeights, E> {
        let mut builder = Builder { has, make };
        Ok(LayerWeights {
            attention_norm: builder.required(LayerTensor::AttentionNorm)?,
            query: builder.linear(Projection::Query)?,
            key: builder.linear(Projection::Key)?,
            value: builder.linear(Projection::Value)?,
            query_norm: builder.optional(LayerTensor::QueryNorm)?,
            key_norm: builder.optional(LayerTensor::KeyNorm)?,
            output: builder.linear(Projection::Output)?,
            mlp_norm: builder.required(LayerTensor::MlpNorm)?,
            gate: builder.linear(Projection::Gate)?,
            up: builder.linear(Projection::Up)?,
            down: builder.linear(Projection::Down)?,
        })
    }

    /// A linear layer by its role.
    pub fn projection(&self, projection: Projection) -> &Linear {
        match projection {
            Projection::Query => &self.query,
            Projection::Key => &self.key,
            Projection::Value => &self.value,
            Projection::Output => &self.output,
            Projection::Gate => &self.gate,
            Projection::Up => &self.up,
            Projection::Down => &self.down,
        }
    }

    /// Query, key and value: they read the same input, so executors stack them into one matrix.
    pub fn qkv(&self) -> [&Linear; 3] {
        [&self.query, &self.key, &self.value]
    }

    /// Gate and up: they read the same input, so executors fuse them into one matrix.
    pub fn gate_up(&self) -> [&Linear; 2] {
        [&self.gate, &self.up]
    }

    /// A tensor by its role; `None` where the layer lacks it.
    pub fn tensor(&self, role: LayerTensor) -> Option<&Tensor> {
        match role {
            LayerTensor::AttentionNorm => Some(&self.attention_norm),
            LayerTensor::QueryNorm => self.query_norm.as_ref(),
            LayerTensor::KeyNorm => self.key_norm.as_ref(),
            LayerTensor::MlpNorm => Some(&self.mlp_norm),
            LayerTensor::Weight(projection) => Some(&self.projection(projection).weight),
            LayerTensor::Bias(projection) => self.projection(projection).bias.as_ref(),
        }
    }

    /// The tensors that the layer has, in the order of [`LayerTensor::ALL`].
    pub fn tensors(&self) -> impl Iterator<Item = (LayerTensor, &Tensor)> {
        LayerTensor::ALL.into_iter().filter_map(|role| self.tensor(role).map(|tensor| (role, tensor)))
    }
}

struct Builder<Has, Make> {
    has: Has,
    make: Make,
}

impl<E, Has, Make> Builder<Has, Make>
where
    Has: Fn(LayerTensor) -> bool,
    Make: FnMut(LayerTensor) -> Result<Tensor, E>,
{
    fn required(&mut self, role: LayerTensor) -> Result<Tensor, E> {
        (self.make)(role)
    }

    fn optional(&mut self, role: LayerTensor) -> Result<Option<Tensor>, E> {
        if (self.has)(role) { self.required(role).map(Some) } else { Ok(None) }
    }

    fn linear(&mut self, projection: Projection) -> Result<Linear, E> {
        let weight = self.required(LayerTensor::Weight(projection))?;
        Ok(Linear { weight, bias: self.optional(LayerTensor::Bias(projection))? })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::model::random::{RandomOptions, random_model, small_spec};

    fn every_part() -> RandomOptions {
        RandomOptions { qkv_bias: true, other_bias: true, head_norms: true, ..RandomOptions::default() }
    }

    #[test]
    fn a_layer_with_every_part_has_each_tensor_once_and_in_its_shape() {
        let spec = small_spec(32);
        let layer = &random_model(&spec, 1, every_part()).weights.layers[0];
        let roles: Vec<LayerTensor> = layer.tensors().map(|(role, _)| role).collect();
        assert_eq!(roles, LayerTensor::ALL);
        for (role, tensor) in layer.tensors() {
            assert_eq!(tensor.shape, role.shape(&spec), "{}", role.name());
        }
        let names: BTreeSet<&str> = LayerTensor::ALL.iter().map(|role| role.name()).collect();
        assert_eq!(names.len(), LayerTensor::ALL.len(), "names are distinct");
        let stored: BTreeSet<*const u8> =
            layer.tensors().map(|(_, tensor)| tensor.bytes().as_ptr()).collect();
        assert_eq!(stored.len(), LayerTensor::ALL.len(), "each role is another tensor");
    }

    #[test]
    fn only_optional_tensors_can_be_missing() {
        let layer = &random_model(&small_spec(32), 1, RandomOptions::default()).weights.layers[0];
        for role in LayerTensor::ALL {
            assert_eq!(layer.tensor(role).is_none(), role.is_optional(), "{}", role.name());
        }
    }

    #[test]
    fn a_layer_is_built_in_the_order_in_which_it_is_enumerated() {
        let model = random_model(&small_spec(32), 1, every_part());
        let mut made = Vec::new();
        let layer = LayerWeights::try_build(
            |_| true,
            |role| {
                made.push(role);
                model.weights.layers[0].tensor(role).cloned().ok_or(role)
            },
        );
        assert!(layer.is_ok());
        assert_eq!(made, LayerTensor::ALL);
        let failed = LayerWeights::try_build(|_| false, Err::<Tensor, _>);
        assert_eq!(failed.err(), Some(LayerTensor::AttentionNorm));
    }
}
