//! Text to tokens and back, as tokenizer.json says.
#![forbid(unsafe_code)]

mod byte_level;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::ModelError;
use super::files::ModelFiles;
use crate::protocol::TokenId;
use byte_level::BytePieces;
pub use stream::StreamDecoder;

const TOKENIZER: &str = "tokenizer.json";

/// A model's tokenizer. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    wrapped: tokenizers::Tokenizer,
    /// One past the highest id.
    list_len: usize,
    /// By id: whether it is marked special, or is no token at all, and so leaves no text.
    silent: Box<[bool]>,
    /// The tokens' bytes, where decoding is concatenating them.
    pieces: Option<BytePieces>,
}

/// A text that can't be turned into tokens, or the other way round.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tokenizer refuses it: {0}")]
pub struct TokenizerError(String);

impl Tokenizer {
    /// Reads tokenizer.json; its ids must be below `vocab_size`.
    pub(super) fn load(files: &ModelFiles, vocab_size: usize) -> Result<Self, ModelError> {
        let fail = |problem| ModelError::Tokenizer { file: files.path_of(TOKENIZER), problem };
        let tokenizer =
            Self::from_json(&files.read(TOKENIZER)?).map_err(|TokenizerError(problem)| fail(problem))?;
        let list_len = tokenizer.list_len();
        if list_len == 0 {
            return Err(fail("it has no tokens".to_owned()));
        }
        if list_len > vocab_size {
            let last = list_len as TokenId - 1;
            return Err(fail(format!(
                "token {last} ({:?}) has no row in the embedding; `vocab_size` is {vocab_size}",
                tokenizer.token(last).unwrap_or_default()
            )));
        }
        Ok(tokenizer)
    }

    /// Reads the contents of a tokenizer.json.
    ///
    /// # Errors
    /// It is not one, or asks for something that is not built in.
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerError> {
        let mut wrapped = tokenizers::Tokenizer::from_bytes(json).map_err(|error| {
            TokenizerError(format!("cannot be read as a tokenizer of the `tokenizers` library: {error}"))
        })?;
        // Left over from training in some files; a prompt is never cut or padded here.
        wrapped.with_padding(None);
        wrapped.with_truncation(None).map_err(|error| TokenizerError(error.to_string()))?;
        let list_len = wrapped.get_vocab(true).into_values().max().map_or(0, |last| last as usize + 1);
        let added = wrapped.get_added_vocabulary();
        let silent = (0..list_len as TokenId)
            .map(|id| wrapped.id_to_token(id).is_none_or(|token| added.is_special_token(&token)))
            .collect();
        let pieces = BytePieces::of(&wrapped, list_len);
        Ok(Self { inner: Arc::new(Inner { wrapped, list_len, silent, pieces }) })
    }

    /// The tokens of `text`. With `add_special_tokens`, those that tokenizer.json adds to
    /// every text (most often a first token): right for a bare prompt, wrong for a rendered
    /// chat, whose template writes them. Special tokens written out in the text are
    /// recognised either way.
    ///
    /// # Errors
    /// The text holds something the tokenizer has no token for.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<TokenId>, TokenizerError> {
        let encoding = self.inner.wrapped.encode_fast(text, add_special_tokens);
        encoding
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| TokenizerError(error.to_string()))
    }

    /// The text of `tokens`; ids that are no tokens leave nothing. Bytes that are not UTF-8
    /// become U+FFFD.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn decode(&self, tokens: &[TokenId], skip_special_tokens: bool) -> Result<String, TokenizerError> {
        let text = self.inner.wrapped.decode(tokens, skip_special_tokens);
        text.map_err(|error| TokenizerError(error.to_string()))
    }

    /// A decoder for one output stream.
    pub fn stream_decoder(&self, skip_special_tokens: bool) -> StreamDecoder {
        StreamDecoder::new(self.clone(), skip_special_tokens)
    }

    /// One past the highest token id. At most the model's `vocab_size`, which often is
    /// rounded up.
    pub fn list_len(&self) -> usize {
        self.inner.list_len
    }

    /// The token's string in the vocabulary's own spelling, such as `Ġthe`.
    pub fn token(&self, id: TokenId) -> Option<String> {
        self.inner.wrapped.id_to_token(id)
    }

    /// The id of a token's string.
    pub fn token_id(&self, token: &str) -> Option<TokenId> {
        self.inner.wrapped.token_to_id(token)
    }

    /// Whether `id` leaves no text when special tokens are skipped: it is special, or no token.
    pub fn is_silent(&self, id: TokenId) -> bool {
        self.inner.silent.get(id as usize).copied().unwrap_or(true)
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens)", self.list_len())
    }
}
