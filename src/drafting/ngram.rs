//! Prompt lookup: drafts what followed the last few tokens at their previous occurrence.
//!
//! A pure function of the sequence so far (Saxena, "Prompt Lookup Decoding", 2023). It
//! costs microseconds and no device time, and works well where the output repeats its
//! input: summaries, edits, code. Verification is lossless for any proposal.

use crate::protocol::{Proposal, TokenId};

/// Parameters of prompt lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct NgramOptions {
    /// Shortest suffix of the sequence that must recur, in tokens; at least 1.
    pub match_tokens_min: u32,
    /// Longest suffix that is matched, in tokens; at least `match_tokens_min`.
    pub match_tokens_max: u32,
    /// Search window, in tokens back from the end; bounds the time of a lookup.
    pub lookback_tokens_max: u32,
}

impl Default for NgramOptions {
    fn default() -> NgramOptions {
        NgramOptions { match_tokens_min: 2, match_tokens_max: 5, lookback_tokens_max: 8192 }
    }
}

/// Clears `out` and writes at most `drafts_max` proposals for the continuation of `tokens`.
/// The longest match wins; ties go to the latest. Proposes nothing if no suffix recurs.
///
/// The probability of a proposal only ranks matches by their length m, as `m / (m + 1)`;
/// calibration maps it to an acceptance probability.
pub fn propose(tokens: &[TokenId], drafts_max: u32, options: &NgramOptions, out: &mut Vec<Proposal>) {
    out.clear();
    let lookback = options.lookback_tokens_max as usize;
    let tokens = &tokens[tokens.len().saturating_sub(lookback)..];
    let Some((end, matched)) = best_match(tokens, options) else { return };
    let probability = matched as f32 / (matched + 1) as f32;
    // A match that overlaps the end is periodic: reading past the end continues the period.
    let period = tokens.len() - end;
    let continuation = |place: usize| tokens[end + place % period];
    out.extend((0..drafts_max as usize).map(continuation).map(|token| Proposal {
        token,
        probability,
        margin: probability,
        runner_up: token,
        finite: true,
    }));
}

/// Exclusive end and length of the best earlier occurrence of the sequence's suffix.
fn best_match(tokens: &[TokenId], options: &NgramOptions) -> Option<(usize, usize)> {
    let longest = options.match_tokens_max as usize;
    let mut best: Option<(usize, usize)> = None;
    for end in (1..tokens.len()).rev() {
        let pairs = tokens[..end].iter().rev().zip(tokens.iter().rev());
        let matched = pairs.take(longest).take_while(|(earlier, last)| earlier == last).count();
        if matched >= (options.match_tokens_min as usize).max(1)
            && best.is_none_or(|(_, length)| matched > length)
        {
            best = Some((end, matched));
            if matched == longest {
                break;
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drafts(tokens: &[TokenId], drafts_max: u32) -> Vec<TokenId> {
        let mut out = vec![Proposal::default()];
        propose(tokens, drafts_max, &NgramOptions::default(), &mut out);
        out.iter().map(|proposal| proposal.token).collect()
    }

    #[test]
    fn the_continuation_of_the_last_occurrence_is_proposed() {
        assert_eq!(drafts(&[1, 2, 3, 4, 5, 9, 1, 2], 3), [3, 4, 5]);
    }

    #[test]
    fn a_longer_match_beats_a_later_one_and_the_latest_of_equals_wins() {
        assert_eq!(drafts(&[7, 1, 2, 30, 8, 1, 2, 40, 7, 1, 2], 1), [30]);
        assert_eq!(drafts(&[1, 2, 30, 8, 1, 2, 40, 9, 1, 2], 1), [40]);
    }

    #[test]
    fn a_repetition_is_continued_round_and_round() {
        assert_eq!(drafts(&[5, 1, 2, 3, 1, 2, 3, 1, 2], 7), [3, 1, 2, 3, 1, 2, 3]);
        assert_eq!(drafts(&[4, 4, 4], 3), [4, 4, 4]);
    }

    #[test]
    fn nothing_is_proposed_without_a_recurrence_or_without_room() {
        assert!(drafts(&[], 4).is_empty());
        assert!(drafts(&[1], 4).is_empty());
        assert!(drafts(&[1, 2, 3, 9, 3], 4).is_empty(), "one token is too short a match");
        assert!(drafts(&[1, 2, 3, 1, 2], 0).is_empty());
    }

    #[test]
    fn matches_beyond_the_lookback_are_not_seen() {
        let options = NgramOptions { lookback_tokens_max: 4, ..NgramOptions::default() };
        let mut out = Vec::new();
        propose(&[1, 2, 3, 9, 9, 1, 2], 2, &options, &mut out);
        assert!(out.is_empty());
        propose(&[1, 2, 3, 1, 2], 2, &NgramOptions { lookback_tokens_max: 5, ..options }, &mut out);
        assert_eq!(out.len(), 2);
    }

    #[test]
    fn longer_matches_are_ranked_more_probable() {
        let probability = |tokens: &[TokenId]| {
            let mut out = Vec::new();
            propose(tokens, 1, &NgramOptions::default(), &mut out);
            out[0].probability
        };
        assert!(probability(&[1, 2, 3, 4, 8, 1, 2, 3]) > probability(&[7, 2, 3, 4, 8, 1, 2, 3]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn proposals_are_tokens_of_the_sequence_and_bounded(
            tokens in prop::collection::vec(0u32..4, 0..60), drafts_max in 0u32..20
        ) {
            let proposed = drafts(&tokens, drafts_max);
            prop_assert!(proposed.is_empty() || proposed.len() == drafts_max as usize);
            prop_assert!(proposed.iter().all(|token| tokens.contains(token)));
        }
    }
}
