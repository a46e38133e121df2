//! Constraints on a request's output: which tokens may come next.

use std::fmt::Debug;
use std::sync::Arc;

use super::TokenId;

/// Bits of one word.
const WORD_BITS: usize = u32::BITS as usize;

/// The tokens that may come next: one bit per vocabulary entry.
///
/// Bit `t % 32` of word `t / 32`, counted from the least significant, is set iff token `t` is
/// allowed. There are `vocab_size.div_ceil(32)` words; bits past the vocabulary are clear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenMask {
    vocab_size: u32,
    words: Vec<u32>,
}

impl TokenMask {
    /// A mask that allows no token of a vocabulary of `vocab_size`.
    pub fn none(vocab_size: u32) -> TokenMask {
        TokenMask { vocab_size, words: vec![0; (vocab_size as usize).div_ceil(WORD_BITS)] }
    }

    /// A mask that allows the tokens for which `allows` holds.
    pub fn from_fn(vocab_size: u32, allows: impl Fn(TokenId) -> bool) -> TokenMask {
        let mut mask = TokenMask::none(vocab_size);
        (0..vocab_size).filter(|&token| allows(token)).for_each(|token| mask.allow(token));
        mask
    }

    /// Allows a token.
    ///
    /// # Panics
    /// If `token` is outside the vocabulary.
    pub fn allow(&mut self, token: TokenId) {
        assert!(token < self.vocab_size, "token {token} of a vocabulary of {}", self.vocab_size);
        self.words[token as usize / WORD_BITS] |= 1 << (token as usize % WORD_BITS);
    }

    /// Whether the token may come next; `false` outside the vocabulary.
    pub fn allows(&self, token: TokenId) -> bool {
        let word = self.words.get(token as usize / WORD_BITS).copied().unwrap_or(0);
        word >> (token as usize % WORD_BITS) & 1 == 1
    }

    /// The allowed tokens, ascending.
    pub fn allowed(&self) -> impl Iterator<Item = TokenId> + '_ {
        self.words.iter().enumerate().flat_map(|(index, &word)| {
            std::iter::successors(Some(word), |rest| Some(rest & rest.wrapping_sub(1)))
                .take_while(|&rest| rest != 0)
                .map(move |rest| (index * WORD_BITS) as TokenId + rest.trailing_zeros())
        })
    }

    /// Tokens in the vocabulary, allowed or not.
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// The bits, in the layout described above.
    pub fn words(&self) -> &[u32] {
        &self.words
    }
}

/// What a request's output must look like, for instance a grammar.
///
/// A pure function of the output: speculative decoding asks for the same output more than once,
/// and for outputs that are later rejected, in any order and from any thread.
pub trait TokenConstraint: Send + Sync + Debug {
    /// The tokens that may follow `output`, over the target's vocabulary; `None` if any may.
    ///
    /// Only asked for outputs whose every token was allowed after those before it. A mask that allows no token ends the request as
    /// logits that are not finite do: a constraint whose end is reached must allow a token that
    /// ends the output.
    fn mask(&self, output: &[TokenId]) -> Option<Arc<TokenMask>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_bit_of_a_32_bit_word() {
        let mut mask = TokenMask::none(70);
        [0, 31, 32, 69].iter().for_each(|&token| mask.allow(token));
        assert_eq!(mask.words(), [1 | 1 << 31, 1, 1 << 5]);
        assert_eq!(mask.allowed().collect::<Vec<_>>(), [0, 31, 32, 69]);
        assert!(mask.allows(69) && !mask.allows(68) && !mask.allows(70) && !mask.allows(1000));
    }

    #[test]
    fn the_allowed_tokens_are_those_of_the_rule() {
        for vocab_size in [0, 1, 32, 33, 100] {
            let mask = TokenMask::from_fn(vocab_size, |token| token % 3 == 1);
            let expected: Vec<TokenId> = (0..vocab_size).filter(|token| token % 3 == 1).collect();
            assert_eq!(mask.allowed().collect::<Vec<_>>(), expected);
            assert_eq!(mask.words().len(), (vocab_size as usize).div_ceil(32));
        }
    }

    #[test]
    #[should_panic(expected = "token 5 of a vocabulary of 5")]
    fn a_token_outside_the_vocabulary_can_not_be_allowed() {
        TokenMask::none(5).allow(5);
    }
}
