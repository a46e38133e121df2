//! Separates tool calls from the text around them, in every format.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::call_list::CallList;
use super::event::CallEvent;
use super::format::ToolFormat;
use super::hermes::Hermes;
use super::llama3::Llama3;
use super::mistral::Mistral;
use super::part::Part;

/// Ids of this length in base 36 are what Mistral's templates accept.
const MISTRAL_ID_CHARACTERS: usize = 9;

/// How the calls of one output are to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallRules {
    /// How the model writes them.
    pub format: ToolFormat,
    /// The functions of the request.
    pub names: Vec<String>,
    /// Whether there may be more than one call.
    pub parallel: bool,
    /// Whether the output must be calls, and so is a list of them in any model.
    pub forced: bool,
}

/// Separates streamed text. Whitespace around calls is no text.
#[derive(Clone, Debug)]
pub struct Calls {
    rules: CallRules,
    parser: Parser,
    /// What ids of calls are made of.
    seed: u64,
    /// Calls so far.
    count: usize,
    /// Whitespace that is no text if a call follows it, or stands between a call and the end.
    blank: String,
    /// Whether nothing but whitespace followed the latest call.
    after_call: bool,
}

#[derive(Clone, Debug)]
enum Parser {
    Forced(CallList),
    Hermes(Hermes),
    Llama3(Llama3),
    Mistral(Mistral),
}

impl Calls {
    /// Begins an output. Ids of calls depend on `seed` and their index.
    pub fn new(rules: CallRules, seed: u64) -> Calls {
        let parser = match rules.format {
            _ if rules.forced => Parser::Forced(CallList::default()),
            ToolFormat::Hermes => Parser::Hermes(Hermes::default()),
            ToolFormat::Llama3 => {
                Parser::Llama3(Llama3::new(Arc::new(rules.names.iter().cloned().collect())))
            }
            ToolFormat::Mistral => Parser::Mistral(Mistral::default()),
        };
        Calls { rules, parser, seed, count: 0, blank: String::new(), after_call: false }
    }

    /// Whether there was a call.
    pub fn any(&self) -> bool {
        self.count > 0
    }

    /// Separates more text.
    pub fn push(&mut self, text: &str, parts: &mut Vec<Part>) {
        let mut events = Vec::new();
        match &mut self.parser {
            Parser::Forced(parser) => parser.push(text, &mut events),
            Parser::Hermes(parser) => parser.push(text, &mut events),
            Parser::Llama3(parser) => parser.push(text, &mut events),
            Parser::Mistral(parser) => parser.push(text, &mut events),
        }
        self.take(events, parts);
    }

    /// Gives out what is held back at the end of the output.
    pub fn finish(&mut self, parts: &mut Vec<Part>) {
        let mut events = Vec::new();
        match &mut self.parser {
            Parser::Forced(parser) => parser.finish(&mut events),
            Parser::Hermes(parser) => parser.finish(&mut events),
            Parser::Llama3(parser) => parser.finish(&mut events),
            Parser::Mistral(parser) => parser.finish(&mut events),
        }
        self.take(events, parts);
        if !self.after_call {
            Part::push_content(parts, &std::mem::take(&mut self.blank));
        }
    }

    fn take(&mut self, events: Vec<CallEvent>, parts: &mut Vec<Part>) {
        for event in events {
            match event {
                CallEvent::Text(text) => self.take_text(&text, parts),
                CallEvent::Begin { name, id } => {
                    self.blank.clear();
                    self.after_call = true;
                    self.count += 1;
                    let index = self.count - 1;
                    let id = id.unwrap_or_else(|| self.id(index));
                    if self.is_wanted() {
                        parts.push(Part::Call { index, id, name });
                    }
                }
                CallEvent::Arguments(text) if self.is_wanted() => {
                    Part::push_arguments(parts, self.count - 1, &text);
                }
                CallEvent::Arguments(_) => {}
            }
        }
    }

    fn take_text(&mut self, text: &str, parts: &mut Vec<Part>) {
        self.blank.push_str(text);
        let kept = self.blank.trim_end().len();
        self.after_call &= kept == 0;
        let blank = self.blank.split_off(kept);
        Part::push_content(parts, &std::mem::replace(&mut self.blank, blank));
    }

    /// Whether the latest call is one that the request allows.
    fn is_wanted(&self) -> bool {
        self.rules.parallel || self.count == 1
    }

    fn id(&self, index: usize) -> String {
        let mut hasher = DefaultHasher::new();
        (self.seed, index).hash(&mut hasher);
        let hash = hasher.finish();
        match self.rules.format {
            ToolFormat::Mistral => base36(hash, MISTRAL_ID_CHARACTERS),
            ToolFormat::Hermes | ToolFormat::Llama3 => format!("call_{hash:016x}"),
        }
    }
}

/// The last digits of a number, letters and digits only.
fn base36(mut number: u64, digits: usize) -> String {
    const DIGITS: u64 = 36;
    let digit = |value: u64| char::from_digit(value as u32, DIGITS as u32).expect("less than the base");
    let mut take = || {
        let value = number % DIGITS;
        number /= DIGITS;
        digit(value)
    };
    (0..digits).map(|_| take()).collect()
}
