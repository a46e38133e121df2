//! Prompts: a text, tokens, or a conversation.

use serde_json::Value;

use super::backend::{BackendInfo, TextError, TextModel};
use super::chat::Conversation;
use super::chat_features::ChatFeatures;
use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::params::token_ids;
use crate::protocol::TokenId;

/// A prompt as received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Text, to be encoded with special tokens.
    Text(String),
    /// Token ids, used as they are.
    Tokens(Vec<TokenId>),
    /// A conversation for the chat template.
    Chat(Conversation),
}

impl Prompt {
    /// Whether the output goes on with the prompt's text, so that what is between the two belongs
    /// to it.
    pub fn is_continued(&self) -> bool {
        match self {
            Prompt::Text(_) | Prompt::Tokens(_) => true,
            Prompt::Chat(conversation) => conversation.continue_final_message,
        }
    }

    /// Parses `prompt`: a string, an array of token ids, or an array with one of these.
    ///
    /// # Errors
    /// 400 if missing, of another type, more than one prompt, or a token id out of range.
    pub fn from_prompt(fields: &mut Fields, info: &BackendInfo) -> Result<Prompt, ApiError> {
        let mut value = fields.required("prompt")?;
        if let Value::Array(items) = &mut value
            && items.first().is_some_and(|item| !item.is_number())
        {
            if items.len() > 1 {
                let message = format!(
                    "prompt must hold one prompt and holds {}; send one request per prompt",
                    items.len()
                );
                return Err(ApiError::unsupported("prompt", message));
            }
            value = items.swap_remove(0);
        }
        match value {
            Value::String(text) => Ok(Prompt::Text(text)),
            Value::Array(_) => token_ids("prompt", &value, info.vocab_size).map(Prompt::Tokens),
            other => Err(wrong_type("prompt", "a string or an array of token ids", &other)),
        }
    }

    /// Parses `messages` and what belongs to them.
    ///
    /// # Errors
    /// As [`Conversation::parse`].
    pub fn from_messages(fields: &mut Fields, features: &ChatFeatures) -> Result<Prompt, ApiError> {
        Conversation::parse(fields, features).map(Prompt::Chat)
    }

    /// Tokenizes the prompt: at least one token, and fewer than the context length. Unless
    /// `add_special` says otherwise, special tokens are added to a text, and not to a rendered
    /// conversation, whose template has written them.
    ///
    /// # Errors
    /// 400 if empty or too long, or if the tokenizer or chat template rejects it.
    pub fn encode(
        &self,
        text: &dyn TextModel,
        add_special: Option<bool>,
        info: &BackendInfo,
    ) -> Result<Vec<TokenId>, ApiError> {
        let param = if matches!(self, Prompt::Chat(_)) { "messages" } else { "prompt" };
        let invalid = |message: String| ApiError::invalid(param, message);
        let rejected = |error: TextError| ApiError::invalid(param, error.to_string());
        let tokens = match self {
            Prompt::Tokens(tokens) => tokens.clone(),
            Prompt::Text(prompt) => text.encode(prompt, add_special.unwrap_or(true)).map_err(rejected)?,
            Prompt::Chat(conversation) => {
                let prompt = text.render_chat(conversation).map_err(rejected)?;
                text.encode(&prompt, add_special.unwrap_or(false)).map_err(rejected)?
            }
        };
        if tokens.is_empty() {
            return Err(invalid(format!("{param} is empty after tokenization")));
        }
        if tokens.len() >= info.context_tokens_max as usize {
            return Err(info.context_exceeded(param, tokens.len() as u64, None));
        }
        Ok(tokens)
    }
}
