//! Gumbel-max: the tokens with the largest score plus noise.

use crate::protocol::TokenId;

use super::noise::{Noise, gumbel, gumbel_bound};
use super::scan::Scores;

/// Tokens per tile of [`gumbel_top2`]; a multiple of 4, since a Philox block covers 4 tokens.
const TILE: usize = 64;
/// Philox blocks computed at once, for SIMD.
const PHILOX_LANES: usize = 2;

/// A token and its perturbed score.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Entry {
    score: f32,
    token: TokenId,
}

impl Entry {
    /// Ranks below every real entry.
    const NONE: Entry = Entry { score: f32::NEG_INFINITY, token: TokenId::MAX };

    /// Larger scores rank first; ties go to the lower id.
    fn beats(self, other: Entry) -> bool {
        self.score > other.score || (self.score == other.score && self.token < other.token)
    }
}

/// The two tokens with the largest perturbed scores.
#[derive(Clone, Copy, Debug)]
pub(super) struct Top2 {
    first: Entry,
    second: Entry,
}

impl Top2 {
    /// The argmax. At least one token must have been offered.
    pub fn first(&self) -> TokenId {
        self.first.token
    }

    /// The runner-up; equals [`first`](Self::first) if only one token was offered.
    pub fn second(&self) -> TokenId {
        if self.second == Entry::NONE { self.first.token } else { self.second.token }
    }

    fn empty() -> Top2 {
        Top2 { first: Entry::NONE, second: Entry::NONE }
    }

    /// Offers a token with its unperturbed score and random word. The logarithms of the
    /// noise are computed only if the bound could beat the runner-up: rounding is monotone,
    /// so `score + bound >= score + noise` holds for the rounded sums as well.
    fn offer(&mut self, token: TokenId, score: f32, word: u32) {
        if score + gumbel_bound(word) < self.second.score {
            return;
        }
        let entry = Entry { score: score + gumbel(word), token };
        if entry.beats(self.first) {
            self.second = self.first;
            self.first = entry;
        } else if entry.beats(self.second) {
            self.second = entry;
        }
    }
}

/// The top 2 of the whole vocabulary.
pub(super) fn gumbel_top2(scores: Scores, noise: Noise) -> Top2 {
    let mut top = Top2::empty();
    let tiles = scores.logits.chunks_exact(TILE);
    let (first_of_rest, rest) = (scores.logits.len() - tiles.remainder().len(), tiles.remainder());
    for (t, tile) in tiles.enumerate() {
        let first = (t * TILE) as u32;
        let words = tile_words(noise, first / 4);
        let contends = tile.iter().zip(&words).fold(0u32, |any, (logit, &word)| {
            any | u32::from(logit * scores.scale + gumbel_bound(word) >= top.second.score)
        });
        if contends != 0 {
            for (i, (logit, &word)) in tile.iter().zip(&words).enumerate() {
                top.offer(first + i as u32, logit * scores.scale, word);
            }
        }
    }
    for (i, logit) in rest.iter().enumerate() {
        let token = (first_of_rest + i) as u32;
        top.offer(token, logit * scores.scale, noise.word(token));
    }
    top
}

/// The random words of `TILE` tokens, starting at Philox block `block`.
#[inline]
fn tile_words(noise: Noise, block: u32) -> [u32; TILE] {
    let mut words = [0; TILE];
    for (p, part) in words.chunks_exact_mut(4 * PHILOX_LANES).enumerate() {
        let lanes = noise.blocks::<PHILOX_LANES>(block + (p * PHILOX_LANES) as u32);
        for n in 0..PHILOX_LANES {
            for w in 0..4 {
                part[4 * n + w] = lanes[w][n];
            }
        }
    }
    words
}

/// The top 2 of the given tokens with their scores, in any order.
pub(super) fn gumbel_top2_among(candidates: impl Iterator<Item = (TokenId, f32)>, noise: Noise) -> Top2 {
    let mut top = Top2::empty();
    for (token, score) in candidates {
        top.offer(token, score, noise.word(token));
    }
    top
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: perturb every score, then sort.
    fn ranking(scores: Scores, noise: Noise) -> Vec<TokenId> {
        let score = |token: TokenId| scores.at(token) + noise.gumbel(token);
        let mut ids: Vec<TokenId> = (0..scores.logits.len() as u32).collect();
        ids.sort_by(|&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
        ids
    }

    fn row(len: usize, spread: f32, position: u32) -> Vec<f32> {
        (0..len as u32).map(|token| spread * Noise { seed: 77, position }.gumbel(token)).collect()
    }

    #[test]
    fn skipping_logarithms_never_changes_the_first_two() {
        for (len, spread) in [(2, 1.0), (63, 0.0), (64, 2.0), (65, 1.0), (500, 0.0), (1000, 3.0), (777, 10.0)]
        {
            for position in 0..60 {
                let logits = row(len, spread, position);
                let (scores, noise) = (Scores { logits: &logits, scale: 1.25 }, Noise { seed: 5, position });
                let expected = ranking(scores, noise);
                let top = gumbel_top2(scores, noise);
                assert_eq!([top.first(), top.second()], expected[..2]);
                let backwards = (0..len as u32).rev().map(|token| (token, scores.at(token)));
                let top = gumbel_top2_among(backwards, noise);
                assert_eq!([top.first(), top.second()], expected[..2]);
            }
        }
    }

    #[test]
    fn ties_go_to_the_lower_id_in_any_order() {
        let entry = |token| (token, 1e30); // so large that the noise is rounded away
        for order in [[3, 1, 2], [1, 2, 3], [2, 3, 1]] {
            let top = gumbel_top2_among(order.into_iter().map(entry), Noise { seed: 0, position: 0 });
            assert_eq!([top.first(), top.second()], [1, 2]);
        }
        let top = gumbel_top2(Scores { logits: &[1e30; 200], scale: 1.0 }, Noise { seed: 0, position: 0 });
        assert_eq!([top.first(), top.second()], [0, 1]);
    }

    #[test]
    fn a_lone_candidate_is_its_own_runner_up() {
        let top = gumbel_top2_among([(9, 0.5)].into_iter(), Noise { seed: 0, position: 0 });
        assert_eq!([top.first(), top.second()], [9, 9]);
    }
}
