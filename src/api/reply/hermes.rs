//! Tool calls as Hermes and Qwen models write them: `<tool_call>{"name": …}</tool_call>`.

use super::call_object::{CallObject, Progress};
use super::event::CallEvent;
use super::marker::{Beginning, beginning, take_until};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// The parser.
#[derive(Clone, Debug, Default)]
pub struct Hermes {
    held: String,
    at: At,
}

#[derive(Clone, Debug, Default)]
enum At {
    #[default]
    Text,
    Call(CallObject),
    /// After a call.
    Closing,
}

impl Hermes {
    /// Parses more text.
    pub fn push(&mut self, text: &str, events: &mut Vec<CallEvent>) {
        self.held.push_str(text);
        while self.step(events) {}
    }

    /// Gives out what is held back at the end of the output.
    pub fn finish(&mut self, events: &mut Vec<CallEvent>) {
        if let At::Call(object) = std::mem::take(&mut self.at) {
            CallEvent::push_text(events, object.into_text());
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
                    self.at = At::Call(CallObject::new(OPEN, None));
                }
                marker.is_some()
            }
            At::Call(object) => {
                let progress = object.read(&mut self.held, events);
                if progress == Progress::Open {
                    return false;
                }
                let At::Call(object) = std::mem::replace(&mut self.at, At::Text) else { return false };
                let begun = object.begun();
                CallEvent::push_text(events, object.into_text());
                if begun {
                    self.at = At::Closing;
                }
                true
            }
            At::Closing => {
                let rest = self.held.trim_start();
                match beginning(rest, CLOSE) {
                    Beginning::Open => return false,
                    Beginning::Marker => self.held = rest[CLOSE.len()..].to_owned(),
                    Beginning::Other => {}
                }
                self.at = At::Text;
                true
            }
        }
    }
}
