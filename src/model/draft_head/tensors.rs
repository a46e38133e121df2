//! Takes the tensors of a head by name, each in the shape that config.json implies, and refuses
//! what is left over.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::BTreeSet;

use crate::model::json_file::JsonObject;
use crate::model::safetensors_file::TensorFiles;
use crate::model::{LayerTensor, LayerWeights, ModelError, ModelSpec, Tensor};
use crate::protocol::TokenId;

/// Of each draft token, its distance to the target's: `target = draft + d2t[draft]`.
const DRAFT_TO_TARGET: &str = "d2t";
/// Which of the target's tokens have a draft token; follows from `d2t`.
const TARGET_TO_DRAFT: &str = "t2d";
const EMBEDDING: &str = "embed_tokens.weight";
const OUTPUT_HEAD: &str = "lm_head.weight";

pub(super) struct HeadTensors<'a> {
    files: &'a TensorFiles,
    taken: RefCell<BTreeSet<String>>,
}

impl<'a> HeadTensors<'a> {
    pub(super) fn new(files: &'a TensorFiles) -> HeadTensors<'a> {
        HeadTensors { files, taken: RefCell::default() }
    }

    /// The tensor of this name, which must be there in this shape.
    pub(super) fn take(&self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        self.taken.borrow_mut().insert(name.to_owned());
        self.files.tensor(name, shape)
    }

    /// The same for one that heads may lack.
    pub(super) fn take_if_there(&self, name: &str, shape: &[usize]) -> Result<Option<Tensor>, ModelError> {
        if self.files.has(name) { self.take(name, shape).map(Some) } else { Ok(None) }
    }

    /// A transformer layer whose names begin with `prefix`. Query, key and value read inputs of
    /// `attention_inputs` numbers. Query and key heads are normalised in qwen3, and where there is a
    /// tensor for it.
    pub(super) fn layer(
        &self,
        prefix: &str,
        spec: &ModelSpec,
        attention_inputs: usize,
    ) -> Result<LayerWeights, ModelError> {
        let name = |role: LayerTensor| format!("{prefix}.{}", role.name());
        let shape = |role: LayerTensor| match role {
            LayerTensor::Weight(projection) if projection.is_qkv() => {
                vec![projection.shape(spec)[0], attention_inputs]
            }
            _ => role.shape(spec),
        };
        let norms = [LayerTensor::QueryNorm, LayerTensor::KeyNorm];
        let head_norms = spec.model_type == "qwen3" || norms.iter().any(|&role| self.files.has(&name(role)));
        LayerWeights::try_build(
            |role| role.is_head_norm() && head_norms,
            |role| self.take(&name(role), &shape(role)),
        )
    }

    /// The embedding, if the head has its own: `[target vocabulary, hidden]`. `layers` is the part
    /// of config.json that has the hidden size.
    pub(super) fn embedding(
        &self,
        spec: &ModelSpec,
        target_hidden_size: usize,
        layers: &JsonObject,
    ) -> Result<Option<Tensor>, ModelError> {
        let own = self.take_if_there(EMBEDDING, &[spec.vocab_size, spec.hidden_size])?;
        if own.is_none() && spec.hidden_size != target_hidden_size {
            let problem =
                format!("there is no `{EMBEDDING}`, and the target's embedding is {target_hidden_size} wide");
            return Err(layers.bad("hidden_size", problem));
        }
        Ok(own)
    }

    /// The output head, if it is the head's own: `[draft tokens, hidden]`.
    pub(super) fn output_head(
        &self,
        spec: &ModelSpec,
        draft_tokens: usize,
        target_hidden_size: usize,
    ) -> Result<Option<Tensor>, ModelError> {
        let can_share = draft_tokens == spec.vocab_size && spec.hidden_size == target_hidden_size;
        let shape = [draft_tokens, spec.hidden_size];
        if can_share {
            self.take_if_there(OUTPUT_HEAD, &shape)
        } else {
            self.take(OUTPUT_HEAD, &shape).map(Some)
        }
    }

    /// The target's token of each draft token; `None` if they are the same.
    pub(super) fn draft_to_target(
        &self,
        draft_tokens: usize,
        vocab_size: usize,
    ) -> Result<Option<Vec<TokenId>>, ModelError> {
        self.taken.borrow_mut().insert(TARGET_TO_DRAFT.to_owned());
        if !self.files.has(DRAFT_TO_TARGET) {
            let found =
                format!("a draft vocabulary of {draft_tokens} tokens beside the target's of {vocab_size}");
            return if draft_tokens == vocab_size { Ok(None) } else { Err(self.bad_map(found)) };
        }
        self.taken.borrow_mut().insert(DRAFT_TO_TARGET.to_owned());
        let distances = self.files.integers(DRAFT_TO_TARGET, draft_tokens)?;
        let mut seen = vec![false; vocab_size];
        let mut map = Vec::with_capacity(draft_tokens);
        for (draft, distance) in (0_i64..).zip(distances) {
            let target = draft.checked_add(distance).and_then(|target| usize::try_from(target).ok());
            let Some(target) = target.filter(|&target| target < vocab_size) else {
                let found = format!(
                    "draft token {draft} at the distance {distance}, beyond the target's {vocab_size} tokens"
                );
                return Err(self.bad_map(found));
            };
            if std::mem::replace(&mut seen[target], true) {
                return Err(self.bad_map(format!("two draft tokens for the target's token {target}")));
            }
            map.push(target as TokenId);
        }
        Ok(Some(map))
    }

    fn bad_map(&self, found: String) -> ModelError {
        ModelError::DraftVocabulary { file: self.files.path_of(DRAFT_TO_TARGET).to_owned(), found }
    }

    /// Refuses tensors that were not taken: ignoring one could compute another function.
    pub(super) fn finish(self) -> Result<(), ModelError> {
        self.files.refuse_others(&self.taken.into_inner())
    }
}
