//! Conversations: `messages` and what the chat template is told beside them.

use serde_json::{Map, Value};

use super::chat_features::ChatFeatures;
use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::thinking;
use super::tools::Tools;

/// Most messages in a conversation.
pub const MESSAGES_MAX: usize = 4096;

/// Accepted message roles, with the role passed to the chat template.
const ROLES: [(&str, &str); 5] = [
    ("system", "system"),
    ("developer", "system"),
    ("user", "user"),
    ("assistant", "assistant"),
    ("tool", "tool"),
];

/// Fields of a message with text for the template.
const TEXT_FIELDS: [&str; 4] = ["name", "tool_call_id", "reasoning_content", "reasoning"];

/// Variables of a chat template that `chat_template_kwargs` may not set.
const OWN_VARIABLES: [&str; 5] =
    ["messages", "tools", "documents", "add_generation_prompt", "continue_final_message"];

/// A conversation for the chat template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// The messages; at least one.
    pub messages: Vec<ChatMessage>,
    /// The functions that the model may call.
    pub tools: Tools,
    /// Whether the prompt ends with the header of the assistant's reply.
    pub add_generation_prompt: bool,
    /// Whether the prompt ends inside the last message, which the output continues.
    pub continue_final_message: bool,
    /// More variables of the template, such as `enable_thinking`.
    pub variables: Map<String, Value>,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: &'static str,
    /// Text of the message.
    pub content: String,
    /// Further fields for the template, such as `name` and `tool_calls`.
    pub more: Map<String, Value>,
}

impl Conversation {
    /// Parses `messages`, `tools` and what belongs to them, `add_generation_prompt`,
    /// `continue_final_message`, `chat_template_kwargs`, `reasoning_effort` and `thinking`.
    ///
    /// # Errors
    /// 400 if `messages` is missing or empty, or for an unknown role, a part that is not text, a
    /// field that is not supported, or settings that contradict each other.
    pub fn parse(fields: &mut Fields, features: &ChatFeatures) -> Result<Conversation, ApiError> {
        let messages = match fields.required("messages")? {
            Value::Array(messages) => messages,
            other => return Err(wrong_type("messages", "an array", &other)),
        };
        if messages.is_empty() || messages.len() > MESSAGES_MAX {
            let count = messages.len();
            let message = format!("messages must hold 1 to {MESSAGES_MAX} messages and holds {count}");
            return Err(ApiError::invalid("messages", message));
        }
        let read = |(at, value)| ChatMessage::parse(fields.nested(&format!("messages[{at}]"), value)?);
        let messages = messages.into_iter().enumerate().map(read).collect::<Result<_, _>>()?;
        let continue_final_message = fields.boolean("continue_final_message")?.unwrap_or(false);
        let add_generation_prompt =
            fields.boolean("add_generation_prompt")?.unwrap_or(!continue_final_message);
        if continue_final_message && add_generation_prompt {
            let message = "continue_final_message and add_generation_prompt exclude each other: a message is \
                           either continued or begun";
            return Err(ApiError::invalid("continue_final_message", message));
        }
        let tools = Tools::parse(fields)?;
        features.check_tools(&tools)?;
        let mut variables = variables(fields)?;
        thinking::set_variables(fields, &features.variables, &mut variables)?;
        Ok(Conversation { messages, tools, add_generation_prompt, continue_final_message, variables })
    }
}

fn variables(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let variables = match fields.take("chat_template_kwargs") {
        None => Map::new(),
        Some(Value::Object(variables)) => variables,
        Some(other) => return Err(wrong_type("chat_template_kwargs", "an object", &other)),
    };
    match OWN_VARIABLES.iter().find(|name| variables.contains_key(**name)) {
        None => Ok(variables),
        Some(name) => {
            let path = format!("chat_template_kwargs.{name}");
            let message = format!("{path} cannot be set here: the request itself sets {name}");
            Err(ApiError::invalid(path, message))
        }
    }
}

