//! Gumbel-max: which token has the largest score plus noise.

use crate::protocol::TokenId;

use super::noise::{Noise, gumbel, gumbel_bound};
use super::scan::Scores;

/// Tokens that [`race_all`] looks at together; a multiple of 4, the tokens of a Philox block.
const TILE: usize = 64;
/// Philox blocks computed side by side.
const PHILOX_LANES: usize = 2;

/// A token and its score with noise.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Entry {
    score: f32,
    token: TokenId,
}

impl Entry {
    /// Behind every real entry.
    const NONE: Entry = Entry { score: f32::NEG_INFINITY, token: TokenId::MAX };

    /// The larger score wins, on a tie the lower id.
    fn beats(self, other: Entry) -> bool {
        self.score > other.score || (self.score == other.score && self.token < other.token)
    }
}

/// The first two of a race.
#[derive(Clone, Copy, Debug)]
pub(super) struct Podium {
    first: Entry,
    second: Entry,
}

impl Podium {
    /// The winner; at least one token must have raced.
    pub fn first(&self) -> TokenId {
        self.first.token
    }

    /// The second; the winner again if it raced alone.
    pub fn second(&self) -> TokenId {
        if self.second == Entry::NONE { self.first.token } else { self.second.token }
    }

    fn empty() -> Podium {
        Podium { first: Entry::NONE, second: Entry::NONE }
    }

    /// Lets a token with this score and random word race. The logarithms of its noise
    /// are only computed when the bound leaves it a chance: rounding is monotone, so
    /// `score + bound >= score + noise` holds for the rounded sums as well.
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

/// All tokens race.
pub(super) fn race_all(scores: Scores, noise: Noise) -> Podium {
    let mut podium = Podium::empty();
    let tiles = scores.logits.chunks_exact(TILE);
    let (first_of_rest, rest) = (scores.logits.len() - tiles.remainder().len(), tiles.remainder());
    for (t, tile) in tiles.enumerate() {
        let first = (t * TILE) as u32;
        let words = tile_words(noise, first / 4);
        let hopeful = tile.iter().zip(&words).fold(0u32, |hopeful, (logit, &word)| {
            hopeful | u32::from(logit * scores.scale + gumbel_bound(word) >= podium.second.score)
        });
        if hopeful != 0 {
            for (i, (logit, &word)) in tile.iter().zip(&words).enumerate() {
                podium.offer(first + i as u32, logit * scores.scale, word);
            }
        }
    }
    for (i, logit) in rest.iter().enumerate() {
        let token = (first_of_rest + i) as u32;
        podium.offer(token, logit * scores.scale, noise.word(token));
    }
    podium
}

/// The random words of `TILE` tokens, from Philox block `block` on.
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

/// Only the given tokens race, each with its score, in any order.
pub(super) fn race_some(entrants: impl Iterator<Item = (TokenId, f32)>, noise: Noise) -> Podium {
    let mut podium = Podium::empty();
    for (token, score) in entrants {
        podium.offer(token, score, noise.word(token));
    }
    podium
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the definition: all noise, then sort.
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
                let podium = race_all(scores, noise);
                assert_eq!([podium.first(), podium.second()], expected[..2]);
                let backwards = (0..len as u32).rev().map(|token| (token, scores.at(token)));
                let podium = race_some(backwards, noise);
                assert_eq!([podium.first(), podium.second()], expected[..2]);
            }
        }
    }

    #[test]
    fn ties_go_to_the_lower_id_in_any_order() {
        let entry = |token| (token, 1e30); // so large that the noise is rounded away
        for order in [[3, 1, 2], [1, 2, 3], [2, 3, 1]] {
            let podium = race_some(order.into_iter().map(entry), Noise { seed: 0, position: 0 });
            assert_eq!([podium.first(), podium.second()], [1, 2]);
        }
        let podium = race_all(Scores { logits: &[1e30; 200], scale: 1.0 }, Noise { seed: 0, position: 0 });
        assert_eq!([podium.first(), podium.second()], [0, 1]);
    }

    #[test]
    fn who_races_alone_is_its_own_second() {
        let podium = race_some([(9, 0.5)].into_iter(), Noise { seed: 0, position: 0 });
        assert_eq!([podium.first(), podium.second()], [9, 9]);
    }
}
