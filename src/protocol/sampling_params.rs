//! A request's sampling parameters.

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::{TokenConstraint, TokenId};

/// Accepted range of a temperature; 0 is greedy.
pub const TEMPERATURE_BOUNDS: RangeInclusive<f64> = 0.0..=2.0;
/// Accepted range of `top_p`; 1 disables it.
pub const TOP_P_BOUNDS: RangeInclusive<f64> = 1e-6..=1.0;
/// Accepted range of `min_p`; 0 disables it.
pub const MIN_P_BOUNDS: RangeInclusive<f64> = 0.0..=1.0;
/// Accepted range of `top_k`; 0, -1 and any value of at least the vocabulary size disable it.
pub const TOP_K_BOUNDS: RangeInclusive<i64> = -1..=i32::MAX as i64;
/// Accepted range of a repetition penalty; 1 disables it.
pub const REPETITION_PENALTY_BOUNDS: RangeInclusive<f64> = 0.01..=10.0;

/// Parameters of sampling the next token from the logits.
///
/// Applied in this order, as in the OpenAI and Hugging Face conventions:
/// repetition penalty, presence and frequency penalty, bias, constraint, temperature,
/// top-k, top-p, min-p, noise.
#[derive(Clone, Debug)]
pub struct SamplingParams {
    /// 0 is greedy: the largest logit, lowest id on a tie. Otherwise logits are divided by it.
    pub temperature: f32,
    /// Keep the `top_k` most probable tokens; 0: all.
    pub top_k: u32,
    /// Keep the smallest set of most probable tokens whose mass reaches `top_p`; 1: all.
    pub top_p: f32,
    /// Keep tokens at least `min_p` times as probable as the best; 0: all.
    pub min_p: f32,
    /// Seed of the noise. The same seed and prompt yield the same output.
    pub seed: u64,
    /// Logits of tokens seen in prompt or output are divided (if positive) or
    /// multiplied (if negative) by it; 1: off.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of each token in the output so far.
    pub presence_penalty: f32,
    /// Subtracted from a token's logit once for each of its occurrences in the output.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens; ascending ids, each once.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Which tokens may follow which output; `None`: any. It is one of the parameters because
    /// these reach the rows of every step already, shared and never copied.
    pub constraint: Option<Arc<dyn TokenConstraint>>,
}

impl SamplingParams {
    /// Greedy sampling without penalties or bias.
    pub fn greedy() -> SamplingParams {
        SamplingParams {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            constraint: None,
        }
    }

    /// Whether the choice depends on earlier tokens other than through the model: by penalties or
    /// a constraint.
    pub fn needs_history(&self) -> bool {
        self.has_penalties() || self.constraint.is_some()
    }

    /// Whether a penalty is on.
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

/// Two constraints are equal iff they are the same object.
impl PartialEq for SamplingParams {
    fn eq(&self, other: &SamplingParams) -> bool {
        let same_constraint = match (&self.constraint, &other.constraint) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        let SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            seed,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias,
            constraint: _,
        } = other;
        same_constraint
            && self.temperature == *temperature
            && self.top_k == *top_k
            && self.top_p == *top_p
            && self.min_p == *min_p
            && self.seed == *seed
            && self.repetition_penalty == *repetition_penalty
            && self.presence_penalty == *presence_penalty
            && self.frequency_penalty == *frequency_penalty
            && self.logit_bias == *logit_bias
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{ConstraintState, TokenMask};

    #[derive(Debug)]
    struct Anything;

    impl TokenConstraint for Anything {
        fn state(&self, _: &[TokenId]) -> Box<dyn ConstraintState> {
            Box::new(Anything)
        }
    }

    impl ConstraintState for Anything {
        fn mask(&mut self) -> Option<Arc<TokenMask>> {
            None
        }

        fn advance(&mut self, _: TokenId) {}

        fn fork(&self) -> Box<dyn ConstraintState> {
            Box::new(Anything)
        }
    }

    #[test]
    fn parameters_with_different_constraints_differ() {
        let with = |constraint| SamplingParams { constraint, ..SamplingParams::greedy() };
        let constraint: Arc<dyn TokenConstraint> = Arc::new(Anything);
        let constrained = with(Some(constraint.clone()));
        assert_eq!(constrained, with(Some(constraint)));
        assert_ne!(constrained, with(Some(Arc::new(Anything))));
        assert_ne!(constrained, with(None));
        assert_eq!(with(None), SamplingParams::greedy());
        assert_ne!(SamplingParams { top_k: 3, ..constrained.clone() }, constrained);
    }

    #[test]
    fn a_constraint_needs_the_history_as_penalties_do() {
        let plain = SamplingParams::greedy();
        assert!(!plain.needs_history());
        let constrained = SamplingParams { constraint: Some(Arc::new(Anything)), ..plain.clone() };
        assert!(constrained.needs_history() && !constrained.has_penalties());
        let penalised = SamplingParams { presence_penalty: 0.5, ..plain };
        assert!(penalised.needs_history() && penalised.has_penalties());
    }
}
