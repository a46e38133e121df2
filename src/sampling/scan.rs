//! Passes over a row of logits, written to vectorise.

use crate::protocol::TokenId;

/// Accumulator lanes: several vector registers on any target.
const LANES: usize = 16;

/// A row of scores: logits, each times `scale`.
#[derive(Clone, Copy)]
pub(super) struct Scores<'a> {
    /// One logit per vocabulary entry.
    pub logits: &'a [f32],
    /// Inverse temperature.
    pub scale: f32,
}

impl Scores<'_> {
    /// The score of one token.
    #[inline]
    pub fn at(&self, token: TokenId) -> f32 {
        self.logits[token as usize] * self.scale
    }
}

/// The largest score; `None` if the row is empty or holds a NaN or infinite score.
pub(super) fn finite_max(scores: Scores) -> Option<f32> {
    let mut max = [f32::NEG_INFINITY; LANES];
    // x * 0 is 0 where x is finite, else NaN, and a NaN stays in the sum.
    let mut flaw = [0f32; LANES];
    let chunks = scores.logits.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for lane in 0..LANES {
            let score = chunk[lane] * scores.scale;
            max[lane] = if score > max[lane] { score } else { max[lane] };
            flaw[lane] += score * 0.0;
        }
    }
    for (lane, logit) in rest.iter().enumerate() {
        let score = logit * scores.scale;
        max[lane] = if score > max[lane] { score } else { max[lane] };
        flaw[lane] += score * 0.0;
    }
    let finite = !scores.logits.is_empty() && flaw.iter().all(|&flaw| flaw == 0.0);
    finite.then(|| max.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b)))
}

/// The lowest token id with this score.
pub(super) fn first_with(scores: Scores, score: f32) -> Option<TokenId> {
    let tile = scores.logits.chunks(LANES).position(|tile| {
        tile.iter().fold(0u32, |any, logit| any | u32::from(logit * scores.scale == score)) != 0
    })?;
    let first = tile * LANES;
    let inside = scores.logits[first..].iter().position(|logit| logit * scores.scale == score)?;
    Some((first + inside) as TokenId)
}

/// The runner-up: the largest score among all tokens but `best`, lowest id on a tie;
/// `None` if `best` is the only token. All scores must be finite.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn row(logits: &[f32]) -> Scores<'_> {
        Scores { logits, scale: 1.0 }
    }

    /// A row with many ties.
    fn tied_row(len: usize, salt: u32) -> Vec<f32> {
        (0..len as u32).map(|i| (i.wrapping_add(salt).wrapping_mul(0x9E37_79B9) >> 28) as f32 - 8.0).collect()
    }

    #[test]
    fn best_and_second_are_found_at_every_length_with_the_lowest_id_on_ties() {
        for len in 1..100 {
            for salt in 0..20 {
                let logits = tied_row(len, salt);
                let mut ids: Vec<usize> = (0..len).collect();
                ids.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
                let max = finite_max(row(&logits)).expect("finite");
                assert_eq!(max, logits[ids[0]]);
                assert_eq!(first_with(row(&logits), max), Some(ids[0] as u32));
                assert_eq!(best_besides(row(&logits), ids[0] as u32), ids.get(1).map(|&id| id as u32));
            }
        }
    }

    #[test]
    fn one_bad_logit_anywhere_is_detected() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for len in [1, 15, 16, 17, 50] {
                for at in 0..len {
                    let mut logits = tied_row(len, 3);
                    logits[at] = bad;
                    assert_eq!(finite_max(row(&logits)), None, "{bad} at {at} of {len}");
                }
            }
        }
        assert_eq!(finite_max(row(&[])), None);
        assert_eq!(finite_max(Scores { logits: &[1e38, 0.0], scale: 1e6 }), None, "the score overflows");
        assert_eq!(finite_max(row(&[f32::MAX, f32::MIN])), Some(f32::MAX));
    }

    #[test]
    fn zeros_of_both_signs_tie() {
        assert_eq!(first_with(row(&[-1.0, -0.0, 0.0]), 0.0), Some(1));
        assert_eq!(first_with(row(&[-1.0, 0.0, -0.0]), -0.0), Some(1));
    }
}
