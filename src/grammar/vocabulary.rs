//! A tokenizer as the grammar parser sees it.

use std::sync::Arc;

use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenizerEnv};

use crate::protocol::TokenId;

/// Encodes a text; `None` where the tokenizer fails.
pub type Encode = Box<dyn Fn(&str) -> Option<Vec<TokenId>> + Send + Sync>;

/// The tokens of a model.
pub struct Vocabulary {
    /// The bytes of each token of the target's vocabulary; empty for special tokens, and for ids that
    /// are no token. A grammar never takes these for text.
    pub bytes: Vec<Vec<u8>>,
    /// Tokens that end an output; at least one.
    pub end_tokens: Vec<TokenId>,
    /// Encodes a text in the way that the model knows. With it, text that a grammar forces is forced
    /// in these tokens; without it, the model may write such text in any tokens.
    pub encode: Option<Encode>,
}

impl Vocabulary {
    /// The parser's view of it.
    pub(super) fn into_env(self) -> TokEnv {
        let Vocabulary { mut bytes, end_tokens, encode } = self;
        // the byte marks special tokens there and is part of no UTF-8 text
        for token in bytes.iter_mut().filter(|token| token.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER)) {
            token.clear();
        }
        end_tokens.iter().for_each(|&token| bytes[token as usize].clear());
        let info = TokRxInfo::new(bytes.len() as u32, end_tokens[0]);
        let trie = TokTrie::from(&info, &bytes).with_eos_tokens(&end_tokens);
        Arc::new(Environment { trie, encode })
    }
}

struct Environment {
    trie: TokTrie,
    encode: Option<Encode>,
}

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// A tokenizer may read special tokens in the text or normalize it: what does not spell the text
    /// is not used.
    fn tokenize_bytes(&self, text: &[u8]) -> Vec<TokenId> {
        let encode = |text| self.encode.as_ref()?(text);
        let tokens = std::str::from_utf8(text).ok().and_then(encode);
        let spells = |tokens: &Vec<TokenId>| self.trie.decode_raw(tokens) == text;
        tokens.filter(spells).unwrap_or_else(|| self.trie.greedy_tokenize(text))
    }

    fn tokenize_is_canonical(&self) -> bool {
        self.encode.is_some()
    }
}
