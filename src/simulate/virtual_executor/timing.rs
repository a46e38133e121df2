//! What a call really takes: the profile's cost model, off by a known error.

use crate::random::Draw;
use crate::timing::cost_model::{CostModel, LatencyModel, Work};

/// Stream of the jitter.
const JITTER_STREAM: u32 = 0x11;

/// How the machine differs from its profile. Factors multiply what the profile says.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct TimeError {
    /// On the target's decode and verification terms.
    pub target_factor: f64,
    /// On the target's prefill terms.
    pub prefill_factor: f64,
    /// On all draft terms.
    pub draft_factor: f64,
    /// On the host's time per step.
    pub host_factor: f64,
    /// Standard deviation of the logarithm of each call's time: log-normal with mean 1.
    pub jitter: f64,
}

impl TimeError {
    /// The machine is exactly as profiled.
    pub const NONE: TimeError = TimeError {
        target_factor: 1.0,
        prefill_factor: 1.0,
        draft_factor: 1.0,
        host_factor: 1.0,
        jitter: 0.0,
    };

    /// Every term is off by the same factor.
    pub fn all(factor: f64) -> TimeError {
        TimeError {
            target_factor: factor,
            prefill_factor: factor,
            draft_factor: factor,
            host_factor: factor,
            jitter: 0.0,
        }
    }
}

/// Tells times, one call after the other.
#[derive(Clone, Debug)]
pub(super) struct Timer {
    cost: CostModel,
    error: TimeError,
    seed: u64,
    calls: u64,
}

impl Timer {
    pub fn new(cost: CostModel, error: TimeError, seed: u64) -> Timer {
        Timer { cost, error, seed, calls: 0 }
    }

    /// Microseconds of a pass of the target.
    pub fn target_us(&mut self, work: &Work) -> f64 {
        let error = self.error;
        let micros = pass_us(&self.cost.target, work, error.target_factor, error.prefill_factor);
        micros * self.jitter()
    }

    /// Microseconds of a pass of the draft model; 0 without one.
    pub fn draft_us(&mut self, work: &Work) -> f64 {
        let factor = self.error.draft_factor;
        let micros = self.cost.draft.as_ref().map_or(0.0, |draft| pass_us(draft, work, factor, factor));
        micros * self.jitter()
    }

    /// Microseconds that a drafting round takes beside its calls; 0 without a draft model.
    pub fn draft_round_us(&self) -> f64 {
        self.cost.draft.as_ref().map_or(0.0, |draft| draft.terms().round_us) * self.error.draft_factor
    }

    /// Microseconds in which a draft head reads the hidden states of `tokens` more tokens than draft.
    pub fn states_us(&self, tokens: u64) -> f64 {
        self.cost.draft.as_ref().map_or(0.0, |draft| draft.states_us(tokens)) * self.error.draft_factor
    }

    /// Microseconds that the host adds to a step.
    pub fn host_us(&mut self) -> f64 {
        self.cost.host_us * self.error.host_factor * self.jitter()
    }

    fn jitter(&mut self) -> f64 {
        let sd = self.error.jitter;
        if sd == 0.0 {
            return 1.0;
        }
        self.calls += 1;
        (sd * Draw::new(self.seed, JITTER_STREAM, self.calls, 0).normal() - sd * sd / 2.0).exp()
    }
}

fn pass_us(model: &LatencyModel, work: &Work, decode_factor: f64, prefill_factor: f64) -> f64 {
    if work.rows == 0 && work.prefill_tokens == 0 {
        return 0.0;
    }
    let prefill_us = model.prefill_us(work.rows, work.prefill_tokens, work.prefill_attended_tokens);
    model.decode_us(work) * decode_factor + prefill_us * prefill_factor
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timing::profile::tests::gpu_like;

    const WORK: Work = Work {
        rows: 8,
        context_tokens: 4000,
        attended_tokens: 9000,
        prefill_tokens: 100,
        prefill_attended_tokens: 5050,
    };

    #[test]
    fn without_error_the_profile_is_the_truth() {
        let cost = gpu_like().cost_model().unwrap();
        let mut timer = Timer::new(cost.clone(), TimeError::NONE, 1);
        assert_eq!(timer.target_us(&WORK), cost.target.micros(&WORK));
        assert_eq!(timer.draft_us(&WORK), cost.draft.unwrap().micros(&WORK));
        assert_eq!(timer.host_us(), cost.host_us);
        assert_eq!(timer.target_us(&Work::default()), 0.0);
    }

    #[test]
    fn each_factor_multiplies_its_own_terms() {
        let cost = gpu_like().cost_model().unwrap();
        let error = TimeError { target_factor: 1.4, prefill_factor: 2.0, ..TimeError::NONE };
        let mut timer = Timer::new(cost.clone(), error, 1);
        let prefill = cost.target.prefill_us(WORK.rows, WORK.prefill_tokens, WORK.prefill_attended_tokens);
        let expected = 1.4 * cost.target.decode_us(&WORK) + 2.0 * prefill;
        assert!((timer.target_us(&WORK) - expected).abs() < 1e-6);
        assert_eq!(timer.host_us(), cost.host_us);
    }

    #[test]
    fn jitter_keeps_the_mean_and_repeats_by_seed() {
        let cost = gpu_like().cost_model().unwrap();
        let error = TimeError { jitter: 0.1, ..TimeError::NONE };
        let times = |seed| -> Vec<f64> {
            let mut timer = Timer::new(cost.clone(), error, seed);
            (0..4000).map(|_| timer.target_us(&WORK)).collect()
        };
        let (one, again, other) = (times(1), times(1), times(2));
        assert_eq!(one, again);
        assert_ne!(one, other);
        let mean = one.iter().sum::<f64>() / one.len() as f64;
        assert!((mean / cost.target.micros(&WORK) - 1.0).abs() < 0.01, "{mean}");
    }
}
