//! Tokenization and detokenization by tokenizer.json.
#![forbid(unsafe_code)]

mod added;
mod byte_fallback;
mod byte_level;
mod spaces;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::ModelError;
use super::error::json_advice;
use super::files::ModelFiles;
use super::tokenizer_config::TokenizerConfig;
use crate::protocol::TokenId;
use byte_fallback::FallbackBytes;
use byte_level::BytePieces;
pub use stream::StreamDecoder;

pub(super) const TOKENIZER: &str = "tokenizer.json";

/// A model's tokenizer. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    wrapped: tokenizers::Tokenizer,
    /// Highest token id plus one.
    list_len: usize,
    /// Per id: whether it decodes to no text, because it is special or not a token.
    silent: Box<[bool]>,
    /// Token bytes of byte-level tokenizers, whose decoding is concatenation.
    pieces: Option<BytePieces>,
    /// Byte tokens of tokenizers with byte fallback.
    fallback: Option<FallbackBytes>,
}

/// Why a text cannot be encoded or tokens cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tokenization failed: {0}")]
pub struct TokenizerError(String);

impl Tokenizer {
    /// Loads tokenizer.json with the tokens that `described` adds; ids must be below `vocab_size`.
    pub(super) fn load(
        files: &ModelFiles,
        vocab_size: usize,
        described: &TokenizerConfig,
    ) -> Result<Self, ModelError> {
        let fail = |problem| ModelError::Tokenizer { file: files.path_of(TOKENIZER), problem };
        let wrapped = wrapped(&files.read(TOKENIZER)?);
        let mut wrapped = wrapped.map_err(|TokenizerError(problem)| fail(problem))?;
        added::add(&mut wrapped, described.added_tokens())
            .map_err(|problem| ModelError::Tokenizer { file: described.file.clone(), problem })?;
        let tokenizer = Self::new(wrapped);
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

    /// Parses the contents of a tokenizer.json.
    ///
    /// # Errors
    /// If it is invalid or requires an unsupported feature.
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerError> {
        wrapped(json).map(Self::new)
    }

    fn new(wrapped: tokenizers::Tokenizer) -> Self {
        let list_len = wrapped.get_vocab(true).into_values().max().map_or(0, |last| last as usize + 1);
        let added = wrapped.get_added_vocabulary();
        let silent = (0..list_len as TokenId)
            .map(|id| wrapped.id_to_token(id).is_none_or(|token| added.is_special_token(&token)))
            .collect();
        let pieces = BytePieces::of(&wrapped, list_len);
        let fallback = FallbackBytes::of(&wrapped, list_len);
        Self { inner: Arc::new(Inner { wrapped, list_len, silent, pieces, fallback }) }
    }

    /// Encodes `text`. `add_special_tokens` adds the tokens that tokenizer.json puts around
    /// every text, usually a beginning-of-text token: right for bare prompts, wrong for
    /// rendered chats, whose template writes them. Special tokens written out in the text are
    /// recognised either way.
    ///
    /// # Errors
    /// If the text contains something that the tokenizer has no token for.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<TokenId>, TokenizerError> {
        let encoding = self.inner.wrapped.encode_fast(text, add_special_tokens);
        encoding
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| TokenizerError(error.to_string()))
    }

    /// Decodes `tokens`; unknown ids decode to nothing, invalid UTF-8 to U+FFFD.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn decode(&self, tokens: &[TokenId], skip_special_tokens: bool) -> Result<String, TokenizerError> {
        let text = self.inner.wrapped.decode(tokens, skip_special_tokens);
        text.map_err(|error| TokenizerError(error.to_string()))
    }

    /// Creates a streaming decoder for one output that stands by itself.
    pub fn stream_decoder(&self, skip_special_tokens: bool) -> StreamDecoder {
        self.stream_decoder_after(&[], skip_special_tokens)
    }

    /// Creates a streaming decoder for an output that continues the text of `prompt`: with
    /// SentencePiece, a first word then keeps the space before it.
    pub fn stream_decoder_after(&self, prompt: &[TokenId], skip_special_tokens: bool) -> StreamDecoder {
        StreamDecoder::new(self.clone(), skip_special_tokens, prompt)
    }

    /// The id of a special token by its text.
    pub fn special_token_id(&self, text: &str) -> Option<TokenId> {
        self.inner.wrapped.get_added_vocabulary().is_special_token(text).then(|| self.token_id(text))?
    }

    /// Highest token id plus one. At most the model's `vocab_size`, which is often padded.
    pub fn list_len(&self) -> usize {
        self.inner.list_len
    }

    /// The token's string as written in the vocabulary, such as `Ġthe`.
    pub fn token(&self, id: TokenId) -> Option<String> {
        self.inner.wrapped.id_to_token(id)
    }

    /// The id of a token string.
    pub fn token_id(&self, token: &str) -> Option<TokenId> {
        self.inner.wrapped.token_to_id(token)
    }

    /// The bytes that each token of a vocabulary of `vocab_size` adds to a text, none for special tokens
    /// and for ids that are no token. `None` if they depend on the tokens beside it.
    pub fn fixed_bytes(&self, vocab_size: usize) -> Option<Vec<Vec<u8>>> {
        let Inner { wrapped, pieces, fallback, .. } = &*self.inner;
        let spaced = spaces::are_marked(wrapped);
        if pieces.is_none() && !spaced {
            return None;
        }
        let bytes = |id| {
            let fallback = fallback.as_ref().and_then(|bytes| bytes.byte(id));
            match (pieces, fallback) {
                _ if self.is_silent(id) => Vec::new(),
                (Some(pieces), _) => pieces.piece(id).to_vec(),
                (None, Some(byte)) => vec![byte],
                (None, None) => spaces::unmarked(&self.token(id).unwrap_or_default()),
            }
        };
        Some((0..vocab_size as TokenId).map(bytes).collect())
    }

    /// Whether text is encoded into tokens that spell exactly that text, wherever it stands.
    pub fn encodes_anywhere(&self) -> bool {
        self.inner.pieces.is_some()
    }

    /// Whether `id` decodes to no text when special tokens are skipped: it is special or not a token.
    pub fn is_silent(&self, id: TokenId) -> bool {
        self.inner.silent.get(id as usize).copied().unwrap_or(true)
    }
}

fn wrapped(json: &[u8]) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let mut wrapped = tokenizers::Tokenizer::from_bytes(json).map_err(|error| {
        let advice = json_advice(&error.to_string());
        TokenizerError(format!("cannot be read as a tokenizer of the `tokenizers` library: {error}{advice}"))
    })?;
    // Some files retain training settings; prompts must not be truncated or padded.
    wrapped.with_padding(None);
    wrapped.with_truncation(None).map_err(|error| TokenizerError(error.to_string()))?;
    Ok(wrapped)
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens)", self.list_len())
    }
}
