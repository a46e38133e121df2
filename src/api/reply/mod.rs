//! Answers of chats: reasoning, text and tool calls, read from the streamed text of an output.
//! Pure. What is recognised depends on the text alone, not on how it was cut.
//!
//! Text that is no complete call stays text. Once a call has begun, what the model writes belongs to
//! its arguments, whether or not they become valid JSON.

mod call_list;
mod call_object;
mod calls;
mod event;
mod format;
mod hermes;
mod json_value;
mod llama3;
mod marker;
mod mistral;
mod part;
mod reasoning;
#[cfg(test)]
mod tests;

pub use calls::CallRules;
pub use format::{ReasoningFormat, ToolFormat};
pub use part::{Message, Part, ToolCall};
pub use reasoning::{Reasoning, Start};

use calls::Calls;

/// How the text of an answer is to be read. By default all of it is text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplyRules {
    /// How reasoning is separated, if it is.
    pub reasoning: Option<ReasoningRules>,
    /// How tool calls are separated, if they are.
    pub calls: Option<CallRules>,
}

/// How the reasoning of one output is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasoningRules {
    /// How the model writes it.
    pub format: ReasoningFormat,
    /// Where the output begins.
    pub start: Start,
    /// What becomes of it.
    pub shown: Shown,
}

/// What becomes of reasoning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shown {
    /// It is a field of its own.
    #[default]
    Apart,
    /// It stays in the text, with its markers.
    InText,
    /// It is left out.
    Nowhere,
}

impl ReplyRules {
    /// Special tokens that have to be in the text.
    pub fn markers(&self) -> Vec<&'static str> {
        let reasoning = self.reasoning.iter().flat_map(|rules| rules.format.markers());
        let calls = self.calls.iter().flat_map(|rules| rules.format.markers());
        reasoning.chain(calls).copied().collect()
    }
}

/// Reads the text of one answer.
#[derive(Clone, Debug)]
pub struct Reply {
    reasoning: Option<(Reasoning, Shown)>,
    calls: Option<Calls>,
}

impl Reply {
    /// Begins an answer. Ids of tool calls are made of `seed`.
    pub fn new(rules: ReplyRules, seed: u64) -> Reply {
        let apart = rules.reasoning.filter(|rules| rules.shown != Shown::InText);
        let reasoning = apart.map(|rules| (Reasoning::new(rules.format, rules.start), rules.shown));
        Reply { reasoning, calls: rules.calls.map(|rules| Calls::new(rules, seed)) }
    }

    /// Whether there was a tool call.
    pub fn has_calls(&self) -> bool {
        self.calls.as_ref().is_some_and(Calls::any)
    }

    /// Reads more text; returns what is known of it.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        let mut parts = Vec::new();
        match &mut self.reasoning {
            None => self.answer(text, &mut parts),
            Some((reasoning, shown)) => {
                let split = reasoning.push(text);
                if *shown == Shown::Apart {
                    Part::push_reasoning(&mut parts, &split.reasoning);
                }
                self.answer(&split.answer, &mut parts);
            }
        }
        parts
    }

    /// Reads the last text; returns all that was held back.
    pub fn finish(&mut self, text: &str) -> Vec<Part> {
        let mut parts = self.push(text);
        if let Some((reasoning, shown)) = &mut self.reasoning {
            let split = reasoning.finish();
            if *shown == Shown::Apart {
                Part::push_reasoning(&mut parts, &split.reasoning);
            }
            self.answer(&split.answer, &mut parts);
        }
        if let Some(calls) = &mut self.calls {
            calls.finish(&mut parts);
        }
        parts
    }

    fn answer(&mut self, text: &str, parts: &mut Vec<Part>) {
        match &mut self.calls {
            Some(calls) => calls.push(text, parts),
            None => Part::push_content(parts, text),
        }
    }
}
