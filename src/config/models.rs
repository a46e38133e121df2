//! `[target]` and `[draft]`: the models.

use super::reader::{Integer, Section};
use super::render::{Entry, number};
use crate::model::ModelRef;

const MODEL_BOUND: &str =
    "\"embedded:tiny\", a Hugging Face directory, or a name on the hub such as \"org/name\"";
/// Value of `draft.model` that selects prompt lookup instead of a draft model.
const NGRAM: &str = "ngram";
const CONTEXT_TOKENS_MAX: Integer = Integer::new("context_tokens_max", 8192, 16, 1 << 28);
const NAME_BYTES_MAX: usize = 128;
const NAME_BOUND: &str = "1 to 128 bytes";

/// Served model name if the config sets none.
fn default_name(model: &ModelRef) -> String {
    match model {
        ModelRef::EmbeddedTiny => "tiny".to_owned(),
        ModelRef::Hub(name) => name.name().to_owned(),
        ModelRef::Directory(path) => {
            path.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
        }
    }
}

/// The served model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetConfig {
    /// What names the weights and tokenizer.
    pub model: ModelRef,
    /// Model name in the API.
    pub name: String,
    /// Longest context that is served, prompt and output together; the model's own if shorter or
    /// not set.
    pub context_tokens_max: Option<u32>,
}

/// Source of the drafts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DraftConfig {
    /// A small draft model.
    Model(ModelRef),
    /// `ngram`: prompt lookup, without a draft model.
    Ngram,
}

impl DraftConfig {
    /// What names the draft model; `None` for prompt lookup.
    pub fn model(&self) -> Option<&ModelRef> {
        match self {
            DraftConfig::Model(model) => Some(model),
            DraftConfig::Ngram => None,
        }
    }
}

impl TargetConfig {
    pub(super) fn read(mut section: Section<'_>) -> TargetConfig {
        let given = section.take_value("model");
        let model = read_model(&mut section, given);
        let name = section.parsed("name", &format!("give {NAME_BOUND}"), parse_name);
        let context_tokens_max = section.optional_integer(&CONTEXT_TOKENS_MAX).map(|tokens| tokens as u32);
        section.finish();
        TargetConfig { name: name.unwrap_or_else(|| default_name(&model)), model, context_tokens_max }
    }

    pub(super) fn entries(&self) -> Vec<Entry> {
        let context = self.context_tokens_max.map(|tokens| number(tokens.into()));
        vec![
            model_entry(&self.model),
            Entry::text("name", self.name.clone(), NAME_BOUND),
            Entry::optional(CONTEXT_TOKENS_MAX.name, context, CONTEXT_TOKENS_MAX.bound()),
        ]
    }
}

impl DraftConfig {
    pub(super) fn read(mut section: Section<'_>) -> DraftConfig {
        let given = section.take_value("model");
        let draft = match &given {
            Some(toml::Value::String(text)) if text == NGRAM => DraftConfig::Ngram,
            _ => DraftConfig::Model(read_model(&mut section, given)),
        };
        section.finish();
        draft
    }

    pub(super) fn entries(&self) -> Vec<Entry> {
        let bound = format!("{MODEL_BOUND}, or \"{NGRAM}\"");
        match self {
            DraftConfig::Model(model) => vec![Entry::text("model", model.to_string(), bound)],
            DraftConfig::Ngram => vec![Entry::text("model", NGRAM, bound)],
        }
    }
}

fn model_entry(model: &ModelRef) -> Entry {
    Entry::text("model", model.to_string(), MODEL_BOUND)
}

/// Reads `model`. If missing, reports a problem and substitutes the embedded pair.
fn read_model(section: &mut Section<'_>, given: Option<toml::Value>) -> ModelRef {
    match given {
        Some(toml::Value::String(text)) => match parse_model(&text) {
            Ok(model) => return model,
            Err(what) => section.reject("model", &text.into(), what, format!("give {MODEL_BOUND}")),
        },
        Some(other) => section.reject("model", &other, "must be a string", format!("give {MODEL_BOUND}")),
        None => section.missing("model", format!("give {MODEL_BOUND}")),
    }
    ModelRef::EmbeddedTiny
}

fn parse_model(text: &str) -> Result<ModelRef, String> {
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    ModelRef::parse(text).map_err(|_| "is not an embedded model".to_owned())
}

fn parse_name(text: &str) -> Result<String, String> {
    match text.len() {
        0 => Err("is empty".to_owned()),
        bytes if bytes > NAME_BYTES_MAX => Err(format!("has {bytes} bytes, more than {NAME_BYTES_MAX}")),
        _ => Ok(text.to_owned()),
    }
}
