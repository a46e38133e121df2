//! Streaming detokenization of one output.

use super::Tokenizer;
use super::byte_level::Utf8Joiner;
use crate::protocol::TokenId;

/// Bytes of the longest incomplete character, and so the most U+FFFD that one can leave at
/// the end of a text.
const UNFINISHED_BYTES_MAX: usize = 3;

/// Upper bound of held-back tokens: an incomplete character and a few tokens without text.
const PENDING_TOKENS_MAX: usize = 8;

/// Streaming decoder. The concatenated output equals [`Tokenizer::decode`] of all tokens; a
/// character is emitted only once all its bytes have arrived. The cost per token does not
/// grow with the stream.
///
/// One exception: tokenizers with byte fallback turn *every* byte of a run into U+FFFD if
/// the run as a whole is not UTF-8, which is known only at its end. The stream keeps the
/// characters before the invalid byte.
#[derive(Clone, Debug)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    skip_special_tokens: bool,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    ByteLevel(Utf8Joiner),
    Window(Window),
}

impl StreamDecoder {
    pub(super) fn new(tokenizer: Tokenizer, skip_special_tokens: bool) -> Self {
        let state = match tokenizer.inner.pieces {
            Some(_) => State::ByteLevel(Utf8Joiner::default()),
            None => State::Window(Window::default()),
        };
        Self { tokenizer, skip_special_tokens, state }
    }

    /// Decodes the next token; appends completed text to `text`.
    pub fn push(&mut self, token: TokenId, text: &mut String) {
        if self.skip_special_tokens && self.tokenizer.is_silent(token) {
            return;
        }
        match (&mut self.state, &self.tokenizer.inner.pieces) {
            (State::ByteLevel(joiner), Some(pieces)) => joiner.push(pieces.piece(token), text),
            (State::Window(window), _) if self.tokenizer.token(token).is_some() => {
                window.push(token, &self.tokenizer, text);
            }
            _ => {}
        }
    }

    /// Ends the stream; appends the held-back text to `text`, an incomplete character as U+FFFD.
    pub fn finish(&mut self, text: &mut String) {
        match &mut self.state {
            State::ByteLevel(joiner) => joiner.finish(text),
            State::Window(window) => window.finish(&self.tokenizer, text),
        }
    }
}

#[cfg(test)]
impl StreamDecoder {
    /// Window of recent tokens, for tokenizers with context-dependent decoding.
    pub(super) fn held_tokens(&self) -> usize {
        match &self.state {
            State::ByteLevel(_) => 0,
            State::Window(window) => window.tokens.len(),
        }
    }
}

/// Re-decodes the last few tokens with each new token, because a token's text may depend on
/// its neighbours. The most recently emitted tokens stay in front as context.
#[derive(Clone, Debug, Default)]
struct Window {
    tokens: Vec<TokenId>,
    /// Number of `tokens` already emitted, and their text.
    given: usize,
    given_text: String,
}

impl Window {
    fn push(&mut self, token: TokenId, tokenizer: &Tokenizer, text: &mut String) {
        self.tokens.push(token);
        let decoded = decode(tokenizer, &self.tokens);
        let fresh = decoded.strip_prefix(&self.given_text).unwrap_or_default();
        let pending = self.tokens.len() - self.given;
        if pending < PENDING_TOKENS_MAX && (fresh.is_empty() || may_be_unfinished(fresh)) {
            return;
        }
        text.push_str(fresh);
        self.tokens.drain(..self.given);
        self.given = self.tokens.len();
        self.given_text = decode(tokenizer, &self.tokens);
    }

    fn finish(&mut self, tokenizer: &Tokenizer, text: &mut String) {
        let decoded = decode(tokenizer, &self.tokens);
        text.push_str(decoded.strip_prefix(&self.given_text).unwrap_or_default());
        *self = Self::default();
    }
}

fn may_be_unfinished(text: &str) -> bool {
    let replaced = text.chars().rev().take_while(|c| *c == char::REPLACEMENT_CHARACTER).count();
    (1..=UNFINISHED_BYTES_MAX).contains(&replaced)
}

/// Special tokens are removed before the window. The decoders that tokenizer.json can name
/// fail only on malformed patterns, which loading rejects.
fn decode(tokenizer: &Tokenizer, tokens: &[TokenId]) -> String {
    tokenizer.decode(tokens, false).unwrap_or_default()
}
