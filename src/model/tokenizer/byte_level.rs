//! Byte-level BPE: every token maps to a fixed byte string, and decoding is
//! concatenation. The vocabulary writes bytes as characters by GPT-2's table.

use tokenizers::DecoderWrapper;

use crate::protocol::TokenId;

/// Concatenated bytes of all tokens.
pub(super) struct BytePieces {
    bytes: Box<[u8]>,
    /// End offset of each id's bytes.
    ends: Box<[usize]>,
}

impl BytePieces {
    /// Extracts the pieces of a byte-level tokenizer with ids below `list_len`; `None` for other kinds.
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer, list_len: usize) -> Option<Self> {
        if !tokenizer.get_decoder().is_some_and(joins_byte_level) {
            return None;
        }
        let byte_of = byte_of_character();
        let mut bytes = Vec::new();
        let ends = (0..list_len as TokenId)
            .map(|id| {
                push_piece(&byte_of, &tokenizer.id_to_token(id).unwrap_or_default(), &mut bytes);
                bytes.len()
            })
            .collect();
        Some(Self { bytes: bytes.into(), ends })
    }

    /// The bytes of `id`; empty if it is not a token.
    pub(super) fn piece(&self, id: TokenId) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start..end]
    }
}

/// Whether a decoder does nothing but join the bytes of all tokens.
fn joins_byte_level(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteLevel(_) => true,
        DecoderWrapper::Sequence(sequence) => match sequence.get_decoders() {
            [first, rest @ ..] => {
                joins_byte_level(first) && rest.iter().all(|one| matches!(one, DecoderWrapper::Fuse(_)))
            }
            [] => false,
        },
        _ => false,
    }
}

/// A token with a character outside the table, such as an added token with a space, is
/// taken literally.
fn push_piece(byte_of: &[Option<u8>], token: &str, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    for character in token.chars() {
        match byte_of.get(character as usize).copied().flatten() {
            Some(byte) => bytes.push(byte),
            None => {
                bytes.truncate(start);
                bytes.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

/// Inverse of GPT-2's byte table, by code point. Printable Latin-1 maps to itself; the
/// other bytes follow from U+0100 in order.
fn byte_of_character() -> Vec<Option<u8>> {
    let spells_itself = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut byte_of = vec![None; 0x100];
    for byte in (0..=u8::MAX).filter(spells_itself) {
        byte_of[byte as usize] = Some(byte);
    }
    byte_of.extend((0..=u8::MAX).filter(|byte| !spells_itself(byte)).map(Some));
    byte_of
}

/// Incremental UTF-8 decoder with the result of `String::from_utf8_lossy` on the whole. A
/// character is emitted with its last byte; invalid bytes become U+FFFD.
#[derive(Clone, Debug, Default)]
pub(super) struct Utf8Joiner {
    /// Prefix of an incomplete character: at most three bytes after each `push`.
    pending: Vec<u8>,
}

impl Utf8Joiner {
    /// Decodes more bytes; appends complete characters to `text`.
    pub(super) fn push(&mut self, bytes: &[u8], text: &mut String) {
        self.pending.extend_from_slice(bytes);
        let mut rest = self.pending.as_slice();
        loop {
            let error = match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => error,
            };
            let (valid, after) = rest.split_at(error.valid_up_to());
            text.push_str(&String::from_utf8_lossy(valid));
            let Some(invalid) = error.error_len() else {
                rest = after;
                break;
            };
            text.push(char::REPLACEMENT_CHARACTER);
            rest = &after[invalid..];
        }
        let consumed = self.pending.len() - rest.len();
        self.pending.drain(..consumed);
    }

    /// Ends the text; an incomplete character becomes one U+FFFD.
    pub(super) fn finish(&mut self, text: &mut String) {
        if !self.pending.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
            self.pending.clear();
        }
    }
}
