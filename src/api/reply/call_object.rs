//! Tool calls that a model writes as JSON objects: `{"name": …, "arguments": {…}}`.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;

use super::event::CallEvent;
use super::json_value::{JsonValue, Role};

/// Members that hold the arguments, depending on the model.
const ARGUMENTS: [&str; 2] = ["arguments", "parameters"];

/// Members that may stand before those of a call.
const PREFACE: [&str; 2] = ["id", "type"];

/// Names of functions.
pub type Names = Arc<BTreeSet<String>>;

/// Reads one call object, character by character. The call begins once its name and the first
/// bracket of its arguments are there; until then the object may turn out to be no call.
#[derive(Clone, Debug)]
pub struct CallObject {
    /// What was read while the call had not begun.
    raw: String,
    at: At,
    name: Option<String>,
    /// Arguments that stood before the name.
    early: Option<String>,
    begun: bool,
    /// Names that a call may have; `None`: any.
    known: Option<Names>,
}

#[derive(Clone, Debug)]
enum At {
    Start,
    Key,
    InKey { text: String, value: JsonValue },
    Colon { key: String },
    Member { key: String, text: String, value: JsonValue },
    Next,
}

/// How far an object has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It goes on.
    Open,
    /// It is complete, and so is the call.
    Complete,
    /// It goes on as no call does. The offending character is not read.
    Broken,
}

impl CallObject {
    /// Begins to read an object. `raw` stands before it and is text if there is no call.
    pub fn new(raw: impl Into<String>, known: Option<Names>) -> CallObject {
        CallObject { raw: raw.into(), at: At::Start, name: None, early: None, begun: false, known }
    }

    /// Whether the call has begun: what follows cannot make it text again.
    pub fn begun(&self) -> bool {
        self.begun
    }

    /// The text that was read if the call has not begun; empty otherwise.
    pub fn into_text(self) -> String {
        if self.begun { String::new() } else { self.raw }
    }

    /// Reads from `held` as far as the object goes.
    pub fn read(&mut self, held: &mut String, events: &mut Vec<CallEvent>) -> Progress {
        let text = std::mem::take(held);
        for (at, character) in text.char_indices() {
            let progress = self.take(character, events).unwrap_or(Progress::Broken);
            if progress == Progress::Broken {
                held.push_str(&text[at..]);
                return progress;
            }
            if !self.begun {
                self.raw.push(character);
            }
            if progress == Progress::Complete {
                held.push_str(&text[at + character.len_utf8()..]);
                return progress;
            }
        }
        Progress::Open
    }

    /// Takes a character; `None` if it does not belong to a call.
    fn take(&mut self, character: char, events: &mut Vec<CallEvent>) -> Option<Progress> {
        let blank = character.is_ascii_whitespace();
        self.at = match std::mem::replace(&mut self.at, At::Next) {
            at @ (At::Start | At::Key | At::Colon { .. } | At::Next) if blank => at,
            At::Start if character == '{' => At::Key,
            At::Key if character == '"' => {
                let mut value = JsonValue::default();
                value.take(character);
                At::InKey { text: character.to_string(), value }
            }
            At::InKey { mut text, mut value } => {
                text.push(character);
                match value.take(character) {
                    Role::Last => At::Colon { key: self.key(&text)? },
                    _ => At::InKey { text, value },
                }
            }
            At::Colon { key } if character == ':' => {
                At::Member { key, text: String::new(), value: JsonValue::default() }
            }
            At::Member { key, text, .. } if blank && text.is_empty() => {
                At::Member { key, text, value: JsonValue::default() }
            }
            At::Member { key, text, value } => {
                return self.take_in_member(key, text, value, character, events);
            }
            At::Next if character == ',' => At::Key,
            At::Key | At::Next if character == '}' => {
                return self.complete(events).then_some(Progress::Complete);
            }
            _ => return None,
        };
        Some(Progress::Open)
    }

    /// The name of a member. Before the call begins there are only those that calls have.
    fn key(&self, text: &str) -> Option<String> {
        let key: String = serde_json::from_str(text).ok()?;
        let expected = match key.as_str() {
            "name" => self.name.is_none(),
            key if ARGUMENTS.contains(&key) => self.early.is_none(),
            key => PREFACE.contains(&key),
        };
        (expected || self.begun).then_some(key)
    }

    fn take_in_member(
        &mut self,
        key: String,
        mut text: String,
        mut value: JsonValue,
        character: char,
        events: &mut Vec<CallEvent>,
    ) -> Option<Progress> {
        let role = value.take(character);
        match role {
            Role::Invalid => return None,
            Role::Beyond => {
                self.member(&key, &text)?;
                self.at = At::Next;
                return self.take(character, events);
            }
            Role::Inside | Role::Last => text.push(character),
        }
        if self.is_streamed(&key, &text) {
            self.begin(events);
            self.early = Some(String::new());
            CallEvent::push_argument(events, character);
        } else if role == Role::Last {
            self.member(&key, &text)?;
        }
        self.at = if role == Role::Last { At::Next } else { At::Member { key, text, value } };
        Some(Progress::Open)
    }

