//! Passes over a row of logits, written so that they vectorise.

use crate::request::TokenId;

/// Lanes of the running results; several vector registers on any machine.
const LANES: usize = 16;

/// A row of scores: logits, each times `scale`.
#[derive(Clone, Copy)]
pub(super) struct Scores<'a> {
    /// One per token.
    pub logits: &'a [f32],
    /// The inverse temperature.
    pub scale: f32,
}

impl Scores<'_> {
    /// The score of one token.
    #[inline]
    pub fn at(&self, token: TokenId) -> f32 {
        self.logits[token as usize] * self.scale
    }
}

/// Whether every score is finite.
pub(super) fn all_finite(scores: Scores) -> bool {
    let bad = |logit: f32| u32::from(!(logit * scores.scale).is_finite());
    let mut found = [0u32; LANES];
    let chunks = scores.logits.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (found, &logit) in found.iter_mut().zip(chunk) {
            *found |= bad(logit);
        }
    }
    found.iter().all(|&found| found == 0) && rest.iter().all(|&logit| bad(logit) == 0)
}

/// The token with the largest score, the lowest id on a tie; `None` for an empty row.
/// Scores that are not finite have no defined place.
pub(super) fn argmax(scores: Scores) -> Option<TokenId> {
    argmax_in(scores, 0, scores.logits.len())
}

/// The token with the largest score other than `best`, the lowest id on a tie.
pub(super) fn argmax_besides(scores: Scores, best: TokenId) -> Option<TokenId> {
    let before = argmax_in(scores, 0, best as usize);
    let behind = argmax_in(scores, best as usize + 1, scores.logits.len());
    match (before, behind) {
        (Some(a), Some(b)) => Some(if scores.at(b) > scores.at(a) { b } else { a }),
        (a, b) => a.or(b),
    }
}

/// [`argmax`] over the tokens `from..to`.
fn argmax_in(scores: Scores, from: usize, to: usize) -> Option<TokenId> {
    let logits = &scores.logits[from..to];
    let mut best = [f32::NEG_INFINITY; LANES];
    let mut round_of_best = [0u32; LANES];
    let chunks = logits.chunks_exact(LANES);
    let rest = chunks.remainder();
    for (round, chunk) in chunks.enumerate() {
        for lane in 0..LANES {
            let score = chunk[lane] * scores.scale;
            let better = score > best[lane];
            best[lane] = if better { score } else { best[lane] };
            round_of_best[lane] = if better { round as u32 } else { round_of_best[lane] };
        }
    }
    let by_lane = (0..LANES.min(logits.len() - rest.len()))
        .map(|lane| (best[lane], round_of_best[lane] as usize * LANES + lane));
    let tail = rest.iter().enumerate().map(|(i, l)| (l * scores.scale, logits.len() - rest.len() + i));
    let winner = by_lane.chain(tail).reduce(|a, b| {
        let b_wins = b.0 > a.0 || (b.0 == a.0 && b.1 < a.1);
        if b_wins { b } else { a }
    })?;
    Some((from + winner.1) as TokenId)
}
