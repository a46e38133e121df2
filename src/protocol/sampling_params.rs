//! A request's sampling parameters.

use super::TokenId;

/// Parameters of sampling the next token from the logits.
///
/// Applied in this order, as in the OpenAI and Hugging Face conventions:
/// repetition penalty, presence and frequency penalty, bias, temperature,
/// top-k, top-p, min-p, noise.
#[derive(Clone, Debug, PartialEq)]
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
        }
    }

    /// Whether logits depend on earlier tokens other than through the model, by penalties.
    pub fn needs_history(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}
