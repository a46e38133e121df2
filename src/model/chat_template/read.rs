//! Reads the chat template of a Hugging Face directory: chat_template.jinja with
//! additional_chat_templates/*.jinja, else `chat_template` of tokenizer_config.json, which is
//! one template or a list of named ones.

use serde_json::Value as Json;

use super::{ChatTemplate, DEFAULT};
use crate::model::ModelError;
use crate::model::files::ModelFiles;
use crate::model::json_file::JsonObject;
use crate::model::tokenizer_config::TokenizerConfig;

const TEMPLATE: &str = "chat_template.jinja";
const ADDITIONAL: &str = "additional_chat_templates";

impl ChatTemplate {
    /// Reads a model's chat template; `None` if it has none.
    ///
    /// # Errors
    /// If a file cannot be read or a template has a syntax error.
    pub(in crate::model) fn load(
        files: &ModelFiles,
        described: &TokenizerConfig,
    ) -> Result<Option<Self>, ModelError> {
        let (file, templates) = if files.has(TEMPLATE) {
            (files.path_of(TEMPLATE), template_files(files)?)
        } else {
            (described.file.clone(), templates_of_config(&described.root()?)?)
        };
        if templates.is_empty() {
            return Ok(None);
        }
        Self::compile(templates, described.special_tokens().to_vec())
            .map(Some)
            .map_err(|problem| ModelError::ChatTemplate { file, problem })
    }
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