    /// Whether a member with this much text is an object of arguments whose call can begin.
    fn is_streamed(&self, key: &str, text: &str) -> bool {
        let known = self.early.as_deref().is_none_or(|early| self.begun && early.is_empty());
        ARGUMENTS.contains(&key) && self.name.is_some() && text.starts_with('{') && known
    }

    fn begin(&mut self, events: &mut Vec<CallEvent>) {
        if !std::mem::replace(&mut self.begun, true) {
            events.push(CallEvent::begin(self.name.clone().unwrap_or_default()));
        }
    }

    /// Keeps a complete member; `None` if no call has it.
    fn member(&mut self, key: &str, text: &str) -> Option<()> {
        if self.begun {
            return Some(());
        }
        match key {
            "name" => {
                let name: String = serde_json::from_str(text).ok()?;
                let known = self.known.as_ref().is_none_or(|known| known.contains(&name));
                self.name = Some(name).filter(|name| !name.is_empty() && known);
                self.name.as_ref().map(|_| ())
            }
            key if ARGUMENTS.contains(&key) => {
                self.early = Some(arguments(text)?);
                Some(())
            }
            _ => Some(()),
        }
    }

    /// The end of the object; `false` if it is no call.
    fn complete(&mut self, events: &mut Vec<CallEvent>) -> bool {
        if self.name.is_none() {
            return false;
        }
        if !self.begun {
            self.begin(events);
            let arguments = self.early.take().unwrap_or_else(|| "{}".to_owned());
            events.push(CallEvent::Arguments(arguments));
        }
        true
    }
}

/// Arguments that are complete: an object, the text of one, or `null` for none.
fn arguments(text: &str) -> Option<String> {
    match serde_json::from_str(text).ok()? {
        Value::Object(_) => Some(text.to_owned()),
        Value::Null => Some("{}".to_owned()),
        Value::String(inner) => {
            serde_json::from_str::<Value>(&inner).ok().filter(Value::is_object).map(|_| inner)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Vec<CallEvent>, Progress, String) {
        let known = ["f", "g"].map(str::to_owned).into_iter().collect();
        let mut object = CallObject::new("", Some(Arc::new(known)));
        let (mut held, mut events) = (text.to_owned(), Vec::new());
        let progress = object.read(&mut held, &mut events);
        (events, progress, object.into_text() + &held)
    }

    fn call(arguments: &str) -> Vec<CallEvent> {
        vec![CallEvent::begin("f"), CallEvent::Arguments(arguments.to_owned())]
    }

    #[test]
    fn a_call_has_a_name_and_arguments_in_any_order_and_form() {
        for (text, arguments) in [
            ("{\"name\": \"f\", \"arguments\": {\"a\": [1, \"}\"]}}", "{\"a\": [1, \"}\"]}"),
            (" {\"name\":\"f\",\"parameters\":{}} ", "{}"),
            ("{\"parameters\": {\"a\": 1}, \"name\": \"f\"}", "{\"a\": 1}"),
            ("{\"type\": \"function\", \"id\": 3, \"name\": \"f\", \"arguments\": {}}", "{}"),
            ("{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}", "{\"a\": 1}"),
            ("{\"name\": \"f\", \"arguments\": null}", "{}"),
            ("{\"name\": \"f\"}", "{}"),
            ("{\"name\": \"f\", \"arguments\": {}, \"more\": [1]}", "{}"),
        ] {
            let (events, progress, rest) = read(text);
            assert_eq!((events, progress), (call(arguments), Progress::Complete), "{text}");
            assert_eq!(rest.trim(), "", "{text}");
        }
    }

    #[test]
    fn what_is_no_call_is_given_back_whole() {
        for text in [
            "[1]",
            "{}",
            "{\"name\": 3}",
            "{\"name\": \"\"}",
            "{\"name\": \"other\", \"arguments\": {}}",
            "{\"city\": \"Bern\"}",
            "{\"name\": \"f\", \"arguments\": 3}",
            "{\"name\": \"f\", \"arguments\": [{}]}",
            "{\"name\": \"f\" \"arguments\": {}}",
            "{\"arguments\": {}}",
            "{name: \"f\"}",
        ] {
            assert_eq!(read(text), (Vec::new(), Progress::Broken, text.to_owned()), "{text}");
        }
    }

    #[test]
    fn arguments_are_given_out_as_they_are_written() {
        let mut object = CallObject::new("", None);
        let mut given = Vec::new();
        let mut push = |text: &str| {
            let mut events = Vec::new();
            object.read(&mut text.to_owned(), &mut events);
            given.push(events);
        };
        push("{\"name\": \"f\", \"arguments\": ");
        push("{\"a\": \"x");
        push("y\"");
        let argument = |text: &str| CallEvent::Arguments(text.to_owned());
        assert_eq!(
            given,
            [vec![], vec![CallEvent::begin("f"), argument("{\"a\": \"x")], vec![argument("y\"")]]
        );
    }

    #[test]
    fn arguments_that_break_off_stay_with_their_call() {
        let (events, progress, rest) = read("{\"name\": \"f\", \"arguments\": {\"a\": 1</x>");
        assert_eq!((events, progress), (call("{\"a\": 1"), Progress::Broken));
        assert_eq!(rest, "</x>");
    }
}
