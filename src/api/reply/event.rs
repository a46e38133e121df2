//! What a parser of tool calls recognises.

/// A piece of streamed text, as text or as part of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallEvent {
    /// Text that belongs to no call.
    Text(String),
    /// A call begins.
    Begin {
        /// The function's name.
        name: String,
        /// The id that the model gives the call.
        id: Option<String>,
    },
    /// More of the arguments of the last call, as JSON text.
    Arguments(String),
}

impl CallEvent {
    /// The beginning of a call to which the model gives no id.
    pub fn begin(name: impl Into<String>) -> CallEvent {
        CallEvent::Begin { name: name.into(), id: None }
    }

    /// Adds text, if there is any.
    pub fn push_text(events: &mut Vec<CallEvent>, text: impl Into<String>) {
        let text = text.into();
        if !text.is_empty() {
            events.push(CallEvent::Text(text));
        }
    }

    /// Adds a character of the last call's arguments.
    pub fn push_argument(events: &mut Vec<CallEvent>, character: char) {
        match events.last_mut() {
            Some(CallEvent::Arguments(text)) => text.push(character),
            _ => events.push(CallEvent::Arguments(character.to_string())),
        }
    }
}
