//! The processed distribution: logits after penalties, bias, temperature and filters.
//!
//! Order. Each step works on the result of the previous one, in single precision:
//! 1. Repetition penalty, once for each token in prompt or output:
//!    `l < 0 ? l * r : l / r` (as in Hugging Face transformers).
//! 2. For each token in the output: `l = l - presence`, then `l = l - frequency * count`
//!    (as in the OpenAI API).
//! 3. Bias: `l = l + b`. Then the constraint: tokens that the mask forbids get `l = -inf`. They
//!    have no score, no mass and no rank, and are never sampled.
//! 4. Score: `s = l * (1 / max(temperature, TEMPERATURE_MIN))`; temperature 0 stops here
//!    and takes the largest `l`.
//! 5. Filters. Tokens are ranked by score, descending, then by id, ascending; each filter
//!    keeps a prefix of this ranking, so together they keep the shortest one.
//!    - top-k keeps the first k: of tokens that tie at the cut the lowest ids stay.
//!    - top-p keeps the shortest non-empty prefix whose mass is at least
//!      `ceil(p · mass of what top-k keeps)`, the product in double precision.
//!    - min-p keeps the tokens with `s - max(s) >= ln(min_p)`; always the first.
//!
//! Mass is summed in integers ([`weight`]), so the sum does not depend on the order and
//! a parallel reduction cuts at the same token.

use super::TokenHistory;
use super::float::{ROUNDING_SHIFT, exp, ln};
use super::scan::Scores;
use crate::protocol::{SamplingParams, TokenId};

/// Lower temperatures are clamped to this one: scores would overflow, and noise has no effect there.
pub const TEMPERATURE_MIN: f32 = 1e-6;

/// Weight of the most probable token.
pub const WEIGHT_ONE: u32 = 1 << 30;

/// Accumulator lanes of the mass.
const LANES: usize = 8;
/// Most tokens whose half-weights sum to less than 2^32 in every lane.
const SUM_TOKENS: usize = LANES << 15;

/// A token's mass in units of 2^-30 of the most probable token's:
/// `exp(s - max(s)) * 2^30`, rounded to the nearest integer, halves to even
/// (`__float2int_rn` in CUDA).
#[inline]
pub fn weight(score: f32, max_score: f32) -> u32 {
    // Rust's conversion does not vectorise (it saturates); two roundings by addition do:
    // first to a multiple of 2^8, then the exact rest, of at most 2^7 either way.
    let scaled = exp(score - max_score) * 4_194_304.0;
    let high = scaled + ROUNDING_SHIFT;
    let low = (scaled - (high - ROUNDING_SHIFT)) * 256.0 + ROUNDING_SHIFT;
    let integer = |shifted: f32| shifted.to_bits().wrapping_sub(ROUNDING_SHIFT.to_bits());
    (integer(high) << 8).wrapping_add(integer(low))
}

/// Total weight of the vocabulary.
pub(super) fn total_mass(scores: Scores, max_score: f32) -> u64 {
    scores
        .logits
        .chunks(SUM_TOKENS)
        .map(|part| partial_mass(Scores { logits: part, ..scores }, max_score))
        .sum()
}

/// [`total_mass`] of at most [`SUM_TOKENS`] tokens, in 32-bit lanes: the high and low
/// halves of the weights are summed separately, and neither sum can overflow.
fn partial_mass(scores: Scores, max_score: f32) -> u64 {
    let (mut high, mut low) = ([0u32; LANES], [0u32; LANES]);
    let mut add = |lane: usize, logit: f32| {
        let weight = weight(logit * scores.scale, max_score);
        high[lane] += weight >> 16;
        low[lane] += weight & 0xFFFF;
    };
    let chunks = scores.logits.chunks_exact(LANES);
    for (lane, &logit) in chunks.remainder().iter().enumerate() {
        add(lane, logit);
    }
    for chunk in chunks {
        for (lane, &logit) in chunk.iter().enumerate() {
            add(lane, logit);
        }
    }
    let sum = |lanes: [u32; LANES]| lanes.iter().map(|&lane| u64::from(lane)).sum::<u64>();
    (sum(high) << 16) + sum(low)
}

/// Factor from logits to scores.
pub(super) fn inverse_temperature(temperature: f32) -> f32 {
    1.0 / temperature.max(TEMPERATURE_MIN)
}

/// Whether steps 1 to 3 change anything.
pub(super) fn adjusts_logits(params: &SamplingParams) -> bool {
    params.has_penalties() || !params.logit_bias.is_empty()
}

/// Steps 1 to 3, in place. Tokens outside of the vocabulary are ignored.
pub(super) fn adjust_logits(logits: &mut [f32], params: &SamplingParams, history: &TokenHistory) {
    if params.has_penalties() {
        for (token, seen) in history.occurrences() {
            let Some(logit) = logits.get_mut(token as usize) else { continue };
            let r = params.repetition_penalty;
            *logit = if *logit < 0.0 { *logit * r } else { *logit / r };
            if seen.output > 0 {
                *logit -= params.presence_penalty;
                *logit -= params.frequency_penalty * seen.output as f32;
            }
        }
    }
    for &(token, bias) in &params.logit_bias {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit += bias;
        }
    }
}

/// The enabled filters of step 5, at least one, resolved for a vocabulary size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Filters {
    /// Top-k; less than the vocabulary size.
    pub top_k: Option<usize>,
    /// Top-p, below 1.
    pub top_p: Option<f32>,
    /// `ln(min_p)`, at most 0.
    pub min_score: Option<f32>,
}

