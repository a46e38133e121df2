//! Sampling one token from a row of logits.

use crate::protocol::{Proposal, SamplingParams, TokenId, TokenMask};

use super::distribution::{
    Filters, Ranked, WEIGHT_ONE, adjust_logits, adjusts_logits, inverse_temperature, total_mass, weight,
};
use super::filter::{keep, mass_of};
use super::gumbel::{Top2, gumbel_top2, gumbel_top2_among};
use super::noise::Noise;
use super::scan::{Scores, best_besides, finite_max, first_with};
use super::{DraftVocabulary, TokenHistory};

/// The sampled token of one position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SampledToken {
    /// The token id; 0 and meaningless unless `finite`.
    pub token: TokenId,
    /// False if there are no logits, if no token is allowed, or if the logit of an allowed token
    /// is NaN or infinite before or after the request's parameters are applied.
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
///
/// Under a mask only the allowed tokens exist. They keep their noise, which belongs to the token
/// id, so a draft that agrees with the target without a mask is likely to agree under one.
#[derive(Clone, Debug, Default)]
pub struct Sampler {
    adjusted: Vec<f32>,
    /// Logits of a draft vocabulary, at the target's ids.
    spread: Vec<f32>,
    /// Ids of the allowed tokens, ascending.
    allowed: Vec<TokenId>,
    kept: Vec<Ranked>,
}

impl Sampler {
    /// Creates a sampler with empty scratch memory.
    pub fn new() -> Sampler {
        Sampler::default()
    }

    /// Samples the token at absolute `position` from `logits` (one per vocabulary entry).
    /// `history` holds the tokens before it and is read only if
    /// [`SamplingParams::has_penalties`].
    pub fn sample(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        position: u32,
        history: &TokenHistory,
    ) -> SampledToken {
        self.sample_allowed(logits, None, params, position, history)
    }

    /// [`sample`](Self::sample) among the tokens that `mask` allows; `None` allows all.
    pub fn sample_allowed(
        &mut self,
        logits: &[f32],
        mask: Option<&TokenMask>,
        params: &SamplingParams,
        position: u32,
        history: &TokenHistory,
    ) -> SampledToken {
        let Sampler { adjusted, allowed, kept, .. } = self;
        let candidates = candidates(adjusted, allowed, logits, mask, params, history);
        let scores = candidates.scores;
        let Some(max) = finite_max(scores) else { return SampledToken::default() };
        let token = if is_greedy(params) {
            let Some(best) = first_with(scores, max) else { return SampledToken::default() };
            candidates.token(best)
        } else {
            let noise = Noise { seed: params.seed, position };
            match Filters::of(params, scores.logits.len()) {
                None => candidates.race(noise).first(),
                Some(filters) => {
                    keep(scores, max, filters, kept);
                    candidates.race_kept(kept, noise).first()
                }
            }
        };
        SampledToken { token, finite: true }
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
        self.propose_allowed(logits, None, params, position, history)
    }

    /// [`propose`](Self::propose) among the tokens that `mask` allows; `None` allows all. The
    /// probabilities are those among the allowed tokens.
    pub fn propose_allowed(
        &mut self,
        logits: &[f32],
        mask: Option<&TokenMask>,
        params: &SamplingParams,
        position: u32,
        history: &TokenHistory,
    ) -> Proposal {
        let Sampler { adjusted, allowed, kept, .. } = self;
        propose_from(candidates(adjusted, allowed, logits, mask, params, history), params, position, kept)
    }

    /// [`propose_allowed`](Self::propose_allowed) for a draft with a vocabulary of its own: `logits`
    /// has one for each draft token, everything else is of the target's tokens. Tokens without a
    /// draft token do not exist, as if a mask forbade them.
    pub fn propose_mapped(
        &mut self,
        logits: &[f32],
        vocabulary: &DraftVocabulary,
        mask: Option<&TokenMask>,
        params: &SamplingParams,
        position: u32,
        history: &TokenHistory,
    ) -> Proposal {
        let Sampler { adjusted, spread, allowed, kept } = self;
        let logits = if adjusts_logits(params) {
            vocabulary.spread(logits, spread);
            adjust_logits(spread, params, history);
            Mapped::Spread(spread)
        } else {
            Mapped::Draft(logits)
        };
        allowed.clear();
        adjusted.clear();
        for &(token, draft) in vocabulary.ascending() {
            if mask.is_none_or(|mask| mask.allows(token)) {
                allowed.push(token);
                adjusted.push(logits.of(token, draft));
            }
        }
        let scores = Scores { logits: adjusted, scale: scale(params) };
        propose_from(Candidates { scores, ids: Some(allowed) }, params, position, kept)
    }
}

