//! `[target]` and `[draft]`: the models.

use super::reader::{Integer, IntegerList, Section};
use super::render::{Entry, number};
use super::reply_format::{ReasoningFormat, ToolFormat};
use crate::model::{DraftKind, HeadSettings, ModelRef, names_a_layer_twice};

const MODEL_BOUND: &str =
    "\"embedded:tiny\", a Hugging Face directory, or a name on the hub such as \"org/name\"";
/// Value of `draft.model` that selects prompt lookup instead of a draft model.
const NGRAM: &str = "ngram";
const KIND: &str = "kind";
const KIND_BOUND: &str = "\"model\", \"eagle3\", \"dflash\" or \"dspark\"";
const NORM_BEFORE_RESIDUAL: &str = "norm_before_residual";
const HIDDEN_STATE_LAYERS: IntegerList =
    IntegerList { name: "hidden_state_layers", what: "layers", entries_max: 256, max: 4095 };
const CONTEXT_TOKENS_MAX: Integer = Integer::new("context_tokens_max", 8192, 16, 1 << 28);
const TOOL_FORMAT: &str = "tool_format";
const TOOL_FORMAT_BOUND: &str = "\"auto\", \"none\", \"hermes\", \"llama3\" or \"mistral\"";
const REASONING_FORMAT: &str = "reasoning_format";
const REASONING_FORMAT_BOUND: &str = "\"auto\", \"none\", \"think\" or \"mistral\"";
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
    /// How the model writes tool calls.
    pub tool_format: ToolFormat,
    /// How the model writes its reasoning.
    pub reasoning_format: ReasoningFormat,
}

/// Source of the drafts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DraftConfig {
    /// A small draft model, or a draft head.
    Model {
        /// What names the weights.
        model: ModelRef,
        /// What goes before that which its files say.
        settings: HeadSettings,
    },
    /// `ngram`: prompt lookup, without a draft model.
    Ngram,
}

impl DraftConfig {
    /// What names the draft model; `None` for prompt lookup.
    pub fn model(&self) -> Option<&ModelRef> {
        match self {
            DraftConfig::Model { model, .. } => Some(model),
            DraftConfig::Ngram => None,
        }
    }

    /// What goes before that which the files of the draft say; nothing for prompt lookup.
    pub fn settings(&self) -> HeadSettings {
        match self {
            DraftConfig::Model { settings, .. } => settings.clone(),
            DraftConfig::Ngram => HeadSettings::default(),
        }
    }
}

impl From<ModelRef> for DraftConfig {
    fn from(model: ModelRef) -> DraftConfig {
        DraftConfig::Model { model, settings: HeadSettings::default() }
    }
}

impl TargetConfig {
    pub(super) fn read(mut section: Section<'_>) -> TargetConfig {
        let given = section.take_value("model");
        let model = read_model(&mut section, given);
        let name = section.parsed("name", &format!("give {NAME_BOUND}"), parse_name);
        let context_tokens_max = section.optional_integer(&CONTEXT_TOKENS_MAX).map(|tokens| tokens as u32);
        let tool_format =
            section.parsed(TOOL_FORMAT, &format!("give {TOOL_FORMAT_BOUND}"), ToolFormat::parse);
        let reasoning_format = section.parsed(
            REASONING_FORMAT,
            &format!("give {REASONING_FORMAT_BOUND}"),
            ReasoningFormat::parse,
        );
        section.finish();
        TargetConfig {
            name: name.unwrap_or_else(|| default_name(&model)),
            model,
            context_tokens_max,
            tool_format: tool_format.unwrap_or_default(),
            reasoning_format: reasoning_format.unwrap_or_default(),
        }
    }

    pub(super) fn entries(&self) -> Vec<Entry> {
        let context = self.context_tokens_max.map(|tokens| number(tokens.into()));
        vec![
            model_entry(&self.model),
            Entry::text("name", self.name.clone(), NAME_BOUND),
            Entry::optional(CONTEXT_TOKENS_MAX.name, context, CONTEXT_TOKENS_MAX.bound()),
            Entry::text(TOOL_FORMAT, self.tool_format.name(), TOOL_FORMAT_BOUND),
            Entry::text(REASONING_FORMAT, self.reasoning_format.name(), REASONING_FORMAT_BOUND),
        ]
    }
}

impl DraftConfig {
    pub(super) fn read(mut section: Section<'_>) -> DraftConfig {
        let given = section.take_value("model");
        let is_ngram = matches!(&given, Some(toml::Value::String(text)) if text == NGRAM);
        let settings = read_settings(&mut section);
        let draft = if is_ngram {
            refuse_settings_of_ngram(&mut section, &settings);
            DraftConfig::Ngram
        } else {
            DraftConfig::Model { model: read_model(&mut section, given), settings }
        };
        section.finish();
        draft
    }

    pub(super) fn entries(&self) -> Vec<Entry> {
        let bound = format!("{MODEL_BOUND}, or \"{NGRAM}\"");
        match self {
            DraftConfig::Model { model, settings } => {
                let mut entries = vec![Entry::text("model", model.to_string(), bound)];
                let settings = values_of(settings).into_iter();
                entries.extend(settings.map(|(key, value, bound)| Entry::optional(key, value, bound)));
                entries
            }
            DraftConfig::Ngram => vec![Entry::text("model", NGRAM, bound)],
        }
    }
}

fn read_settings(section: &mut Section<'_>) -> HeadSettings {
    let kind = section.parsed(KIND, &format!("give {KIND_BOUND}, or leave it out"), |text| {
        DraftKind::named(text).ok_or_else(|| "is not a kind of draft".to_owned())
    });
    let norm_before_residual = section.boolean(NORM_BEFORE_RESIDUAL);
    HeadSettings { kind, norm_before_residual, hidden_state_layers: read_layers(section) }
}

fn read_layers(section: &mut Section<'_>) -> Option<Vec<usize>> {
    let layers = section.integer_list(&HIDDEN_STATE_LAYERS)?;
    let layers: Vec<usize> = layers.into_iter().map(|layer| layer as usize).collect();
    if names_a_layer_twice(&layers) {
        let (key, value) = (HIDDEN_STATE_LAYERS.name, layers_value(&layers));
        section.reject(key, &value, "names a layer twice", "give each layer once");
        return None;
    }
    Some(layers)
}

fn layers_value(layers: &[usize]) -> toml::Value {
    toml::Value::Array(layers.iter().map(|&layer| number(layer as u64)).collect())
}

/// Prompt lookup has no files that a setting could go before.
fn refuse_settings_of_ngram(section: &mut Section<'_>, settings: &HeadSettings) {
    for (key, value, _) in values_of(settings) {
        if let Some(value) = value {
            section.reject(key, &value, "means nothing for draft.model = \"ngram\"", "remove it");
        }
    }
}

/// The keys of the settings, each with its value, if set, and its bound.
fn values_of(settings: &HeadSettings) -> [(&'static str, Option<toml::Value>, String); 3] {
    let kind = settings.kind.map(|kind| kind.name().into());
    let norm = settings.norm_before_residual.map(toml::Value::Boolean);
    let layers = settings.hidden_state_layers.as_deref().map(layers_value);
    [
        (KIND, kind, KIND_BOUND.to_owned()),
        (NORM_BEFORE_RESIDUAL, norm, "true or false".to_owned()),
        (HIDDEN_STATE_LAYERS.name, layers, HIDDEN_STATE_LAYERS.bound()),
    ]
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
