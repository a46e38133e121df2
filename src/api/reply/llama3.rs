//! Tool calls as Llama 3 models write them: an answer that is an object `{"name": …, "parameters":
//! …}` or several with `;` between them, or what follows `<|python_tag|>`.

use super::call_object::{CallObject, Names, Progress};
use super::event::CallEvent;
use super::marker::take_until;

/// A special token of these models.
pub const TAG: &str = "<|python_tag|>";

/// The parser.
#[derive(Clone, Debug)]
pub struct Llama3 {
    held: String,
    at: At,
    /// Functions of the request. An object without a tag is a call only if it names one of them.
    known: Names,
}

#[derive(Clone, Debug)]
enum At {
    /// Before a call that no tag announces: at the beginning, or after a call.
    Open,
    Text,
    Call(CallObject),
}

impl Llama3 {
    /// A parser of calls of the functions `known`.
    pub fn new(known: Names) -> Llama3 {
        Llama3 { held: String::new(), at: At::Open, known }
    }

    /// Parses more text.
    pub fn push(&mut self, text: &str, events: &mut Vec<CallEvent>) {
        self.held.push_str(text);
        while self.step(events) {}
    }

    /// Gives out what is held back at the end of the output.
    pub fn finish(&mut self, events: &mut Vec<CallEvent>) {
        if let At::Call(object) = std::mem::replace(&mut self.at, At::Text) {
            CallEvent::push_text(events, object.into_text());
        }
        CallEvent::push_text(events, std::mem::take(&mut self.held));
    }

    /// Parses up to the next change; `false` if that needs more text.
    fn step(&mut self, events: &mut Vec<CallEvent>) -> bool {
        match &mut self.at {
            At::Open => {
                let separator = |c: char| c.is_whitespace() || c == ';';
                let Some(at) = self.held.find(|c| !separator(c)) else { return false };
                self.at = match self.held[at..].starts_with('{') {
                    true => {
                        let rest = self.held.split_off(at);
                        let raw = std::mem::replace(&mut self.held, rest);
                        At::Call(CallObject::new(raw, Some(self.known.clone())))
                    }
                    false => At::Text,
                };
                true
            }
            At::Text => {
                let (text, marker) = take_until(&mut self.held, &[TAG]);
                CallEvent::push_text(events, text);
                if marker.is_some() {
                    self.at = At::Call(CallObject::new(TAG, None));
                }
                marker.is_some()
            }
            At::Call(object) => {
                let progress = object.read(&mut self.held, events);
                if progress == Progress::Open {
                    return false;
                }
                let at = if progress == Progress::Complete { At::Open } else { At::Text };
                if let At::Call(object) = std::mem::replace(&mut self.at, at) {
                    CallEvent::push_text(events, object.into_text());
                }
                true
            }
        }
    }
}
