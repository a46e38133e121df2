//! Sampling one token from a row of logits.

use crate::protocol::{Proposal, SamplingParams, TokenId};

use super::TokenHistory;
use super::distribution::{
    Filters, Ranked, WEIGHT_ONE, adjust_logits, adjusts_logits, inverse_temperature, total_mass, weight,
};
use super::filter::{keep, mass_of};
use super::gumbel::{gumbel_top2, gumbel_top2_among};
use super::noise::Noise;
use super::scan::{Scores, best_besides, finite_max, first_with};

/// The sampled token of one position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SampledToken {
    /// The token id; 0 and meaningless unless `finite`.
    pub token: TokenId,
    /// False if there are no logits, or if one is NaN or infinite before or after the
    /// request's parameters are applied.
    pub finite: bool,
}

/// Samples tokens for target and draft alike, reusing its scratch memory.
///
/// The token at position t is `argmax_v [s(v) + G(seed, t, v)]` over the kept tokens,
/// lowest id on a tie, where s are the scores of the processed distribution
/// ([`distribution`](super::distribution)) and G is Gumbel noise
/// ([`noise`](super::noise)). By the Gumbel-max theorem this is an exact sample of
/// that distribution: scores differ from log-probabilities by a constant, to which the
/// argmax is invariant.
#[derive(Clone, Debug, Default)]
pub struct Sampler {
    adjusted: Vec<f32>,
    kept: Vec<Ranked>,
}

impl Sampler {
    /// Creates a sampler with empty scratch memory.
    pub fn new() -> Sampler {
        Sampler::default()
    }

    /// Samples the token at absolute `position` from `logits` (one per vocabulary entry).
    /// `history` holds the tokens before it and is read only if
    /// [`SamplingParams::needs_history`].
    pub fn sample(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        position: u32,
        history: &TokenHistory,
    ) -> SampledToken {
        let scores = scores(&mut self.adjusted, logits, params, history);
        let Some(max) = finite_max(scores) else { return SampledToken::default() };
        if is_greedy(params) {
            return first_with(scores, max)
                .map_or(SampledToken::default(), |token| SampledToken { token, finite: true });
        }
        let noise = Noise { seed: params.seed, position };
        let top = match Filters::of(params, logits.len()) {
            None => gumbel_top2(scores, noise),
            Some(filters) => {
                keep(scores, max, filters, &mut self.kept);
                gumbel_top2_among(self.kept.iter().map(|r| (r.token(), r.score())), noise)
            }
        };
        SampledToken { token: top.first(), finite: true }
    }

    /// The draft's proposal for absolute `position`: the token that
    /// [`sample`](Self::sample) returns for the draft's logits, under the same noise.
    ///
    /// A token that is kept alone is its own runner-up and has probability and margin 1.
    pub fn propose(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        position: u32,
        history: &TokenHistory,
    ) -> Proposal {
        let scores = scores(&mut self.adjusted, logits, params, history);
        let Some(max) = finite_max(scores) else { return Proposal::default() };
        let Some(best) = first_with(scores, max) else { return Proposal::default() };
        let second = best_besides(scores, best);
        let second_weight = second.map_or(0, |token| weight(scores.at(token), max));
        if is_greedy(params) {
            let mass = total_mass(scores, max);
            return proposal([best, second.unwrap_or(best)], weight(max, max), second_weight, mass);
        }
        let noise = Noise { seed: params.seed, position };
        let (top, second_weight, mass) = match Filters::of(params, logits.len()) {
            None => (gumbel_top2(scores, noise), second_weight, total_mass(scores, max)),
            Some(filters) => {
                keep(scores, max, filters, &mut self.kept);
                let top = gumbel_top2_among(self.kept.iter().map(|r| (r.token(), r.score())), noise);
                let second_weight = if self.kept.len() > 1 { second_weight } else { 0 };
                (top, second_weight, mass_of(&self.kept, max))
            }
        };
        let token_weight = weight(scores.at(top.first()), max);
        proposal([top.first(), top.second()], token_weight, second_weight, mass)
    }
}

fn is_greedy(params: &SamplingParams) -> bool {
    params.temperature <= 0.0 || params.temperature.is_nan()
}

/// Steps 1 to 4 of the processed distribution. Greedy requests use temperature 1 here.
fn scores<'a>(
    adjusted: &'a mut Vec<f32>,
    logits: &'a [f32],
    params: &SamplingParams,
    history: &TokenHistory,
) -> Scores<'a> {
    let scale = if is_greedy(params) { 1.0 } else { inverse_temperature(params.temperature) };
    if !adjusts_logits(params) {
        return Scores { logits, scale };
    }
    adjusted.clear();
    adjusted.extend_from_slice(logits);
    adjust_logits(adjusted, params, history);
    Scores { logits: adjusted, scale }
}

/// Converts fixed-point weights to probabilities.
fn proposal([token, runner_up]: [TokenId; 2], token_weight: u32, second_weight: u32, mass: u64) -> Proposal {
    let share = |weight: u32| (f64::from(weight) / mass as f64) as f32;
    Proposal {
        token,
        probability: share(token_weight),
        margin: share(WEIGHT_ONE - second_weight),
        runner_up,
        finite: true,
    }
}

#[cfg(test)]
mod tests;
