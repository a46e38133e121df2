//! Decoding one output token by token.

use super::Tokenizer;
use super::byte_level::Utf8Joiner;
use crate::protocol::TokenId;

/// Bytes of the longest unfinished character, and so the most U+FFFD that one can leave at
/// the end of a text.
const UNFINISHED_BYTES_MAX: usize = 3;

/// Most tokens that are held back, whatever they decode to: an unfinished character and a
/// few that leave no text.
const PENDING_TOKENS_MAX: usize = 8;

/// Turns a stream of tokens into a stream of text. What it gives out, joined, is what
/// [`Tokenizer::decode`] gives for all tokens at once; a character is given out only when
/// all its bytes are there. The cost of a token does not grow with the stream.
///
/// Tokenizers with byte fallback turn *every* byte of a run into U+FFFD when the run as a
/// whole is not UTF-8, which can't be known before its end: there, characters before the
/// bad byte are kept.
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

    /// Takes the next token; appends the text that is complete now to `text`.
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

    /// Ends the stream: appends what was held back to `text`, an unfinished character as
    /// U+FFFD.
    pub fn finish(&mut self, text: &mut String) {
        match &mut self.state {
            State::ByteLevel(joiner) => joiner.finish(text),
            State::Window(window) => window.finish(&self.tokenizer, text),
        }
    }
}

#[cfg(test)]
impl StreamDecoder {
    /// Tokens kept for the next ones' sake.
    pub(super) fn held_tokens(&self) -> usize {
        match &self.state {
            State::ByteLevel(_) => 0,
            State::Window(window) => window.tokens.len(),
        }
    }
}

/// Decodes the last few tokens anew with each token, because a token's text may depend on
/// its neighbours: the tokens given out last stay in front as context.
#[derive(Clone, Debug, Default)]
struct Window {
    tokens: Vec<TokenId>,
    /// How many of `tokens` are given out, and what they decode to.
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

/// Special tokens are sorted out before the window. The decoders that tokenizer.json can name
/// fail only on malformed patterns, which loading has refused.
fn decode(tokenizer: &Tokenizer, tokens: &[TokenId]) -> String {
    tokenizer.decode(tokens, false).unwrap_or_default()
}
