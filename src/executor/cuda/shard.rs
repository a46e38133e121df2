//! Which part of each tensor a rank of a tensor-parallel model holds.
//!
//! As in Megatron-LM (Shoeybi et al. 2019, section 3): query, key, value, gate and up are split
//! by their outputs, output and down by their inputs, so that a rank computes its heads and its
//! MLP columns alone and the ranks' results are summed once after the attention and once after
//! the MLP. The head is split by the vocabulary. Norms and the embedding are on every rank.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::tensor_part::TensorPart;
use crate::model::{LayerTensor, ModelSpec, Projection, Tensor};
use crate::protocol::ExecutorError;

const QUERY_HEADS: &str = "query heads";
const KV_HEADS: &str = "KV heads";
const MLP_COLUMNS: &str = "MLP columns";
const VOCABULARY_ROWS: &str = "vocabulary rows";

/// One rank's share of a model: share `rank` of `world` equal ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    rank: usize,
    world: usize,
}

/// Why a model can't be split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    /// There is no such rank.
    #[error("there is no rank {rank} among {world} ranks, which are numbered from 0")]
    Rank {
        /// The rank that was asked for.
        rank: usize,
        /// Number of ranks.
        world: usize,
    },
    /// A dimension does not divide evenly.
    #[error("{count} {what} can't be split evenly among {world} ranks")]
    Uneven {
        /// What is split.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// Number of ranks.
        world: usize,
    },
}

impl From<ShardError> for ExecutorError {
    fn from(error: ShardError) -> ExecutorError {
        ExecutorError::Malformed(error.to_string())
    }
}

impl Shard {
    /// The whole model on one rank.
    pub fn whole() -> Shard {
        Shard { rank: 0, world: 1 }
    }

    /// Share `rank` of `world`.
    ///
    /// # Errors
    /// [`ShardError::Rank`] unless `rank < world`.
    pub fn new(rank: usize, world: usize) -> Result<Shard, ShardError> {
        if rank < world { Ok(Shard { rank, world }) } else { Err(ShardError::Rank { rank, world }) }
    }

    /// This rank's share of `count` indivisible units; `what` names them in errors.
    ///
    /// # Errors
    /// [`ShardError::Uneven`] when the ranks' shares would differ.
    pub fn range(self, what: &'static str, count: usize) -> Result<Range<usize>, ShardError> {
        let Shard { rank, world } = self;
        if !count.is_multiple_of(world) {
            return Err(ShardError::Uneven { what, count, world });
        }
        let share = count / world;
        Ok(rank * share..(rank + 1) * share)
    }

