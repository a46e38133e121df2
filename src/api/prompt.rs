//! Prompts: a text, tokens, or a conversation.

use serde_json::Value;

use super::backend::{BackendInfo, ChatMessage, TextError, TextModel};
use super::error::ApiError;
use super::error_code::ErrorCode;
use super::fields::{Fields, wrong_type};
use super::params::token_ids;
use crate::protocol::TokenId;

/// Most messages in a conversation.
pub const MESSAGES_MAX: usize = 4096;

/// Accepted message roles, with the role passed to the chat template.
const ROLES: [(&str, &str); 4] =
    [("system", "system"), ("developer", "system"), ("user", "user"), ("assistant", "assistant")];

/// A prompt as received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Text, to be encoded with special tokens.
    Text(String),
    /// Token ids, used as they are.
    Tokens(Vec<TokenId>),
    /// A conversation for the chat template.
    Chat(Vec<ChatMessage>),
}

impl Prompt {
    /// Whether the output goes on with the prompt's text, so that what is between the two belongs
    /// to it.
    pub fn is_continued(&self) -> bool {
        match self {
            Prompt::Text(_) | Prompt::Tokens(_) => true,
            Prompt::Chat(_) => false,
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

    /// Parses `messages`.
    ///
    /// # Errors
    /// 400 if missing or empty, or for an unknown role, a part that is not text, or a field
    /// that is not supported.
    pub fn from_messages(fields: &mut Fields) -> Result<Prompt, ApiError> {
        conversation(fields).map(Prompt::Chat)
    }

    /// Tokenizes the prompt: at least one token, and fewer than the context length.
    ///
    /// # Errors
    /// 400 if empty or too long, or if the tokenizer or chat template rejects it.
    pub fn encode(&self, text: &dyn TextModel, info: &BackendInfo) -> Result<Vec<TokenId>, ApiError> {
        let param = if matches!(self, Prompt::Chat(_)) { "messages" } else { "prompt" };
        let invalid = |message: String| ApiError::invalid(param, message);
        let rejected = |error: TextError| ApiError::invalid(param, error.to_string());
        let tokens = match self {
            Prompt::Tokens(tokens) => tokens.clone(),
            Prompt::Text(prompt) => text.encode(prompt, true).map_err(rejected)?,
            Prompt::Chat(messages) => {
                let prompt = text.render_chat(messages).map_err(rejected)?;
                text.encode(&prompt, false).map_err(rejected)?
            }
        };
        if tokens.is_empty() {
            return Err(invalid(format!("{param} is empty after tokenization")));
        }
        let (count, context) = (tokens.len(), info.context_tokens_max);
        if count >= context as usize {
            let message = format!(
                "{param} is {count} tokens long; the context length is {context} tokens, output included"
            );
            let message = info.with_context_advice(message);
            return Err(ApiError { code: ErrorCode::ContextLengthExceeded, ..invalid(message) });
        }
        Ok(tokens)
    }
}

/// Parses `messages`.
///
/// # Errors
/// As [`Prompt::from_messages`].
pub fn conversation(fields: &mut Fields) -> Result<Vec<ChatMessage>, ApiError> {
    let messages = match fields.required("messages")? {
        Value::Array(messages) => messages,
        other => return Err(wrong_type("messages", "an array", &other)),
    };
    if messages.is_empty() || messages.len() > MESSAGES_MAX {
        let count = messages.len();
        let message = format!("messages must hold 1 to {MESSAGES_MAX} messages and holds {count}");
        return Err(ApiError::invalid("messages", message));
    }
    let read = |(at, value)| message(&format!("messages[{at}]"), value);
    messages.into_iter().enumerate().map(read).collect()
}

fn message(path: &str, value: Value) -> Result<ChatMessage, ApiError> {
    let mut fields = Fields::from_value(path, value)?;
    let role = fields.required("role")?;
    let role = ROLES.iter().find(|(name, _)| role == *name).map(|(_, role)| *role).ok_or_else(|| {
        let names = ROLES.map(|(name, _)| name);
        let path = fields.path("role");
        ApiError::unsupported(path.clone(), format!("{path} must be one of {names:?} and is {role}"))
    })?;
    let content = content(&fields.path("content"), fields.required("content")?)?;
    // Clients send assistant messages back as received, including empty optional fields.
    for name in ["annotations", "tool_calls"] {
        if let Some(value) =
            fields.take(name).filter(|value| value.as_array().is_none_or(|list| !list.is_empty()))
        {
            let path = fields.path(name);
            return Err(ApiError::unsupported(path.clone(), format!("{path} = {value} is not supported")));
        }
    }
    fields.finish()?;
    Ok(ChatMessage { role, content })
}

/// Parses a message's content: a string, or text parts that are concatenated.
fn content(path: &str, value: Value) -> Result<String, ApiError> {
    let parts = match value {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => return Err(wrong_type(path, "a string or an array of text parts", &other)),
    };
    let mut text = String::new();
    for (at, part) in parts.into_iter().enumerate() {
        let path = format!("{path}[{at}]");
        let mut fields = Fields::from_value(&path, part)?;
        let kind = fields.required("type")?;
        if kind != "text" {
            let path = fields.path("type");
            let message = format!("{path} must be \"text\" and is {kind}");
            return Err(ApiError::unsupported(path, message));
        }
        let piece = fields.required("text")?;
        let piece = piece.as_str().ok_or_else(|| wrong_type(&fields.path("text"), "a string", &piece))?;
        text.push_str(piece);
        fields.finish()?;
    }
    Ok(text)
}
