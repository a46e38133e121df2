//! Choosing one token from a row of logits.

use crate::protocol::{Proposal, SamplingParams, TokenId};

use super::TokenHistory;
use super::distribution::{
    Filters, Ranked, WEIGHT_ONE, adjust_logits, adjusts_logits, inverse_temperature, total_mass, weight,
};
use super::filter::{keep, mass_of};
use super::noise::Noise;
use super::race::{race_all, race_some};
use super::scan::{Scores, best_besides, finite_max, first_with};

/// The token for one position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// The token; 0 and without meaning if not `finite`.
    pub token: TokenId,
    /// False when there are no logits, or one of them is NaN or infinite, before or
    /// after the request's parameters were applied.
    pub finite: bool,
}

/// Chooses tokens, for target and draft alike, with scratch memory that is reused.
///
/// The token at position t is `argmax_v [s(v) + G(seed, t, v)]` over the kept tokens,
/// lowest id on a tie, where s are the scores of the processed distribution
/// ([`distribution`](super::distribution)) and G is Gumbel noise
/// ([`noise`](super::noise)). By the Gumbel-max theorem this is an exact sample of
/// that distribution; scores differ from log-probabilities by a constant, which the
/// argmax does not see.
#[derive(Clone, Debug, Default)]
pub struct Sampler {
    adjusted: Vec<f32>,
    kept: Vec<Ranked>,
}

impl Sampler {
    /// With empty scratch memory.
    pub fn new() -> Sampler {
        Sampler::default()
    }

    /// The token to stand at absolute `position`. `history` holds the tokens before it
    /// (read only where [`SamplingParams::needs_history`]).
    pub fn choose(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        position: u32,
        history: &TokenHistory,
    ) -> Choice {
        let scores = scores(&mut self.adjusted, logits, params, history);
        let Some(max) = finite_max(scores) else { return Choice::default() };
        if is_greedy(params) {
            return first_with(scores, max).map_or(Choice::default(), |token| Choice { token, finite: true });
        }
        let noise = Noise { seed: params.seed, position };
        let podium = match Filters::of(params, logits.len()) {
            None => race_all(scores, noise),
            Some(filters) => {
                keep(scores, max, filters, &mut self.kept);
                race_some(self.kept.iter().map(|r| (r.token(), r.score())), noise)
            }
        };
        Choice { token: podium.first(), finite: true }
    }

    /// The draft's proposal for absolute `position`: the token that
    /// [`choose`](Self::choose) gives on the draft's logits, under the same noise.
    ///
    /// Where only one token is kept, it is its own runner-up, and its probability and
    /// margin are 1.
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
        let (podium, second_weight, mass) = match Filters::of(params, logits.len()) {
            None => (race_all(scores, noise), second_weight, total_mass(scores, max)),
            Some(filters) => {
                keep(scores, max, filters, &mut self.kept);
                let podium = race_some(self.kept.iter().map(|r| (r.token(), r.score())), noise);
                let second_weight = if self.kept.len() > 1 { second_weight } else { 0 };
                (podium, second_weight, mass_of(&self.kept, max))
            }
        };
        let token_weight = weight(scores.at(podium.first()), max);
        proposal([podium.first(), podium.second()], token_weight, second_weight, mass)
    }
}

fn is_greedy(params: &SamplingParams) -> bool {
    params.temperature <= 0.0 || params.temperature.is_nan()
}

/// Steps 1 to 4 of the processed distribution; at temperature 0 the temperature is 1.
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

/// From weights to probabilities.
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
