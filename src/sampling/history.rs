//! Token counts for the penalties.

use std::collections::HashMap;

use crate::protocol::{SequenceInput, TokenId};

/// How often a token occurs in the prompt and in the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Occurrences {
    /// Occurrences in the prompt.
    pub prompt: u32,
    /// Occurrences in the output.
    pub output: u32,
}

/// Prompt and output so far, with incrementally maintained token counts.
///
/// A token belongs to the prompt iff its index is below the prompt's length, even
/// after [`truncate`](Self::truncate) and [`push`](Self::push).
#[derive(Clone, Debug, Default)]
pub struct TokenHistory {
    prompt_tokens: usize,
    tokens: Vec<TokenId>,
    occurrences: HashMap<TokenId, Occurrences>,
}

impl TokenHistory {
    /// The history of a sequence whose first `prompt_tokens` tokens are the prompt.
    pub fn new(prompt_tokens: u32, tokens: Vec<TokenId>) -> TokenHistory {
        let mut history = TokenHistory { prompt_tokens: prompt_tokens as usize, ..TokenHistory::none() };
        for &token in &tokens {
            history.push(token);
        }
        history
    }

    /// The history of a row's committed tokens; empty without penalties.
    pub fn of(input: &SequenceInput) -> TokenHistory {
        match &input.history {
            Some(history) if input.sampling.has_penalties() => {
                TokenHistory::new(history.prompt_tokens, history.tokens.clone())
            }
            _ => TokenHistory::none(),
        }
    }

    /// An empty history, for parameters without penalties
    /// ([`SamplingParams::has_penalties`](crate::protocol::SamplingParams::has_penalties)).
    pub fn none() -> TokenHistory {
        TokenHistory::default()
    }

    /// Appends a token.
    pub fn push(&mut self, token: TokenId) {
        let in_prompt = self.tokens.len() < self.prompt_tokens;
        let seen = self.occurrences.entry(token).or_default();
        *(if in_prompt { &mut seen.prompt } else { &mut seen.output }) += 1;
        self.tokens.push(token);
    }

    /// Drops all but the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        while self.tokens.len() > len {
            let Some(token) = self.tokens.pop() else { return };
            let in_prompt = self.tokens.len() < self.prompt_tokens;
            if let Some(seen) = self.occurrences.get_mut(&token) {
                *(if in_prompt { &mut seen.prompt } else { &mut seen.output }) -= 1;
                if *seen == Occurrences::default() {
                    self.occurrences.remove(&token);
                }
            }
        }
    }

    /// Prompt and output, in order.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// Each distinct token with its counts, in no particular order.
    pub fn occurrences(&self) -> impl Iterator<Item = (TokenId, Occurrences)> + '_ {
        self.occurrences.iter().map(|(&token, &seen)| (token, seen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(history: &TokenHistory) -> Vec<(TokenId, u32, u32)> {
        let mut all: Vec<_> = history.occurrences().map(|(t, seen)| (t, seen.prompt, seen.output)).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn prompt_and_output_are_counted_apart() {
        let history = TokenHistory::new(3, vec![7, 7, 8, 7, 9, 9]);
        assert_eq!(sorted(&history), [(7, 2, 1), (8, 1, 0), (9, 0, 2)]);
    }

    #[test]
    fn pushing_and_truncating_restores_the_counts() {
        let mut history = TokenHistory::new(2, vec![1, 2, 3]);
        let before = sorted(&history);
        for token in [3, 4, 1, 4] {
            history.push(token);
        }
        history.truncate(3);
        assert_eq!(sorted(&history), before);
        assert_eq!(history.tokens(), [1, 2, 3]);
        history.truncate(99);
        assert_eq!(history.tokens(), [1, 2, 3]);
    }

    #[test]
    fn truncating_into_the_prompt_keeps_the_prompts_length() {
        let mut history = TokenHistory::new(2, vec![1, 2, 3]);
        history.truncate(1);
        history.push(5);
        history.push(6);
        assert_eq!(sorted(&history), [(1, 1, 0), (5, 1, 0), (6, 0, 1)]);
        history.truncate(0);
        assert_eq!(sorted(&history), []);
    }
}
