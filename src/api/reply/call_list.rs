//! Tool calls of an output that must be calls: `[{"name": …, "arguments": …}, …]`, in any model.

use super::call_object::{CallObject, Progress};
use super::event::CallEvent;

/// The parser. What stands between the calls of such an output is known, and is no text.
#[derive(Clone, Debug, Default)]
pub struct CallList {
    held: String,
    call: Option<CallObject>,
}

impl CallList {
    /// Parses more text.
    pub fn push(&mut self, text: &str, events: &mut Vec<CallEvent>) {
        self.held.push_str(text);
        loop {
            let Some(call) = &mut self.call else {
                let between = |c: char| c.is_whitespace() || matches!(c, '[' | ',' | ']');
                self.held = self.held.trim_start_matches(between).to_owned();
                if !self.held.starts_with('{') {
                    return;
                }
                self.call = Some(CallObject::new("", None));
                continue;
            };
            if call.read(&mut self.held, events) == Progress::Open {
                return;
            }
            self.end_call(events);
        }
    }

    /// Gives out what is held back at the end of the output.
    pub fn finish(&mut self, events: &mut Vec<CallEvent>) {
        self.end_call(events);
        CallEvent::push_text(events, std::mem::take(&mut self.held));
    }

    fn end_call(&mut self, events: &mut Vec<CallEvent>) {
        if let Some(call) = self.call.take() {
            CallEvent::push_text(events, call.into_text());
        }
    }
}