/// Where the logit of a draft token is.
#[derive(Clone, Copy)]
enum Mapped<'a> {
    /// At its draft id.
    Draft(&'a [f32]),
    /// At its target id.
    Spread(&'a [f32]),
}

impl Mapped<'_> {
    fn of(self, token: TokenId, draft: u32) -> f32 {
        match self {
            Mapped::Draft(logits) => logits[draft as usize],
            Mapped::Spread(logits) => logits[token as usize],
        }
    }
}

/// The proposal among the candidates, with `kept` as scratch memory.
fn propose_from(
    candidates: Candidates<'_>,
    params: &SamplingParams,
    position: u32,
    kept: &mut Vec<Ranked>,
) -> Proposal {
    let scores = candidates.scores;
    let Some(max) = finite_max(scores) else { return Proposal::default() };
    let Some(best) = first_with(scores, max) else { return Proposal::default() };
    let second = best_besides(scores, best);
    let second_weight = second.map_or(0, |index| weight(scores.at(index), max));
    if is_greedy(params) {
        let mass = total_mass(scores, max);
        let tokens = [best, second.unwrap_or(best)].map(|index| candidates.token(index));
        return proposal(tokens, weight(max, max), second_weight, mass);
    }
    let noise = Noise { seed: params.seed, position };
    let (top, second_weight, mass) = match Filters::of(params, scores.logits.len()) {
        None => (candidates.race(noise), second_weight, total_mass(scores, max)),
        Some(filters) => {
            keep(scores, max, filters, kept);
            let second_weight = if kept.len() > 1 { second_weight } else { 0 };
            (candidates.race_kept(kept, noise), second_weight, mass_of(kept, max))
        }
    };
    let token_weight = weight(candidates.score_of(top.first()), max);
    proposal([top.first(), top.second()], token_weight, second_weight, mass)
}

/// The tokens that may be sampled, with their scores.
#[derive(Clone, Copy)]
struct Candidates<'a> {
    /// One per candidate, by ascending token id.
    scores: Scores<'a>,
    /// The candidates' token ids; `None`: the whole vocabulary, so that an index is an id.
    ids: Option<&'a [TokenId]>,
}

impl Candidates<'_> {
    /// The token id of a candidate.
    fn token(&self, index: u32) -> TokenId {
        self.ids.map_or(index, |ids| ids[index as usize])
    }

    /// The score of a token that is a candidate.
    fn score_of(&self, token: TokenId) -> f32 {
        let index = self.ids.map_or(token, |ids| ids.partition_point(|&id| id < token) as u32);
        self.scores.at(index)
    }

    /// The race of all candidates.
    fn race(&self, noise: Noise) -> Top2 {
        match self.ids {
            None => gumbel_top2(self.scores, noise),
            Some(ids) => {
                let entries = (0..).zip(ids).map(|(index, &id)| (id, self.scores.at(index)));
                gumbel_top2_among(entries, noise)
            }
        }
    }

    /// The race of the candidates that the filters kept.
    fn race_kept(&self, kept: &[Ranked], noise: Noise) -> Top2 {
        gumbel_top2_among(kept.iter().map(|r| (self.token(r.token()), r.score())), noise)
    }
}

fn is_greedy(params: &SamplingParams) -> bool {
    params.temperature <= 0.0 || params.temperature.is_nan()
}

/// The factor on the logits. Greedy requests use temperature 1 here.
fn scale(params: &SamplingParams) -> f32 {
    if is_greedy(params) { 1.0 } else { inverse_temperature(params.temperature) }
}

/// Steps 1 to 4 of the processed distribution.
fn candidates<'a>(
    adjusted: &'a mut Vec<f32>,
    allowed: &'a mut Vec<TokenId>,
    logits: &'a [f32],
    mask: Option<&TokenMask>,
    params: &SamplingParams,
    history: &TokenHistory,
) -> Candidates<'a> {
    let scale = scale(params);
    if mask.is_none() && !adjusts_logits(params) {
        return Candidates { scores: Scores { logits, scale }, ids: None };
    }
    adjusted.clear();
    adjusted.extend_from_slice(logits);
    adjust_logits(adjusted, params, history);
    let ids = mask.map(|mask| retain_allowed(adjusted, mask, allowed));
    Candidates { scores: Scores { logits: adjusted, scale }, ids }
}

/// Drops the logits of forbidden tokens; returns the ids of the others.
fn retain_allowed<'a>(
    logits: &mut Vec<f32>,
    mask: &TokenMask,
    allowed: &'a mut Vec<TokenId>,
) -> &'a [TokenId] {
    allowed.clear();
    allowed.extend(mask.allowed().take_while(|&token| (token as usize) < logits.len()));
    for (index, &token) in allowed.iter().enumerate() {
        logits[index] = logits[token as usize]; // ids ascend: index <= token
    }
    logits.truncate(allowed.len());
    allowed
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
