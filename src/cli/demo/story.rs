//! Prints one answer with the target's passes marked.
//!
//! The daemon streams one delta per step, so the pieces of a stream are the passes' outputs.

use std::io::{Result, Write};

use crate::cli::answer::ChatReply;

const GREEN: &str = "\x1b[32m";
const RESET: &str = "\x1b[0m";

/// How the output of one pass is told from that of the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marks {
    /// Every second pass is green.
    Colours,
    /// A bar between passes.
    Bars,
}

/// Explains what is about to be shown, and prints the prompt.
///
/// # Errors
/// Those of `out`.
pub fn introduce(out: &mut dyn Write, prompt: &str, marks: Marks) -> Result<()> {
    let marked = match marks {
        Marks::Colours => "Each change of colour",
        Marks::Bars => "Each bar",
    };
    writeln!(
        out,
        "Two small models are compiled in: a target, whose answer you get, and a draft model, which is\n\
         faster and not as good. The draft model guesses the next tokens, and one pass of the target\n\
         checks all of them: it keeps those that it would have produced itself, and adds one of its own.\n\
         {marked} is one pass of the target.\n\n> {prompt}"
    )
}

/// Prints the pieces of a streamed answer.
pub struct StoryPrinter<'a> {
    out: &'a mut dyn Write,
    marks: Marks,
    pieces: usize,
}

impl<'a> StoryPrinter<'a> {
    /// Prints to `out`.
    pub fn new(out: &'a mut dyn Write, marks: Marks) -> StoryPrinter<'a> {
        StoryPrinter { out, marks, pieces: 0 }
    }

    /// Prints the output of one pass at once.
    ///
    /// # Errors
    /// Those of the output.
    pub fn piece(&mut self, text: &str) -> Result<()> {
        match self.marks {
            Marks::Colours if self.pieces % 2 == 1 => write!(self.out, "{GREEN}{text}{RESET}")?,
            Marks::Bars if self.pieces > 0 => write!(self.out, "|{text}")?,
            Marks::Colours | Marks::Bars => write!(self.out, "{text}")?,
        }
        self.pieces += 1;
        self.out.flush()
    }

    /// Prints how many passes the answer took.
    ///
    /// # Errors
    /// Those of the output.
    pub fn end(self, answer: &ChatReply) -> Result<()> {
        let tokens = answer.usage.completion_tokens;
        // the prefill pass yields the first token
        let passes = answer.metrics.speculative_decoding.steps + 1;
        writeln!(
            self.out,
            "\n\n{tokens} tokens in {passes} passes of the target. Without speculation, each token takes one.\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::answer::{RequestMetrics, SpeculativeDecoding, Usage};

    fn printed(marks: Marks) -> String {
        let mut out = Vec::new();
        let mut printer = StoryPrinter::new(&mut out, marks);
        for piece in ["One", " morning,", " Molly"] {
            printer.piece(piece).expect("written");
        }
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn a_bar_or_a_change_of_colour_stands_between_two_passes() {
        assert_eq!(printed(Marks::Bars), "One| morning,| Molly");
        assert_eq!(printed(Marks::Colours), "One\x1b[32m morning,\x1b[0m Molly");
    }

    #[test]
    fn the_prefill_pass_is_counted() {
        let speculative_decoding = SpeculativeDecoding { steps: 26, ..SpeculativeDecoding::default() };
        let answer = ChatReply {
            usage: Usage { prompt_tokens: 18, completion_tokens: 85 },
            metrics: RequestMetrics { speculative_decoding, ..RequestMetrics::default() },
            ..ChatReply::default()
        };
        let mut out = Vec::new();
        StoryPrinter::new(&mut out, Marks::Bars).end(&answer).expect("written");
        assert!(String::from_utf8(out).expect("text").contains("85 tokens in 27 passes"));
    }
}
