//! Detokenization of one output: tokens in, text and finish reason out. Pure.

use std::sync::Arc;

use super::backend::TextDecoder;
use super::stop::{Scan, StopMatcher};
use crate::protocol::{FinishReason, TokenId};

/// Assembles the text of one output.
///
/// Tokens are processed one by one, so that text, count and end are the same whether they
/// arrive singly or in the bursts of speculative decoding.
pub struct Output {
    decoder: Box<dyn TextDecoder>,
    /// Tokens that end the output and do not appear in its text.
    end_tokens: Arc<[TokenId]>,
    stops: StopMatcher,
    /// Tokens before which no stop string is looked for.
    min_tokens: u32,
    tokens: u32,
    end: Option<OutputEnd>,
}

/// What ended an output on the API's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputEnd {
    /// An end token; the engine stops at it as well.
    Token,
    /// A stop string; the engine must be told to stop.
    StopString,
}

impl Output {
    /// Creates an empty output.
    pub fn new(decoder: Box<dyn TextDecoder>, end_tokens: Arc<[TokenId]>, stops: Vec<String>) -> Output {
        Output { decoder, end_tokens, stops: StopMatcher::new(stops), min_tokens: 0, tokens: 0, end: None }
    }

    /// Looks for stop strings only in the text of later tokens than the first `min_tokens`.
    #[must_use]
    pub fn with_min_tokens(self, min_tokens: u32) -> Output {
        Output { min_tokens, ..self }
    }

    /// Appends tokens and returns the text that may be released; possibly empty.
    /// Tokens after the end of the output are dropped.
    pub fn push(&mut self, tokens: &[TokenId]) -> String {
        let mut text = String::new();
        for &token in tokens {
            if self.end.is_some() {
                break;
            }
            self.tokens += 1;
            if self.end_tokens.contains(&token) {
                self.flush(&mut text);
                self.end = Some(OutputEnd::Token);
            } else {
                let piece = self.decoder.push(token);
                self.scan(&piece, &mut text);
            }
        }
        text
    }

    /// Returns the held-back text after the engine's last token.
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        if self.end.is_none() {
            self.flush(&mut text);
        }
        text
    }

    fn flush(&mut self, text: &mut String) {
        let rest = self.decoder.finish();
        self.scan(&rest, text);
        text.push_str(&self.stops.finish());
    }

    fn scan(&mut self, piece: &str, text: &mut String) {
        if self.tokens <= self.min_tokens {
            return text.push_str(piece);
        }
        match self.stops.push(piece) {
            Scan::Clear(more) => text.push_str(&more),
            Scan::Stopped(more) => {
                text.push_str(&more);
                self.end = Some(OutputEnd::StopString);
            }
        }
    }

    /// What ended the output; `None` while it is open.
    pub fn end(&self) -> Option<OutputEnd> {
        self.end
    }

    /// Output tokens so far, including the one that ended the output.
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// The finish reason to report, given the engine's own reason.
    pub fn finish_reason(&self, engine: FinishReason) -> FinishReason {
        if self.end.is_some() { FinishReason::Stop } else { engine }
    }
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Output({} tokens, end: {:?})", self.tokens, self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Token `t` is byte `t`: characters may span tokens.
    #[derive(Default)]
    struct Bytes(Vec<u8>);

    impl TextDecoder for Bytes {
        fn push(&mut self, token: TokenId) -> String {
            self.0.push(token as u8);
            match std::str::from_utf8(&self.0) {
                Ok(text) => {
                    let text = text.to_owned();
                    self.0.clear();
                    text
                }
                Err(_) => String::new(),
            }
        }

        fn finish(&mut self) -> String {
            String::from_utf8_lossy(&std::mem::take(&mut self.0)).into_owned()
        }
    }

    const END: TokenId = 0;

    fn output(stops: &[&str]) -> Output {
        let stops = stops.iter().map(|&stop| stop.to_owned()).collect();
        Output::new(Box::new(Bytes::default()), Arc::from([END]), stops)
    }

    fn tokens(text: &str) -> Vec<TokenId> {
        text.bytes().map(TokenId::from).collect()
    }

    #[test]
    fn an_end_token_counts_but_is_no_text() {
        let mut output = output(&[]);
        assert_eq!(output.push(&[104, 105, END, 33]), "hi");
        assert_eq!((output.tokens(), output.end()), (3, Some(OutputEnd::Token)));
        assert_eq!(output.finish(), "");
        assert_eq!(output.finish_reason(FinishReason::Length), FinishReason::Stop);
    }

    #[test]
    fn the_token_that_completes_a_stop_string_is_the_last_one_counted() {
        let mut output = output(&["END"]);
        assert_eq!(output.push(&tokens("a EN")), "a ");
        assert_eq!(output.push(&tokens("D and more")), "");
        assert_eq!((output.tokens(), output.end()), (5, Some(OutputEnd::StopString)));
        assert_eq!(output.push(&tokens("late")), "");
        assert_eq!(output.tokens(), 5);
    }

    #[test]
    fn a_stop_string_within_the_least_output_is_text() {
        let mut output = output(&["END"]).with_min_tokens(4);
        assert_eq!(output.push(&tokens("END END")), "END ");
        assert_eq!((output.tokens(), output.end()), (7, Some(OutputEnd::StopString)));
    }

    #[test]
    fn held_back_text_is_released_when_the_output_ends() {
        let mut at_length = output(&["END"]);
        assert_eq!(at_length.push(&tokens("a EN")), "a ");
        assert_eq!(at_length.finish(), "EN");
        assert_eq!(at_length.finish_reason(FinishReason::Length), FinishReason::Length);
        let mut at_end_token = output(&["END"]);
        assert_eq!(at_end_token.push(&tokens("a EN\0")), "a EN");
    }

    #[test]
    fn an_incomplete_character_is_replaced_at_the_end_only() {
        let mut output = output(&[]);
        assert_eq!(output.push(&[0xc3]), "");
        assert_eq!(output.finish(), "\u{fffd}");
    }

    proptest! {
        #[test]
        fn bursts_and_single_tokens_give_the_same_output(
            text in "[abé\0]{0,20}",
            stops in prop::collection::vec("[abé]{1,3}", 0..3),
            bursts in prop::collection::vec(1usize..6, 40),
        ) {
            let tokens = tokens(&text);
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let (mut single, mut burst) = (output(&stops), output(&stops));
            let mut single_text: String = tokens.iter().map(|token| single.push(&[*token])).collect();
            single_text += &single.finish();
            let (mut burst_text, mut rest) = (String::new(), tokens.as_slice());
            for size in bursts {
                let (now, later) = rest.split_at(size.min(rest.len()));
                burst_text += &burst.push(now);
                rest = later;
            }
            burst_text += &burst.finish();
            prop_assert_eq!(&burst_text, &single_text);
            prop_assert_eq!(burst.tokens(), single.tokens());
            prop_assert_eq!(burst.end(), single.end());
            prop_assert!(stops.iter().all(|stop| !burst_text.contains(stop)));
        }
    }
}
