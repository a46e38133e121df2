//! Loads a model or a pair of models: parses the configuration, maps the weights and checks
//! that the pair is compatible.
#![forbid(unsafe_code)]

use serde_json::Value as Json;

use super::files::{CONFIG, ModelFiles};
use super::generation_config::GenerationConfig;
use super::json_file::JsonObject;
use super::safetensors_file::TensorFiles;
use super::tokenizer_config::TokenizerConfig;
use super::{
    ChatTemplate, DraftHead, DraftWeights, HeadSettings, LoadedModel, ModelError, ModelSource,
    RecommendedSampling, Tokenizer, config_json, draft_head, same_token_list, weights,
};
use crate::protocol::{ModelRole, TokenId};

const GENERATION_CONFIG: &str = "generation_config.json";

/// A loaded model with its tokenizer and chat template.
#[derive(Clone, Debug)]
pub struct Model {
    /// Name in the API.
    pub name: String,
    /// Shape and mapped weights.
    pub loaded: LoadedModel,
    /// Tokenizer.
    pub tokenizer: Tokenizer,
    /// Chat template; models without one do not support chat.
    pub chat_template: Option<ChatTemplate>,
    /// Context length by config.json, in tokens, however much shorter it is loaded.
    pub own_context_tokens_max: u32,
    /// End-of-sequence tokens: those of generation_config.json, else of config.json, and the
    /// tokenizer's own; empty if the model defines none.
    pub eos: Vec<TokenId>,
    /// Sampling parameters that generation_config.json recommends.
    pub sampling: RecommendedSampling,
}

/// A target model with what drafts for it.
#[derive(Clone, Debug)]
pub struct ModelPair {
    /// The target model.
    pub target: Model,
    /// What drafts, if anything does.
    pub draft: Option<DraftWeights>,
}

/// Loads the model of `source` for `role`. Weights are mapped, not copied: the files must not
/// be modified or truncated while the model is in use (replace them by renaming).
///
/// # Errors
/// Any [`ModelError`] except `Pair`.
pub fn load(source: &ModelSource, role: ModelRole) -> Result<Model, ModelError> {
    load_within(source, role, None)
}

/// [`load`], of a source that is known to hold a model: it is not refused as a draft head, whatever
/// its architecture is called.
///
/// # Errors
/// Any [`ModelError`] except `Pair` and `DraftHead`.
pub fn load_model(source: &ModelSource, role: ModelRole) -> Result<Model, ModelError> {
    read(source, &Opened::open(source, role)?, None)
}

/// [`load`], for contexts of at most `context_cap` tokens.
fn load_within(
    source: &ModelSource,
    role: ModelRole,
    context_cap: Option<usize>,
) -> Result<Model, ModelError> {
    let opened = Opened::open(source, role)?;
    opened.refuse_head()?;
    read(source, &opened, context_cap)
}

/// The files of a model or a head.
struct Opened {
    files: ModelFiles,
    config: Json,
    tensors: TensorFiles,
}

impl Opened {
    fn open(source: &ModelSource, role: ModelRole) -> Result<Opened, ModelError> {
        let files = ModelFiles::open(source, role)?;
        Ok(Opened { config: files.read_json(CONFIG)?, tensors: TensorFiles::open(&files)?, files })
    }

    fn refuse_head(&self) -> Result<(), ModelError> {
        let path = self.files.path_of(CONFIG);
        match draft_head::recognise(&JsonObject::root(&path, &self.config)?, &self.tensors)? {
            None => Ok(()),
            Some(kind) => Err(ModelError::DraftHead { directory: self.files.place(), kind }),
        }
    }
}

