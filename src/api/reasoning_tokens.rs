//! Counts the tokens of the reasoning.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::backend::TextDecoder;
use super::reply::{Reasoning, ReasoningRules};
use crate::protocol::TokenId;

/// Tokens of the reasoning of one output so far.
#[derive(Clone, Debug, Default)]
pub struct ReasoningTokens(Arc<AtomicU32>);

impl ReasoningTokens {
    /// Tokens up to the end of the reasoning, its markers included; 0 if there was none.
    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// A decoder that counts the tokens that it decodes. It sees each by itself, so that the count
    /// does not depend on the bursts in which they arrive.
    pub fn counting(&self, decoder: Box<dyn TextDecoder>, rules: ReasoningRules) -> Box<dyn TextDecoder> {
        let reasoning = Reasoning::new(rules.format, rules.start);
        Box::new(Counting { decoder, reasoning, undecided: 0, count: self.clone() })
    }
}

struct Counting {
    decoder: Box<dyn TextDecoder>,
    reasoning: Reasoning,
    /// Tokens of which it is not known yet whether they are reasoning.
    undecided: u32,
    count: ReasoningTokens,
}

impl TextDecoder for Counting {
    fn push(&mut self, token: TokenId) -> String {
        let text = self.decoder.push(token);
        if self.reasoning.is_open() {
            self.reasoning.push(&text);
            self.undecided += 1;
            if self.reasoning.has_begun() {
                self.count.0.fetch_add(std::mem::take(&mut self.undecided), Ordering::Relaxed);
            }
        }
        text
    }

    fn finish(&mut self) -> String {
        self.decoder.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::reply::{ReasoningFormat, Shown, Start};

    /// Token `t` is byte `t`.
    struct Bytes;

    impl TextDecoder for Bytes {
        fn push(&mut self, token: TokenId) -> String {
            char::from(token as u8).to_string()
        }

        fn finish(&mut self) -> String {
            String::new()
        }
    }

    fn count(text: &str, start: Start) -> u32 {
        let tokens = ReasoningTokens::default();
        let rules = ReasoningRules { format: ReasoningFormat::Think, start, shown: Shown::Apart };
        let mut decoder = tokens.counting(Box::new(Bytes), rules);
        let decoded: String = text.bytes().map(|byte| decoder.push(byte.into())).collect();
        assert_eq!(decoded + &decoder.finish(), text);
        tokens.get()
    }

    #[test]
    fn tokens_count_up_to_the_end_of_the_reasoning() {
        assert_eq!(count("<think>ab</think>cd", Start::Open), 17);
        assert_eq!(count("<think>ab", Start::Open), 9);
        assert_eq!(count("ab</think>cd", Start::Reasoning), 10);
        assert_eq!(count("ab", Start::Reasoning), 2);
    }

    #[test]
    fn an_answer_without_reasoning_has_no_tokens_of_it() {
        assert_eq!(count("abc<think>d</think>", Start::Open), 0);
        assert_eq!(count("<thi", Start::Open), 0);
        assert_eq!(count("abc</think>", Start::Answer), 0);
    }
}