impl Filters {
    /// The request's filters; `None` if all tokens are kept.
    pub fn of(params: &SamplingParams, vocab_size: usize) -> Option<Filters> {
        let k = params.top_k as usize;
        let filters = Filters {
            top_k: (1..vocab_size).contains(&k).then_some(k),
            top_p: (params.top_p < 1.0).then_some(params.top_p),
            min_score: (params.min_p > 0.0).then(|| ln(params.min_p.clamp(f32::MIN_POSITIVE, 1.0))),
        };
        (filters.top_k.is_some() || filters.top_p.is_some() || filters.min_score.is_some()).then_some(filters)
    }
}

/// A kept token as one integer that sorts by rank.
///
/// High half: the score's bits, mapped so that larger scores come first; low half: the id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ranked(u64);

impl Ranked {
    /// Packs a token with its finite score.
    #[inline]
    pub fn new(score: f32, token: TokenId) -> Ranked {
        // Adding +0 turns -0 into +0, so that the two tie.
        let bits = (score + 0.0).to_bits();
        let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
        Ranked(u64::from(!ascending) << 32 | u64::from(token))
    }

    /// The unpacked score.
    #[inline]
    pub fn score(self) -> f32 {
        let ascending = !((self.0 >> 32) as u32);
        f32::from_bits(if ascending >> 31 == 1 { ascending & !(1 << 31) } else { !ascending })
    }

    /// The unpacked token id.
    #[inline]
    pub fn token(self) -> TokenId {
        self.0 as TokenId
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn penalties_and_bias_apply_in_the_documented_order() {
        let params = SamplingParams {
            repetition_penalty: 2.0,
            presence_penalty: 0.25,
            frequency_penalty: 0.5,
            logit_bias: vec![(1, 10.0), (3, -1.0), (99, 5.0)],
            ..SamplingParams::greedy()
        };
        // Token 0 in the prompt, 1 twice in the output, 2 in both, 77 outside of the vocabulary.
        let history = TokenHistory::new(3, vec![0, 2, 77, 1, 1, 2]);
        let mut logits = [4.0, -3.0, 1.0, 6.0];
        adjust_logits(&mut logits, &params, &history);
        assert_eq!(logits, [2.0, -6.0 - 0.25 - 1.0 + 10.0, 0.5 - 0.25 - 0.5, 5.0]);
    }

    #[test]
    fn presence_and_frequency_do_not_look_at_the_prompt() {
        let params =
            SamplingParams { presence_penalty: 1.0, frequency_penalty: 1.0, ..SamplingParams::greedy() };
        let mut logits = [1.0, 2.0];
        adjust_logits(&mut logits, &params, &TokenHistory::new(2, vec![0, 1]));
        assert_eq!(logits, [1.0, 2.0]);
    }

    #[test]
    fn weights_are_the_rounded_exponentials() {
        assert_eq!(weight(3.0, 3.0), WEIGHT_ONE);
        for i in 0..100_000 {
            let x = -(i as f32) * 3e-4;
            let exact = f64::from(exp(x)) * f64::from(WEIGHT_ONE);
            assert_eq!(f64::from(weight(x, 0.0)), exact.round_ties_even(), "at {x}");
        }
        assert_eq!(weight(-1e30, 1e30), 0);
    }

    #[test]
    fn the_total_mass_is_the_sum_of_the_weights_for_any_length() {
        for len in [1, 7, 8, 9, 100, 3 * SUM_TOKENS + 5] {
            let logits: Vec<f32> = (0..len).map(|i| -((i % 13) as f32) * 0.3).collect();
            let scores = Scores { logits: &logits, scale: 1.5 };
            let expected: u64 = logits.iter().map(|l| u64::from(weight(l * 1.5, 0.0))).sum();
            assert_eq!(total_mass(scores, 0.0), expected);
        }
        let flat = vec![1.0; SUM_TOKENS + 1];
        let mass = total_mass(Scores { logits: &flat, scale: 1.0 }, 1.0);
        assert_eq!(mass, (SUM_TOKENS as u64 + 1) << 30, "the largest sums do not overflow");
    }

    #[test]
    fn ranked_tokens_sort_by_score_then_id_and_give_both_back() {
        let scores = [f32::MAX, 3.5, 1e-40, 0.0, -1e-40, -2.0, f32::MIN];
        for (i, &score) in scores.iter().enumerate() {
            let ranked = Ranked::new(score, 7);
            assert_eq!((ranked.score(), ranked.token()), (score, 7));
            assert!(ranked < Ranked::new(score, 8));
            assert!(scores[i + 1..].iter().all(|&lower| ranked < Ranked::new(lower, 0)));
        }
        assert!(Ranked::new(-0.0, 1) < Ranked::new(0.0, 2), "zeros tie");
    }

    #[test]
    fn filters_that_keep_everything_are_off() {
        let off = SamplingParams { temperature: 1.0, ..SamplingParams::greedy() };
        assert_eq!(Filters::of(&off, 10), None);
        assert_eq!(Filters::of(&SamplingParams { top_k: 10, ..off.clone() }, 10), None);
        assert_eq!(
            Filters::of(&SamplingParams { top_k: 11, top_p: 1.5, min_p: -1.0, ..off.clone() }, 10),
            None
        );
        assert_eq!(
            Filters::of(&SamplingParams { top_p: f32::NAN, min_p: f32::NAN, ..off.clone() }, 10),
            None
        );
        assert!(Filters::of(&SamplingParams { top_k: 9, ..off }, 10).is_some());
    }
}
