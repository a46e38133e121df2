//! Parts of an answer, as they become known.

/// More of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Reasoning.
    Reasoning(String),
    /// Text of the message.
    Content(String),
    /// A tool call begins.
    Call {
        /// From 0, within the answer.
        index: usize,
        /// By which the tool's result names the call.
        id: String,
        /// The function's name.
        name: String,
    },
    /// Arguments of the latest call, as JSON text.
    Arguments {
        /// Of the call.
        index: usize,
        /// The text.
        text: String,
    },
}

impl Part {
    /// Adds reasoning, if there is any.
    pub fn push_reasoning(parts: &mut Vec<Part>, more: &str) {
        match parts.last_mut() {
            _ if more.is_empty() => {}
            Some(Part::Reasoning(text)) => text.push_str(more),
            _ => parts.push(Part::Reasoning(more.to_owned())),
        }
    }

    /// Adds text of the message, if there is any.
    pub fn push_content(parts: &mut Vec<Part>, more: &str) {
        match parts.last_mut() {
            _ if more.is_empty() => {}
            Some(Part::Content(text)) => text.push_str(more),
            _ => parts.push(Part::Content(more.to_owned())),
        }
    }

    /// Adds arguments of the latest call.
    pub fn push_arguments(parts: &mut Vec<Part>, index: usize, more: &str) {
        match parts.last_mut() {
            Some(Part::Arguments { text, .. }) => text.push_str(more),
            _ => parts.push(Part::Arguments { index, text: more.to_owned() }),
        }
    }
}

/// A complete answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Reasoning; may be empty.
    pub reasoning: String,
    /// Text; may be empty.
    pub content: String,
    /// Tool calls, in order.
    pub calls: Vec<ToolCall>,
}

/// A tool call of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// By which the tool's result names the call.
    pub id: String,
    /// The function's name.
    pub name: String,
    /// JSON text; incomplete if the output was cut off.
    pub arguments: String,
}

impl Extend<Part> for Message {
    fn extend<T: IntoIterator<Item = Part>>(&mut self, parts: T) {
        for part in parts {
            match part {
                Part::Reasoning(text) => self.reasoning += &text,
                Part::Content(text) => self.content += &text,
                Part::Call { id, name, .. } => {
                    self.calls.push(ToolCall { id, name, arguments: String::new() })
                }
                Part::Arguments { text, .. } => {
                    if let Some(call) = self.calls.last_mut() {
                        call.arguments += &text;
                    }
                }
            }
        }
    }
}
