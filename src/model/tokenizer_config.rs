//! tokenizer_config.json, and the files that older versions of transformers write beside it:
//! special_tokens_map.json and added_tokens.json.
#![forbid(unsafe_code)]

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::ModelError;
use super::files::ModelFiles;
use super::json_file::JsonObject;
use crate::protocol::TokenId;

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
const ADDED_TOKENS: &str = "added_tokens.json";
const ADDED_TOKENS_DECODER: &str = "added_tokens_decoder";

/// Special tokens that every tokenizer of transformers may have.
const STANDARD: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

const LLAMA: &[(&str, &str)] = &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")];
const QWEN2: &[(&str, &str)] =
    &[("unk_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>")];
const GPT2: &[(&str, &str)] =
    &[("unk_token", "<|endoftext|>"), ("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>")];

/// What the tokenizer classes of transformers assume where the files name no token.
fn class_defaults(class: &str) -> &'static [(&'static str, &'static str)] {
    match class.strip_suffix("Fast").unwrap_or(class) {
        "LlamaTokenizer" | "CodeLlamaTokenizer" => LLAMA,
        "Qwen2Tokenizer" => QWEN2,
        "GPT2Tokenizer" => GPT2,
        _ => &[],
    }
}

/// The class of a model whose tokenizer_config.json names none.
fn class_of_model(model_type: &str) -> &'static str {
    match model_type {
        "qwen2" | "qwen3" => "Qwen2Tokenizer",
        _ => "PreTrainedTokenizerFast",
    }
}

/// What the files say about the tokenizer.
#[derive(Clone, Debug)]
pub(super) struct TokenizerConfig {
    /// Path of tokenizer_config.json, for errors.
    pub(super) file: String,
    json: Value,
    special_tokens: Vec<(String, String)>,
    added_tokens: Vec<(TokenId, AddedToken)>,
}

impl TokenizerConfig {
    /// Reads the files of a model; all of them may be absent.
    ///
    /// # Errors
    /// If a file is no JSON, or describes a token wrongly.
    pub(super) fn read(files: &ModelFiles, model_type: &str) -> Result<Self, ModelError> {
        let file = files.path_of(TOKENIZER_CONFIG);
        let empty = || Value::Object(Map::new());
        let json = files.read_json_if_there(TOKENIZER_CONFIG)?.unwrap_or_else(empty);
        let config = JsonObject::root(&file, &json)?;
        // as in transformers: a file that lists the added tokens is newer than the other two
        let older = |name: &str| match config.is_written(ADDED_TOKENS_DECODER) {
            true => Ok(empty()),
            false => Ok(files.read_json_if_there(name)?.unwrap_or_else(empty)),
        };
        let (map_file, map) = (files.path_of(SPECIAL_TOKENS_MAP), older(SPECIAL_TOKENS_MAP)?);
        let class = config.string("tokenizer_class")?.unwrap_or_else(|| class_of_model(model_type));
        let special_tokens = special_tokens(class, [&config, &JsonObject::root(&map_file, &map)?])?;
        let (added_file, listed) = (files.path_of(ADDED_TOKENS), older(ADDED_TOKENS)?);
        let added_tokens = match config.object(ADDED_TOKENS_DECODER)? {
            Some(decoder) => decoder_tokens(&decoder)?,
            None => listed_tokens(&JsonObject::root(&added_file, &listed)?, &special_tokens)?,
        };
        Ok(Self { special_tokens, added_tokens, file, json })
    }

    /// The root of tokenizer_config.json.
    pub(super) fn root(&self) -> Result<JsonObject<'_>, ModelError> {
        JsonObject::root(&self.file, &self.json)
    }

    /// Special tokens by name, such as `bos_token`, with their text.
    pub(super) fn special_tokens(&self) -> &[(String, String)] {
        &self.special_tokens
    }

    /// The text of a special token by its name.
    pub(super) fn special_token(&self, name: &str) -> Option<&str> {
        self.special_tokens.iter().find(|(own, _)| own == name).map(|(_, text)| text.as_str())
    }

    /// Tokens beside the vocabulary, with their ids, in ascending order.
    pub(super) fn added_tokens(&self) -> &[(TokenId, AddedToken)] {
        &self.added_tokens
    }
}

/// Special tokens by name: of the class, and of the `files`, of which later ones win. `null`
/// means that there is none.
fn special_tokens(class: &str, files: [&JsonObject; 2]) -> Result<Vec<(String, String)>, ModelError> {
    let mut tokens =
        class_defaults(class).iter().map(|(name, text)| (*name, Some(*text))).collect::<Vec<_>>();
    for file in files {
        for (name, value) in file.entries() {
            let text = match value {
                _ if !(STANDARD.contains(&name) || name.ends_with("_token") && value.is_string()) => {
                    continue;
                }
                Value::Null => None,
                _ => Some(token_text(file, name, value)?),
            };
            tokens.retain(|(other, _)| *other != name);
            tokens.push((name, text));
        }
    }
    let named = tokens.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?.to_owned())));
    Ok(named.collect())
}

/// The text of a token: a string, or an object with `content`.
fn token_text<'a>(file: &JsonObject<'a>, name: &str, value: &'a Value) -> Result<&'a str, ModelError> {
    let text = value.as_str().or_else(|| value.get("content")?.as_str());
    text.ok_or_else(|| file.bad(name, "expected a string, or an object with the string `content`"))
}

/// `added_tokens_decoder`: from ids to tokens with their properties.
fn decoder_tokens(decoder: &JsonObject) -> Result<Vec<(TokenId, AddedToken)>, ModelError> {
    let mut tokens = Vec::new();
    for (key, value) in decoder.entries() {
        let id = key.parse().map_err(|_| decoder.bad(key, "expected a token id as the key"))?;
        let Some(content) = value.get("content").and_then(Value::as_str) else {
            return Err(decoder.bad(key, "expected an object with the string `content`"));
        };
        let flag = |name: &str| value.get(name).and_then(Value::as_bool);
        let special = flag("special").unwrap_or(false);
        let token = AddedToken::from(content, special)
            .single_word(flag("single_word").unwrap_or(false))
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .normalized(flag("normalized").unwrap_or(!special));
        tokens.push((id, token));
    }
    tokens.sort_by_key(|(id, _)| *id);
    Ok(tokens)
}

/// added_tokens.json: from tokens to ids.
fn listed_tokens(
    listed: &JsonObject,
    special_tokens: &[(String, String)],
) -> Result<Vec<(TokenId, AddedToken)>, ModelError> {
    let mut tokens = Vec::new();
    for (text, value) in listed.entries() {
        let id = value.as_u64().and_then(|id| TokenId::try_from(id).ok());
        let id = id.ok_or_else(|| listed.bad(text, "expected a token id"))?;
        let special = special_tokens.iter().any(|(_, special)| special == text);
        tokens.push((id, AddedToken::from(text, special).normalized(!special)));
    }
    tokens.sort_by_key(|(id, _)| *id);
    Ok(tokens)
}
