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

/// The largest score; `None` for an empty row and when a score is NaN or infinite.
pub(super) fn finite_max(scores: Scores) -> Option<f32> {
    let mut max = [f32::NEG_INFINITY; LANES];
    // x - x is 0 where x is finite, else NaN, and a NaN stays in the sum.
    let mut flaw = [0f32; LANES];
    let chunks = scores.logits.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for lane in 0..LANES {
            let score = chunk[lane] * scores.scale;
            max[lane] = if score > max[lane] { score } else { max[lane] };
            flaw[lane] += score - score;
        }
    }
    for (lane, logit) in rest.iter().enumerate() {
        let score = logit * scores.scale;
        max[lane] = if score > max[lane] { score } else { max[lane] };
        flaw[lane] += score - score;
    }
    let finite = !scores.logits.is_empty() && flaw.iter().all(|&flaw| flaw == 0.0);
    finite.then(|| max.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b)))
}

/// The lowest token with this score.
pub(super) fn first_with(scores: Scores, score: f32) -> Option<TokenId> {
    let tile = scores.logits.chunks(LANES).position(|tile| {
        tile.iter().fold(0u32, |any, logit| any | u32::from(logit * scores.scale == score)) != 0
    })?;
    let first = tile * LANES;
    let inside = scores.logits[first..].iter().position(|logit| logit * scores.scale == score)?;
    Some((first + inside) as TokenId)
}

/// The best token other than `best`: largest score, lowest id on a tie; `None` if there
/// is no other. All scores are finite.
pub(super) fn best_besides(scores: Scores, best: TokenId) -> Option<TokenId> {
    let (before, behind) = (&scores.logits[..best as usize], &scores.logits[best as usize + 1..]);
    let find = |logits, first| {
        let part = Scores { logits, ..scores };
        Some(first + first_with(part, finite_max(part)?)?)
    };
    match (find(before, 0), find(behind, best + 1)) {
        (Some(a), Some(b)) => Some(if scores.at(b) > scores.at(a) { b } else { a }),
        (a, b) => a.or(b),
    }
}