impl ChatMessage {
    fn parse(mut fields: Fields) -> Result<ChatMessage, ApiError> {
        let role = fields.required("role")?;
        let role = ROLES.iter().find(|(name, _)| role == *name).map(|(_, role)| *role).ok_or_else(|| {
            let names = ROLES.map(|(name, _)| name);
            let path = fields.path("role");
            ApiError::unsupported(path.clone(), format!("{path} must be one of {names:?} and is {role}"))
        })?;
        // an assistant that calls tools may say nothing
        let content = if role == "assistant" && !fields.has("content") {
            fields.take("content");
            String::new()
        } else {
            let value = fields.required("content")?;
            content(&fields, value)?
        };
        let mut more = Map::new();
        for name in TEXT_FIELDS {
            more.extend(fields.string(name)?.map(|text| (name.to_owned(), text.into())));
        }
        // templates read the older name
        if let Some(text) = more.get("reasoning").filter(|_| !more.contains_key("reasoning_content")).cloned()
        {
            more.insert("reasoning_content".to_owned(), text);
        }
        if let Some(calls) = fields.take("tool_calls").filter(|calls| *calls != Value::Array(Vec::new())) {
            let path = fields.path("tool_calls");
            if role != "assistant" {
                let message = format!("{path} belongs to messages of the assistant");
                return Err(ApiError::invalid(path, message));
            }
            more.insert("tool_calls".to_owned(), tool_calls(&path, calls)?);
        }
        // Clients send assistant messages back as received, including empty optional fields.
        if let Some(value) = fields.take("annotations").filter(|value| *value != Value::Array(Vec::new())) {
            let path = fields.path("annotations");
            return Err(ApiError::unsupported(path.clone(), format!("{path} = {value} is not supported")));
        }
        fields.finish()?;
        Ok(ChatMessage { role, content, more })
    }

    /// The message as the template reads it.
    pub fn to_json(&self) -> Value {
        let mut message = Map::new();
        message.insert("role".to_owned(), self.role.into());
        message.insert("content".to_owned(), self.content.as_str().into());
        message.extend(self.more.clone());
        Value::Object(message)
    }
}

/// Calls of tools as templates read them: with arguments as an object, where OpenAI has its text.
fn tool_calls(path: &str, calls: Value) -> Result<Value, ApiError> {
    let Value::Array(mut calls) = calls else { return Err(wrong_type(path, "an array", &calls)) };
    for (at, call) in calls.iter_mut().enumerate() {
        let path = format!("{path}[{at}].function");
        let Some(Value::Object(function)) = call.get_mut("function") else {
            return Err(ApiError::invalid(path.clone(), format!("{path} must be an object")));
        };
        if !function.get("name").is_some_and(Value::is_string) {
            let path = format!("{path}.name");
            return Err(ApiError::invalid(path.clone(), format!("{path} must be a string")));
        }
        let arguments = match function.get("arguments") {
            None | Some(Value::Null) => Value::Object(Map::new()),
            Some(Value::String(text)) if text.trim().is_empty() => Value::Object(Map::new()),
            Some(Value::String(text)) => serde_json::from_str(text).unwrap_or_default(),
            Some(other) => other.clone(),
        };
        if !arguments.is_object() {
            let path = format!("{path}.arguments");
            let message = format!("{path} must be an object, or the JSON text of one");
            return Err(ApiError::invalid(path, message));
        }
        function.insert("arguments".to_owned(), arguments);
    }
    Ok(Value::Array(calls))
}

/// Parses a message's content: a string, or text parts that are concatenated.
fn content(message: &Fields, value: Value) -> Result<String, ApiError> {
    let path = message.path("content");
    let parts = match value {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => return Err(wrong_type(&path, "a string or an array of text parts", &other)),
    };
    let mut text = String::new();
    for (at, part) in parts.into_iter().enumerate() {
        let path = format!("{path}[{at}]");
        let mut fields = message.nested(&path, part)?;
        let kind = fields.required("type")?;
        if kind != "text" {
            let path = fields.path("type");
            let message = format!("{path} must be \"text\" and is {kind}");
            return Err(ApiError::unsupported(path, message));
        }
        let piece = fields.required("text")?;
        let piece = piece.as_str().ok_or_else(|| wrong_type(&fields.path("text"), "a string", &piece))?;
        text.push_str(piece);
        // A hint for another provider's cache.
        fields.take("cache_control");
        fields.finish()?;
    }
    Ok(text)
}
