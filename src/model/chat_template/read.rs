//! Reads the chat template of a Hugging Face directory: chat_template.jinja with
//! additional_chat_templates/*.jinja, else `chat_template` of tokenizer_config.json, which is
//! one template or a list of named ones.

use serde_json::Value as Json;

use super::{ChatTemplate, DEFAULT};
use crate::model::ModelError;
use crate::model::files::ModelFiles;
use crate::model::json_file::JsonObject;

const TEMPLATE: &str = "chat_template.jinja";
const ADDITIONAL: &str = "additional_chat_templates";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// Special tokens that templates refer to by name.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl ChatTemplate {
    /// Reads a model's chat template; `None` if it has none.
    ///
    /// # Errors
    /// If a file cannot be read or a template has a syntax error.
    pub(in crate::model) fn load(files: &ModelFiles) -> Result<Option<Self>, ModelError> {
        let path = files.path_of(TOKENIZER_CONFIG);
        let json =
            files.read_json_if_there(TOKENIZER_CONFIG)?.unwrap_or_else(|| Json::Object(Default::default()));
        let config = JsonObject::root(&path, &json)?;
        let special_tokens = special_tokens(&config)?;
        let (file, templates) = if files.has(TEMPLATE) {
            (files.path_of(TEMPLATE), template_files(files)?)
        } else {
            (path.clone(), templates_of_config(&config)?)
        };
        if templates.is_empty() {
            return Ok(None);
        }
        Self::compile(templates, special_tokens)
            .map(Some)
            .map_err(|problem| ModelError::ChatTemplate { file, problem })
    }
}

/// The text of a special token in tokenizer_config.json: a string, or an object with
/// `content`.
fn special_token<'a>(config: &JsonObject<'a>, name: &str) -> Result<Option<&'a str>, ModelError> {
    match config.get(name) {
        None => Ok(None),
        Some(Json::String(text)) => Ok(Some(text)),
        Some(Json::Object(token)) => match token.get("content") {
            Some(Json::String(text)) => Ok(Some(text)),
            _ => Err(config.bad(name, "expected an object with the string `content`")),
        },
        Some(_) => Err(config.bad(name, "expected a string or an object with `content`")),
    }
}

fn special_tokens(config: &JsonObject) -> Result<Vec<(String, String)>, ModelError> {
    let mut tokens = Vec::new();
    for name in SPECIAL_TOKENS {
        if let Some(text) = special_token(config, name)? {
            tokens.push((name.to_owned(), text.to_owned()));
        }
    }
    Ok(tokens)
}

fn template_files(files: &ModelFiles) -> Result<Vec<(String, String)>, ModelError> {
    let mut templates = vec![(DEFAULT.to_owned(), files.read_text(TEMPLATE)?)];
    for file in files.list(ADDITIONAL)? {
        if let Some(name) = file.strip_suffix(".jinja") {
            templates.push((name.to_owned(), files.read_text(&format!("{ADDITIONAL}/{file}"))?));
        }
    }
    Ok(templates)
}

fn templates_of_config(config: &JsonObject) -> Result<Vec<(String, String)>, ModelError> {
    let key = "chat_template";
    match config.get(key) {
        None => Ok(Vec::new()),
        Some(Json::String(template)) => Ok(vec![(DEFAULT.to_owned(), template.clone())]),
        Some(Json::Array(named)) => named
            .iter()
            .map(|entry| match (entry["name"].as_str(), entry["template"].as_str()) {
                (Some(name), Some(template)) => Ok((name.to_owned(), template.to_owned())),
                _ => Err(config.bad(key, "expected a list of objects with `name` and `template`")),
            })
            .collect(),
        Some(_) => Err(config.bad(key, "expected a string or a list")),
    }
}
