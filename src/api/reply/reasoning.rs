//! Separates the reasoning of a model from its answer.

use super::format::ReasoningFormat;
use super::marker::{Beginning, beginning, partial_bytes};

/// Where an output begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// With reasoning if it begins with the marker.
    #[default]
    Open,
    /// Within the reasoning: the prompt ends with the marker.
    Reasoning,
    /// Within the answer.
    Answer,
}

impl Start {
    /// Where the output after `prompt` begins; the end of a prompt is enough.
    pub fn after(prompt: &str, format: ReasoningFormat) -> Start {
        let [open, close] = format.markers();
        match prompt.trim_end() {
            text if text.ends_with(open) => Start::Reasoning,
            text if text.ends_with(close) => Start::Answer,
            _ => Start::Open,
        }
    }

    /// Where the output begins that continues a message.
    pub fn within(message: &str, format: ReasoningFormat) -> Start {
        let [open, close] = format.markers();
        match (message.rfind(open), message.rfind(close)) {
            _ if message.trim().is_empty() => Start::Open,
            (Some(open), close) if close.is_none_or(|close| close < open) => Start::Reasoning,
            _ => Start::Answer,
        }
    }
}

/// A piece of text, separated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// Reasoning, without the line breaks around it.
    pub reasoning: String,
    /// The answer, without the line breaks between the reasoning and it.
    pub answer: String,
}

/// Separates streamed text. Only the first block of reasoning is separated, and only if nothing
/// but whitespace is before it.
#[derive(Clone, Debug)]
pub struct Reasoning {
    format: ReasoningFormat,
    at: At,
    /// Whether there is reasoning.
    begun: bool,
    held: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// The output has not begun, but for whitespace.
    Open,
    /// Before the first character of reasoning.
    Begun,
    Reasoning,
    /// Between the reasoning and the answer.
    Between,
    Answer,
}

impl Reasoning {
    /// Begins an output.
    pub fn new(format: ReasoningFormat, start: Start) -> Reasoning {
        let at = match start {
            Start::Open => At::Open,
            Start::Reasoning => At::Begun,
            Start::Answer => At::Answer,
        };
        Reasoning { format, at, begun: start == Start::Reasoning, held: String::new() }
    }

    /// Whether the text so far is or may be reasoning.
    pub fn is_open(&self) -> bool {
        matches!(self.at, At::Open | At::Begun | At::Reasoning)
    }

    /// Whether there is reasoning.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Separates more text.
    pub fn push(&mut self, text: &str) -> Split {
        let mut split = Split::default();
        self.held.push_str(text);
        while self.step(&mut split) {}
        split
    }

    /// Gives out what is held back at the end of the output.
    pub fn finish(&mut self) -> Split {
        let rest = std::mem::take(&mut self.held);
        match self.at {
            At::Begun | At::Reasoning => Split { reasoning: rest, ..Split::default() },
            At::Open | At::Between | At::Answer => Split { answer: rest, ..Split::default() },
        }
    }

    /// Separates up to the next change; `false` if that needs more text.
    fn step(&mut self, split: &mut Split) -> bool {
        let [open, close] = self.format.markers();
        match self.at {
            At::Open => {
                let rest = self.held.trim_start();
                self.at = match beginning(rest, open) {
                    Beginning::Open => return false,
                    Beginning::Other => At::Answer,
                    Beginning::Marker => {
                        self.held = rest[open.len()..].to_owned();
                        self.begun = true;
                        At::Begun
                    }
                };
                true
            }
            At::Begun | At::Between => {
                let rest = self.held.trim_start_matches('\n');
                let next = if self.at == At::Begun { At::Reasoning } else { At::Answer };
                self.held = rest.to_owned();
                if self.held.is_empty() {
                    return false;
                }
                self.at = next;
                true
            }
            At::Reasoning => {
                if let Some(at) = self.held.find(close) {
                    split.reasoning += self.held[..at].trim_end_matches('\n');
                    self.held.drain(..at + close.len());
                    self.at = At::Between;
                    return true;
                }
                let safe = self.held.len() - partial_bytes(&self.held, close);
                let safe = self.held[..safe].trim_end_matches('\n').len();
                split.reasoning.extend(self.held.drain(..safe));
                false
            }
            At::Answer => {
                split.answer += &std::mem::take(&mut self.held);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(start: Start, pieces: &[&str]) -> (String, String) {
        let mut parser = Reasoning::new(ReasoningFormat::Think, start);
        let mut all = Split::default();
        let splits: Vec<Split> = pieces.iter().map(|piece| parser.push(piece)).collect();
        for more in splits.into_iter().chain([parser.finish()]) {
            all.reasoning += &more.reasoning;
            all.answer += &more.answer;
        }
        (all.reasoning, all.answer)
    }

    fn texts(reasoning: &str, answer: &str) -> (String, String) {
        (reasoning.to_owned(), answer.to_owned())
    }

    #[test]
    fn reasoning_is_what_stands_between_the_markers_at_the_beginning() {
        for (text, expected) in [
            ("\n<think>\na\n\nb\n</think>\n\nc\n", texts("a\n\nb", "c\n")),
            ("<think>\n\n</think>\n\nc", texts("", "c")),
            ("<think>a</think>b<think>c</think>", texts("a", "b<think>c</think>")),
            ("a <think>b</think>", texts("", "a <think>b</think>")),
            (" \n", texts("", " \n")),
            ("<thin", texts("", "<thin")),
            ("<thinking>a", texts("", "<thinking>a")),
        ] {
            assert_eq!(split(Start::Open, &[text]), expected, "{text}");
        }
    }

    #[test]
    fn reasoning_that_does_not_end_loses_nothing() {
        assert_eq!(split(Start::Open, &["<think>a\n</thi"]), texts("a\n</thi", ""));
    }

    #[test]
    fn an_output_may_begin_within_the_reasoning_or_behind_it() {
        assert_eq!(split(Start::Reasoning, &["\na</think>\n\nb"]), texts("a", "b"));
        assert_eq!(split(Start::Answer, &["<think>a</think>"]), texts("", "<think>a</think>"));
    }

    #[test]
    fn the_end_of_the_prompt_says_where_the_output_begins() {
        let after = |prompt| Start::after(prompt, ReasoningFormat::Think);
        assert_eq!(after("assistant\n<think>\n"), Start::Reasoning);
        assert_eq!(after("assistant\n<think>\n\n</think>\n\n"), Start::Answer);
        assert_eq!(after("assistant\n"), Start::Open);
        let within = |message| Start::within(message, ReasoningFormat::Think);
        assert_eq!(within("<think>a"), Start::Reasoning);
        assert_eq!(within("<think>a</think>b"), Start::Answer);
        assert_eq!(within("b"), Start::Answer);
        assert_eq!(within(" "), Start::Open);
    }

    proptest! {
        #[test]
        fn the_outcome_depends_on_the_text_alone(
            text in "(<think>)?[a<\n]{0,6}(</think>|</thin)?[a<\n]{0,6}",
            begun in any::<bool>(),
            cuts in prop::collection::vec(0usize..5, 0..24),
        ) {
            let start = if begun { Start::Reasoning } else { Start::Open };
            let (mut pieces, mut rest) = (Vec::new(), text.as_str());
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            prop_assert_eq!(split(start, &pieces), split(start, &[&text]));
        }
    }
}
