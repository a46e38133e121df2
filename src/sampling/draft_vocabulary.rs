//! Drafters whose vocabulary is a part of the target's.

use crate::protocol::TokenId;

/// Which token of the target each draft token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DraftVocabulary {
    /// The target's token and the draft token, ascending.
    pairs: Vec<(TokenId, u32)>,
    /// Tokens of the target.
    vocab_size: usize,
}

impl DraftVocabulary {
    /// Draft token `i` stands for `to_target[i]`, each another one and below `vocab_size`.
    ///
    /// # Panics
    /// If a token is outside of the target's vocabulary.
    pub fn new(to_target: &[TokenId], vocab_size: usize) -> DraftVocabulary {
        let mut pairs: Vec<(TokenId, u32)> = to_target.iter().copied().zip(0..).collect();
        pairs.sort_unstable();
        assert!(pairs.last().is_none_or(|&(token, _)| (token as usize) < vocab_size));
        DraftVocabulary { pairs, vocab_size }
    }

    /// The target's tokens that have a draft token, ascending, with it.
    pub(super) fn ascending(&self) -> &[(TokenId, u32)] {
        &self.pairs
    }

    /// Writes the logits of the draft tokens to `spread`, at the target's ids; zeros elsewhere.
    pub fn spread(&self, logits: &[f32], spread: &mut Vec<f32>) {
        spread.clear();
        spread.resize(self.vocab_size, 0.0);
        for &(token, draft) in &self.pairs {
            spread[token as usize] = logits[draft as usize];
        }
    }
}
