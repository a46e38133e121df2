//! Byte fallback: tokens such as `<0xE4>` stand for single bytes of characters that the
//! vocabulary lacks.

use tokenizers::DecoderWrapper;

use crate::protocol::TokenId;

/// The byte of each token that stands for one, in a tokenizer whose decoder joins such bytes.
pub(super) struct FallbackBytes(Box<[Option<u8>]>);

impl FallbackBytes {
    /// Reads the byte tokens with ids below `list_len`; `None` if the decoder joins no bytes.
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer, list_len: usize) -> Option<Self> {
        if !tokenizer.get_decoder().is_some_and(joins_bytes) {
            return None;
        }
        let byte = |id| byte_of(&tokenizer.id_to_token(id)?);
        Some(Self((0..list_len as TokenId).map(byte).collect()))
    }

    /// The byte that a token stands for.
    pub(super) fn byte(&self, id: TokenId) -> Option<u8> {
        self.0.get(id as usize).copied().flatten()
    }
}

fn joins_bytes(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteFallback(_) => true,
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().any(joins_bytes),
        _ => false,
    }
}

fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// Joins bytes to characters. A byte that belongs to no character becomes one U+FFFD.
#[derive(Clone, Debug, Default)]
pub(super) struct ByteRun {
    /// Bytes of an incomplete character: at most three after each `push`.
    pending: Vec<u8>,
}

impl ByteRun {
    /// Appends the characters that `byte` completes to `text`.
    pub(super) fn push(&mut self, byte: u8, text: &mut String) {
        self.pending.push(byte);
        while !self.pending.is_empty() {
            match std::str::from_utf8(&self.pending) {
                Ok(character) => {
                    text.push_str(character);
                    self.pending.clear();
                }
                Err(error) if error.error_len().is_none() => return,
                Err(_) => {
                    text.push(char::REPLACEMENT_CHARACTER);
                    self.pending.remove(0);
                }
            }
        }
    }

    /// Ends the run: appends one U+FFFD for each byte of an incomplete character.
    pub(super) fn finish(&mut self, text: &mut String) {
        text.extend(self.pending.drain(..).map(|_| char::REPLACEMENT_CHARACTER));
    }
}