/// Reads the model from its files, for contexts of at most `context_cap` tokens.
fn read(source: &ModelSource, opened: &Opened, context_cap: Option<usize>) -> Result<Model, ModelError> {
    let Opened { files, config, tensors } = opened;
    let config = config_json::parse_config(&files.path_of(CONFIG), config, context_cap)?;
    let weights = weights::read(tensors, &config.spec, config.parts)?;
    let vocab_size = config.spec.vocab_size;
    let described = TokenizerConfig::read(files, &config.spec.model_type)?;
    let tokenizer = Tokenizer::load(files, vocab_size, &described)?;
    let chat_template = ChatTemplate::load(files, &described)?;
    let generation = match files.read_json_if_there(GENERATION_CONFIG)? {
        None => GenerationConfig::default(),
        Some(json) => GenerationConfig::parse(&files.path_of(GENERATION_CONFIG), &json, vocab_size)?,
    };
    let mut eos = if generation.eos.is_empty() { config.eos } else { generation.eos };
    // a model may be trained to end its turns with a token that only the tokenizer names
    let of_tokenizer = described.special_token("eos_token").and_then(|text| tokenizer.token_id(text));
    eos.extend(of_tokenizer.filter(|id| !eos.contains(id)));
    let own_context_tokens_max = config.own_context_tokens_max as u32;
    let loaded = LoadedModel { spec: config.spec, weights };
    Ok(Model {
        name: source.name(),
        loaded,
        tokenizer,
        chat_template,
        own_context_tokens_max,
        eos,
        sampling: generation.sampling,
    })
}

/// Loads a target and an optional draft: a draft head for this target, or a model with the target's
/// token list.
///
/// Embeddings are often padded with rows that have no token, by different amounts within
/// a model family. If target and draft model differ, the longer one is truncated to the shorter: a
/// row without a token is never sampled on purpose.
///
/// # Errors
/// Any [`ModelError`].
pub fn load_pair(target: &ModelSource, draft: Option<&ModelSource>) -> Result<ModelPair, ModelError> {
    load_pair_within(target, draft, &HeadSettings::default(), None)
}

/// [`load_pair`], with what the deployment says about its draft, for contexts of at most
/// `context_cap` tokens; longer contexts of the models are shortened to that. A cap makes models
/// loadable whose attention differs only beyond it.
///
/// # Errors
/// Any [`ModelError`].
pub fn load_pair_within(
    target: &ModelSource,
    draft: Option<&ModelSource>,
    settings: &HeadSettings,
    context_cap: Option<usize>,
) -> Result<ModelPair, ModelError> {
    let loaded = load_within(target, ModelRole::Target, context_cap)?;
    let mut pair = ModelPair { target: loaded, draft: None };
    let Some(source) = draft else { return Ok(pair) };
    pair.draft = Some(match DraftHead::load_with(source, Some(&pair.target.loaded.spec), settings)? {
        Some(head) => DraftWeights::Head(head),
        None => {
            let model = read(source, &Opened::open(source, ModelRole::Draft)?, context_cap)?;
            fit(target, &mut pair.target, source, model)?.into()
        }
    });
    Ok(pair)
}

/// The weights of a draft model, if it has the target's token list; both with as many tokens.
fn fit(
    target_source: &ModelSource,
    target: &mut Model,
    source: &ModelSource,
    mut draft: Model,
) -> Result<LoadedModel, ModelError> {
    same_token_list(&target.tokenizer, &draft.tokenizer).map_err(|mismatch| ModelError::Pair {
        target: target_source.to_string(),
        draft: source.to_string(),
        mismatch,
    })?;
    let rows = target.loaded.spec.vocab_size.min(draft.loaded.spec.vocab_size);
    target.loaded.cut_vocabulary(rows);
    draft.loaded.cut_vocabulary(rows);
    Ok(draft.loaded)
}

impl LoadedModel {
    /// Truncates embedding and head to `rows` rows.
    fn cut_vocabulary(&mut self, rows: usize) {
        self.spec.vocab_size = rows;
        for matrix in [&mut self.weights.embedding, &mut self.weights.head] {
            let row_bytes = matrix.shape[1] * matrix.dtype.bytes();
            matrix.shape[0] = rows;
            matrix.range.end = matrix.range.start + rows * row_bytes;
        }
    }
}