    /// This rank's rows of a tensor whose rows are `units` units, such as heads.
    ///
    /// # Errors
    /// [`ShardError::Uneven`] when the units can't be split evenly.
    pub fn rows<'a>(
        self,
        what: &'static str,
        units: usize,
        tensor: &'a Tensor,
    ) -> Result<TensorPart<'a>, ShardError> {
        let (share, whole) = (self.range(what, units)?, TensorPart::whole(tensor));
        let unit_rows = whole.rows() / units;
        Ok(whole.with_rows(share.start * unit_rows..share.end * unit_rows))
    }

    /// This rank's columns of a tensor whose columns are `units` units, such as heads.
    ///
    /// # Errors
    /// [`ShardError::Uneven`] when the units can't be split evenly.
    pub fn columns<'a>(
        self,
        what: &'static str,
        units: usize,
        tensor: &'a Tensor,
    ) -> Result<TensorPart<'a>, ShardError> {
        let (share, whole) = (self.range(what, units)?, TensorPart::whole(tensor));
        let unit_columns = whole.columns() / units;
        Ok(whole.with_columns(share.start * unit_columns..share.end * unit_columns))
    }

    /// This rank's part of a layer's tensor. A bias of output or down is whole on every rank:
    /// it belongs behind the sum over the ranks.
    ///
    /// # Errors
    /// [`ShardError::Uneven`] when the model can't be split evenly.
    pub fn layer_tensor<'a>(
        self,
        role: LayerTensor,
        tensor: &'a Tensor,
        spec: &ModelSpec,
    ) -> Result<TensorPart<'a>, ShardError> {
        let (LayerTensor::Weight(projection) | LayerTensor::Bias(projection)) = role else {
            return Ok(TensorPart::whole(tensor));
        };
        match projection {
            Projection::Query => self.rows(QUERY_HEADS, spec.heads, tensor),
            Projection::Key | Projection::Value => self.rows(KV_HEADS, spec.kv_heads, tensor),
            Projection::Gate | Projection::Up => self.rows(MLP_COLUMNS, spec.intermediate_size, tensor),
            Projection::Output | Projection::Down if role.is_bias() => Ok(TensorPart::whole(tensor)),
            Projection::Output => self.columns(QUERY_HEADS, spec.heads, tensor),
            Projection::Down => self.columns(MLP_COLUMNS, spec.intermediate_size, tensor),
        }
    }

    /// Rows of the head whose logits this rank computes.
    ///
    /// # Errors
    /// [`ShardError::Uneven`] when the vocabulary can't be split evenly.
    pub fn vocabulary(self, spec: &ModelSpec) -> Result<Range<usize>, ShardError> {
        self.range(VOCABULARY_ROWS, spec.vocab_size)
    }

    /// The shape that this rank computes: its query and KV heads and its MLP columns. The
    /// vocabulary stays whole, since every rank embeds all tokens and gets all logits.
    ///
    /// # Errors
    /// [`ShardError::Uneven`] when the model can't be split evenly.
    pub fn spec(self, spec: &ModelSpec) -> Result<ModelSpec, ShardError> {
        self.vocabulary(spec)?;
        Ok(ModelSpec {
            heads: self.range(QUERY_HEADS, spec.heads)?.len(),
            kv_heads: self.range(KV_HEADS, spec.kv_heads)?.len(),
            intermediate_size: self.range(MLP_COLUMNS, spec.intermediate_size)?.len(),
            ..spec.clone()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::cuda::communicator::{Communicator, Solo};
    use crate::model::random::{RandomOptions, random_model, small_spec};

    fn read(part: &TensorPart<'_>) -> Vec<u16> {
        let mut numbers = vec![0; part.elements()];
        part.read(0, &mut numbers, 1);
        numbers
    }

    fn shards(world: usize) -> impl Iterator<Item = Shard> {
        (0..world).map(move |rank| Shard::new(rank, world).expect("a rank"))
    }

    /// Puts parts below one another.
    fn below(parts: &[TensorPart<'_>]) -> Vec<u16> {
        parts.iter().flat_map(read).collect()
    }

    /// Puts parts beside one another.
    fn beside(parts: &[TensorPart<'_>]) -> Vec<u16> {
        let read: Vec<_> = parts.iter().map(|part| (read(part), part.columns())).collect();
        let row = |row: usize| {
            read.iter().flat_map(move |(numbers, columns)| &numbers[row * columns..(row + 1) * columns])
        };
        (0..parts[0].rows()).flat_map(row).copied().collect()
    }

    /// Six query heads, three KV heads: a world of three ranks is possible, one of two is not.
    fn spec_of_three() -> ModelSpec {
        ModelSpec { heads: 6, kv_heads: 3, ..small_spec(33) }
    }

    #[test]
    fn the_parts_of_all_ranks_make_up_each_tensor_of_a_layer() {
        let options =
            RandomOptions { qkv_bias: true, other_bias: true, head_norms: true, ..RandomOptions::default() };
        for (spec, world) in [(small_spec(32), 1), (small_spec(32), 2), (spec_of_three(), 3)] {
            let model = random_model(&spec, 1, options);
            for (role, tensor) in model.weights.layers[1].tensors() {
                let whole = read(&TensorPart::whole(tensor));
                let parts: Vec<_> = shards(world)
                    .map(|shard| shard.layer_tensor(role, tensor, &spec).expect("splits evenly"))
                    .collect();
                let shares = parts.iter().map(|part| part.elements() * world);
                let name = role.name();
                match role {
                    LayerTensor::Weight(Projection::Output | Projection::Down) => {
                        assert_eq!(beside(&parts), whole, "{name}");
                        assert!(shares.into_iter().all(|total| total == whole.len()), "{name}");
                    }
                    LayerTensor::Weight(_) => {
                        assert_eq!(below(&parts), whole, "{name}");
                        assert!(shares.into_iter().all(|total| total == whole.len()), "{name}");
                    }
                    LayerTensor::Bias(projection)
                        if !matches!(projection, Projection::Output | Projection::Down) =>
                    {
                        assert_eq!(below(&parts), whole, "{name}");
                    }
                    _ => assert!(parts.iter().all(|part| read(part) == whole), "{name} is on every rank"),
                }
            }
        }
    }

    #[test]
    fn the_rows_of_the_head_are_split_by_the_vocabulary() {
        let spec = small_spec(32);
        let ranges: Vec<_> = shards(4).map(|shard| shard.vocabulary(&spec).expect("even")).collect();
        assert_eq!(ranges, [0..8, 8..16, 16..24, 24..32]);
    }

    #[test]
    fn a_rank_has_its_share_of_heads_and_mlp_columns_and_the_shapes_of_its_parts() {
        let spec = small_spec(32);
        let shard = Shard::new(1, 2).expect("a rank");
        let local = shard.spec(&spec).expect("splits evenly");
        assert_eq!((local.heads, local.kv_heads, local.intermediate_size), (2, 1, 60));
        assert_eq!((local.vocab_size, local.hidden_size, local.head_dim), (32, 64, 16));
        let model = random_model(&spec, 1, RandomOptions::default());
        for projection in Projection::ALL {
            let role = LayerTensor::Weight(projection);
            let tensor = model.weights.layers[0].tensor(role).expect("every layer has it");
            let part = shard.layer_tensor(role, tensor, &spec).expect("splits evenly");
            assert_eq!([part.rows(), part.columns()], projection.shape(&local), "{}", role.name());
        }
    }

    #[test]
    fn the_whole_shard_leaves_the_model_as_it_is() {
        let spec = small_spec(32);
        assert_eq!(Shard::whole().spec(&spec), Ok(spec.clone()));
        assert_eq!(Shard::new(Solo.rank(), Solo.world()), Ok(Shard::whole()));
    }

    #[test]
    fn uneven_splits_are_refused_by_name() {
        let refusal = |spec: &ModelSpec, world: usize| {
            let error = Shard::new(0, world).and_then(|shard| shard.spec(spec)).expect_err("uneven");
            error.to_string()
        };
        let even = ModelSpec { heads: 8, kv_heads: 8, ..small_spec(32) };
        for (spec, world, want) in [
            (ModelSpec { vocab_size: 33, ..even.clone() }, 2, "33 vocabulary rows"),
            (ModelSpec { heads: 9, ..even.clone() }, 2, "9 query heads"),
            (ModelSpec { kv_heads: 2, ..even.clone() }, 4, "2 KV heads"),
            (ModelSpec { intermediate_size: 122, ..even.clone() }, 4, "122 MLP columns"),
        ] {
            let want = format!("{want} can't be split evenly among {world} ranks");
            assert_eq!(refusal(&spec, world), want);
        }
        let model = random_model(&small_spec(32), 1, RandomOptions::default());
        let output = &model.weights.layers[0].output.weight;
        let shard = Shard::new(0, 3).expect("a rank");
        let refused = shard.layer_tensor(LayerTensor::Weight(Projection::Output), output, &model.spec);
        assert_eq!(refused.err(), Some(ShardError::Uneven { what: QUERY_HEADS, count: 4, world: 3 }));
    }

    #[test]
    fn a_rank_outside_of_its_world_is_refused() {
        assert_eq!(Shard::new(2, 2), Err(ShardError::Rank { rank: 2, world: 2 }));
        assert_eq!(Shard::new(0, 0), Err(ShardError::Rank { rank: 0, world: 0 }));
    }
}
