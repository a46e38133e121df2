//! Messages of the assistant, in the form of the OpenAI API.

use serde_json::{Value, json};

use super::reply::{Message, Part, ToolCall};

/// A complete message. Beside calls, text that is empty is null.
pub fn whole(message: &Message) -> Value {
    let content = match message.content.as_str() {
        "" if !message.calls.is_empty() => Value::Null,
        text => text.into(),
    };
    let mut body = json!({"role": "assistant", "content": content, "refusal": null});
    if !message.reasoning.is_empty() {
        body["reasoning_content"] = message.reasoning.as_str().into();
    }
    if !message.calls.is_empty() {
        body["tool_calls"] = message.calls.iter().map(call).collect();
    }
    body
}

fn call(call: &ToolCall) -> Value {
    json!({
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    })
}

/// What a part adds to a message; the first part of one has the role.
pub fn delta(part: &Part, first: bool) -> Value {
    let mut delta = if first { json!({"role": "assistant"}) } else { json!({}) };
    let (field, value) = match part {
        Part::Reasoning(text) => ("reasoning_content", text.as_str().into()),
        Part::Content(text) => ("content", text.as_str().into()),
        Part::Call { index, id, name } => {
            let function = json!({"name": name, "arguments": ""});
            ("tool_calls", json!([{"index": index, "id": id, "type": "function", "function": function}]))
        }
        Part::Arguments { index, text } => {
            ("tool_calls", json!([{"index": index, "function": {"arguments": text}}]))
        }
    };
    delta[field] = value;
    delta
}
