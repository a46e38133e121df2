//! Tool calls as Mistral models write them: `[TOOL_CALLS][{"name": …}, …]`, or for each call
//! `[TOOL_CALLS]name{…}`, of newer ones `[TOOL_CALLS]name[CALL_ID]id[ARGS]{…}`.

use super::call_object::{CallObject, Progress};
use super::event::CallEvent;
use super::json_value::{JsonValue, Role};
use super::marker::{Beginning, beginning, take_until};

const OPEN: &str = "[TOOL_CALLS]";
const CALL_ID: &str = "[CALL_ID]";
const ARGUMENTS: &str = "[ARGS]";

/// Special tokens of these models that calls contain.
pub const MARKERS: [&str; 3] = [OPEN, CALL_ID, ARGUMENTS];

/// The parser.
#[derive(Clone, Debug, Default)]
pub struct Mistral {
    held: String,
    at: At,
}

#[derive(Clone, Debug, Default)]
enum At {
    #[default]
    Text,
    /// After the marker.
    Announced,
    /// In a list, before a call. The text stands between the list's last call and here.
    List(String),
    Call(CallObject),
    /// In the arguments of a call whose name stood before them.
    Arguments(JsonValue),
}

impl Mistral {
    /// Parses more text.
    pub fn push(&mut self, text: &str, events: &mut Vec<CallEvent>) {
        self.held.push_str(text);
        while self.step(events) {}
    }

    /// Gives out what is held back at the end of the output.
    pub fn finish(&mut self, events: &mut Vec<CallEvent>) {
        match std::mem::take(&mut self.at) {
            At::Call(object) => CallEvent::push_text(events, object.into_text()),
            At::Announced => CallEvent::push_text(events, OPEN),
            At::List(raw) => CallEvent::push_text(events, raw),
            At::Text | At::Arguments(_) => {}
        }
        CallEvent::push_text(events, std::mem::take(&mut self.held));
    }

    /// Parses up to the next change; `false` if that needs more text.
    fn step(&mut self, events: &mut Vec<CallEvent>) -> bool {
        match &mut self.at {
            At::Text => {
                let (text, marker) = take_until(&mut self.held, &[OPEN]);
                CallEvent::push_text(events, text);
                if marker.is_some() {
                    self.at = At::Announced;
                }
                marker.is_some()
            }
            At::Announced => self.announced(events),
            At::List(_) => self.list(events),
            At::Call(object) => {
                let progress = object.read(&mut self.held, events);
                if progress == Progress::Open {
                    return false;
                }
                let complete = progress == Progress::Complete;
                let at = if complete { At::List(String::new()) } else { At::Text };
                if let At::Call(object) = std::mem::replace(&mut self.at, at) {
                    CallEvent::push_text(events, object.into_text());
                }
                true
            }
            At::Arguments(value) => {
                let text = std::mem::take(&mut self.held);
                for (at, character) in text.char_indices() {
                    let role = value.take(character);
                    let mut rest = at;
                    if matches!(role, Role::Inside | Role::Last) {
                        CallEvent::push_argument(events, character);
                        rest += character.len_utf8();
                    }
                    if role != Role::Inside {
                        self.held.push_str(&text[rest..]);
                        self.at = At::Text;
                        return true;
                    }
                }
                false
            }
        }
    }

    fn announced(&mut self, events: &mut Vec<CallEvent>) -> bool {
        let rest = self.held.trim_start();
        let blank = self.held.len() - rest.len();
        if rest.starts_with(CALL_ID) || rest.starts_with(ARGUMENTS) {
            return self.no_call(events);
        }
        if rest.starts_with('[') {
            let at = blank + 1;
            self.at = At::List(OPEN.to_owned() + &self.held[..at]);
            self.held.drain(..at);
            return true;
        }
        if rest.starts_with('{') {
            self.at = At::Call(CallObject::new(OPEN, None));
            return true;
        }
        match Header::read(rest) {
            Header::Open => false,
            Header::Bad => self.no_call(events),
            Header::Complete { name, id, bytes } => {
                events.push(CallEvent::Begin { name, id });
                self.held.drain(..blank + bytes);
                self.at = At::Arguments(JsonValue::default());
                true
            }
        }
    }

    fn no_call(&mut self, events: &mut Vec<CallEvent>) -> bool {
        CallEvent::push_text(events, OPEN);
        self.at = At::Text;
        true
    }

    fn list(&mut self, events: &mut Vec<CallEvent>) -> bool {
        let At::List(mut raw) = std::mem::take(&mut self.at) else { return false };
        let separator = |c: char| c.is_whitespace() || c == ',';
        let at = self.held.find(|c| !separator(c)).unwrap_or(self.held.len());
        raw.extend(self.held.drain(..at));
        match self.held.chars().next() {
            None => {
                self.at = At::List(raw);
                false
            }
            Some('{') => {
                self.at = At::Call(CallObject::new(raw, None));
                true
            }
            // an empty list stays text
            Some(']') if !raw.starts_with(OPEN) => {
                self.held.remove(0);
                true
            }
            Some(_) => {
                CallEvent::push_text(events, raw);
                true
            }
        }
    }
}

/// What stands before the arguments of a call: its name, and perhaps its id.
#[derive(Debug, PartialEq, Eq)]
enum Header {
    /// It is not complete.
    Open,
    /// It is none.
    Bad,
    /// The name, the id and how long the header is.
    Complete { name: String, id: Option<String>, bytes: usize },
}

impl Header {
    fn read(text: &str) -> Header {
        let (name, mut rest) = word(text, |c| c.is_ascii_alphanumeric() || "_-.".contains(c));
        if name.is_empty() {
            return if rest.is_empty() { Header::Open } else { Header::Bad };
        }
        let mut id = None;
        if let Some(after) = rest.strip_prefix(CALL_ID) {
            let (text, after) = word(after, |c| c.is_ascii_alphanumeric());
            id = Some(text.to_owned()).filter(|id| !id.is_empty());
            rest = after;
        }
        let marked = rest.strip_prefix(ARGUMENTS);
        let body = marked.unwrap_or(rest).trim_start();
        if body.starts_with('{') {
            return Header::Complete { name: name.to_owned(), id, bytes: text.len() - body.len() };
        }
        let marker_may_come = id.is_none() && beginning(rest, CALL_ID) == Beginning::Open
            || marked.is_none() && beginning(rest, ARGUMENTS) == Beginning::Open;
        if body.is_empty() || marker_may_come { Header::Open } else { Header::Bad }
    }
}

/// The characters at the beginning of a text that `belong`, and the rest.
fn word(text: &str, belong: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !belong(c)).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_a_name_with_or_without_an_id() {
        let complete = |name: &str, id: Option<&str>, bytes| Header::Complete {
            name: name.to_owned(),
            id: id.map(str::to_owned),
            bytes,
        };
        for (text, header) in [
            ("f{", complete("f", None, 1)),
            ("f {", complete("f", None, 2)),
            ("get-x.y[ARGS]{}", complete("get-x.y", None, 13)),
            ("f[CALL_ID]ab12[ARGS]{", complete("f", Some("ab12"), 20)),
            ("", Header::Open),
            ("f", Header::Open),
            ("f[CALL", Header::Open),
            ("f[CALL_ID]ab", Header::Open),
            ("f[CALL_ID]ab[AR", Header::Open),
            ("f[ARGS]", Header::Open),
            ("f is", Header::Bad),
            ("f[x", Header::Bad),
            ("(", Header::Bad),
        ] {
            assert_eq!(Header::read(text), header, "{text}");
        }
    }
}
