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

    /// A mask of these bits, in the layout described above; bits past the vocabulary are cleared, and
    /// words that are missing are zero.
    pub fn from_words(vocab_size: u32, words: &[u32]) -> TokenMask {
        let mut mask = TokenMask::none(vocab_size);
        mask.words.iter_mut().zip(words).for_each(|(word, &given)| *word = given);
        let used = vocab_size as usize % WORD_BITS;
        if let Some(last) = mask.words.last_mut().filter(|_| used > 0) {
            *last &= (1 << used) - 1;
        }
        mask
    }

    /// The tokens that both masks allow.
    ///
    /// # Panics
    /// If the vocabularies differ.
    #[must_use]
    pub fn and(&self, other: &TokenMask) -> TokenMask {
        self.combined(other, |a, b| a & b)
    }

    /// The tokens that either mask allows.
    ///
    /// # Panics
    /// If the vocabularies differ.
    #[must_use]
    pub fn or(&self, other: &TokenMask) -> TokenMask {
        self.combined(other, |a, b| a | b)
    }

    fn combined(&self, other: &TokenMask, combine: impl Fn(u32, u32) -> u32) -> TokenMask {
        assert_eq!(self.vocab_size, other.vocab_size, "masks of one vocabulary");
        let words = self.words.iter().zip(&other.words).map(|(&a, &b)| combine(a, b)).collect();
        TokenMask { vocab_size: self.vocab_size, words }
    }

    /// Whether no token is allowed.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
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
    /// Where an output stands; only asked for outputs whose every token was allowed after those
    /// before it.
    fn state(&self, output: &[TokenId]) -> Box<dyn ConstraintState>;

    /// The tokens that may follow `output`; see [`ConstraintState::mask`].
    fn mask(&self, output: &[TokenId]) -> Option<Arc<TokenMask>> {
        self.state(output).mask()
    }
}

/// Where an output stands under a [`TokenConstraint`]. It goes on token by token, so that the drafts
/// of a step do not cost the length of the output each.
pub trait ConstraintState: Send + Debug {
    /// The tokens that may come next, over the target's vocabulary; `None` if any may.
    ///
    /// A mask that allows no token fails the request: a constraint whose end is reached must allow a
    /// token that ends the output.
    fn mask(&mut self) -> Option<Arc<TokenMask>>;

    /// Goes on by a token that the mask allows.
    fn advance(&mut self, token: TokenId);

    /// The same state, to go on by another token.
    fn fork(&self) -> Box<dyn ConstraintState>;

    /// The tokens that must come next, as far as they are known without a model. May be shorter than
    /// what is in fact determined; only a hint, which the masks confirm.
    fn forced(&mut self) -> Vec<TokenId> {
        Vec::new()
    }
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
    fn given_words_keep_no_bit_past_the_vocabulary_and_missing_ones_are_zero() {
        let mask = TokenMask::from_words(35, &[1, u32::MAX, 7]);
        assert_eq!(mask.allowed().collect::<Vec<_>>(), [0, 32, 33, 34]);
        assert_eq!(mask.words().len(), 2);
        assert_eq!(TokenMask::from_words(64, &[2, u32::MAX]).allowed().count(), 33);
        assert_eq!(TokenMask::from_words(64, &[2]).allowed().collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn what_both_masks_allow_may_be_nothing() {
        let even = TokenMask::from_fn(40, |token| token % 2 == 0);
        let late = TokenMask::from_fn(40, |token| token > 35);
        assert_eq!(even.and(&late).allowed().collect::<Vec<_>>(), [36, 38]);
        assert_eq!(even.or(&late).allowed().count(), 20 + 2);
        assert!(!even.and(&late).is_empty());
        assert!(even.and(&TokenMask::from_fn(40, |token| token % 2 == 1)).is_empty());
    }

    #[test]
    #[should_panic(expected = "token 5 of a vocabulary of 5")]
    fn a_token_outside_the_vocabulary_can_not_be_allowed() {
        TokenMask::none(5).allow(5);
    }
}
