//! Streaming detokenization of one output.

use super::Tokenizer;
use super::byte_fallback::ByteRun;
use super::byte_level::Utf8Joiner;
use crate::protocol::TokenId;

/// Bytes of the longest incomplete character, and so the most U+FFFD that one can leave at
/// the end of a text.
const UNFINISHED_BYTES_MAX: usize = 3;

/// Upper bound of held-back tokens: an incomplete character and a few tokens without text.
const PENDING_TOKENS_MAX: usize = 8;

/// Streaming decoder. The concatenated output is the text that the tokens add to the prompt
/// before them; without a prompt it equals [`Tokenizer::decode`] of all tokens. A character is
/// emitted only once all its bytes have arrived. The cost per token does not grow with the stream.
///
/// One exception: tokenizers with byte fallback turn *every* byte of a run into U+FFFD if
/// the run as a whole is not UTF-8, which is known only at its end. The stream replaces only
/// the bytes that belong to no character.
#[derive(Clone, Debug)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    skip_special_tokens: bool,
    /// Special tokens that are not skipped.
    shown: Vec<TokenId>,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    ByteLevel(Utf8Joiner),
    Window(Window),
    /// The window decodes the tokens that stand for no byte.
    ByteFallback {
        run: ByteRun,
        window: Window,
    },
}

impl StreamDecoder {
    pub(super) fn new(tokenizer: Tokenizer, skip_special_tokens: bool, prompt: &[TokenId]) -> Self {
        let inner = &tokenizer.inner;
        // what a first token decodes to depends on whether there is any text before it
        let last = prompt.iter().rev().find(|&&token| !tokenizer.is_silent(token));
        let window = || last.map_or_else(Window::default, |&last| Window::after(last, &tokenizer));
        let state = match (&inner.pieces, &inner.fallback) {
            (Some(_), _) => State::ByteLevel(Utf8Joiner::default()),
            (None, Some(_)) => State::ByteFallback { run: ByteRun::default(), window: window() },
            (None, None) => State::Window(window()),
        };
        Self { tokenizer, skip_special_tokens, shown: Vec::new(), state }
    }

    /// Skips these special tokens no more.
    #[must_use]
    pub fn showing(self, shown: Vec<TokenId>) -> Self {
        Self { shown, ..self }
    }

    /// Decodes the next token; appends completed text to `text`.
    pub fn push(&mut self, token: TokenId, text: &mut String) {
        if self.skip_special_tokens && self.tokenizer.is_silent(token) && !self.shown.contains(&token) {
            return;
        }
        let tokenizer = &self.tokenizer;
        let (pieces, fallback) = (&tokenizer.inner.pieces, &tokenizer.inner.fallback);
        match &mut self.state {
            State::ByteLevel(joiner) => {
                joiner.push(pieces.as_ref().map_or(&[], |all| all.piece(token)), text)
            }
            _ if tokenizer.token(token).is_none() => {}
            State::Window(window) => window.push(token, tokenizer, text),
            State::ByteFallback { run, window } => match fallback.as_ref().and_then(|all| all.byte(token)) {
                Some(byte) => {
                    window.flush(tokenizer, text);
                    let mut joined = String::new();
                    run.push(byte, &mut joined);
                    window.push_bytes(token, &joined, tokenizer, text);
                }
                None => {
                    run.finish(text);
                    window.push(token, tokenizer, text);
                }
            },
        }
    }

    /// Ends the stream; appends the held-back text to `text`, an incomplete character as U+FFFD.
    pub fn finish(&mut self, text: &mut String) {
        match &mut self.state {
            State::ByteLevel(joiner) => joiner.finish(text),
            State::Window(window) => window.flush(&self.tokenizer, text),
            State::ByteFallback { run, window } => {
                window.flush(&self.tokenizer, text);
                run.finish(text);
            }
        }
    }
}

#[cfg(test)]
impl StreamDecoder {
    /// Window of recent tokens, for tokenizers with context-dependent decoding.
    pub(super) fn held_tokens(&self) -> usize {
        match &self.state {
            State::ByteLevel(_) => 0,
            State::Window(window) | State::ByteFallback { window, .. } => window.tokens.len(),
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
    /// A window that continues the text of an earlier token.
    fn after(token: TokenId, tokenizer: &Tokenizer) -> Self {
        Self { tokens: vec![token], given: 1, given_text: decode(tokenizer, &[token]) }
    }

    fn push(&mut self, token: TokenId, tokenizer: &Tokenizer, text: &mut String) {
        self.tokens.push(token);
        let decoded = decode(tokenizer, &self.tokens);
        let fresh = beyond(&decoded, &self.given_text);
        let pending = self.tokens.len() - self.given;
        if pending < PENDING_TOKENS_MAX && (fresh.is_empty() || may_be_unfinished(fresh)) {
            return;
        }
        self.give(&decoded, tokenizer, text);
    }

    /// Gives out what is held back; the next token continues it.
    fn flush(&mut self, tokenizer: &Tokenizer, text: &mut String) {
        if self.tokens.len() > self.given {
            let decoded = decode(tokenizer, &self.tokens);
            self.give(&decoded, tokenizer, text);
        }
    }

    fn give(&mut self, decoded: &str, tokenizer: &Tokenizer, text: &mut String) {
        text.push_str(beyond(decoded, &self.given_text));
        self.tokens.drain(..self.given);
        self.given = self.tokens.len();
        self.given_text = decode(tokenizer, &self.tokens);
    }

    /// Gives out the characters that the byte `token` completes. Only the first of a text depends
    /// on the decoder, which may drop a space there.
    fn push_bytes(&mut self, token: TokenId, joined: &str, tokenizer: &Tokenizer, text: &mut String) {
        if self.tokens.is_empty() {
            *self = Self::after(token, tokenizer);
            if joined == " " {
                text.push_str(&self.given_text);
                return;
            }
        }
        text.push_str(joined);
    }
}

/// What `decoded` adds to `given`. A decoder that tidies up may change the end of what was given.
fn beyond<'a>(decoded: &'a str, given: &str) -> &'a str {
    let same = decoded.char_indices().zip(given.chars()).find(|((_, now), then)| now != then);
    match same {
        Some(((at, _), _)) => &decoded[at..],
        None => decoded.get(given.len()..).unwrap_or_default(),
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
