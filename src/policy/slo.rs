//! Whether a latency objective can be met at all: on an idle machine, without speculation.

use crate::protocol::Slo;
use crate::timing::cost_model::prefill_attended;

/// What prefilling costs: the terms of the time model, corrections included.
pub trait PrefillCost {
    /// Microseconds that `tokens` prefill tokens attending to `attended_tokens` add to a step over
    /// one row.
    fn prefill_us(&self, tokens: u32, attended_tokens: u64) -> f64;
}

impl PrefillCost for crate::timing::correction::TimeModel {
    fn prefill_us(&self, tokens: u32, attended_tokens: u64) -> f64 {
        crate::timing::correction::TimeModel::prefill_us(self, 1, tokens, attended_tokens)
    }
}

/// An objective that can't be met even on an idle machine, with the best achievable value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Infeasible {
    /// `ttft` or `tpot`.
    pub objective: &'static str,
    /// The requested objective, in microseconds.
    pub asked_us: f64,
    /// The time with plain decoding on an idle machine, in microseconds.
    pub best_us: f64,
}

impl std::fmt::Display for Infeasible {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (asked, best) = (self.asked_us * 1e-3, self.best_us * 1e-3);
        write!(
            f,
            "the {} objective of {asked:.3} ms can't be met: {best:.3} ms is the best here",
            self.objective
        )
    }
}

/// Checks objectives against plain decoding on an idle machine: `step_us` for one row,
/// and the prompt prefilled in chunks of `chunk_tokens`.
///
/// # Errors
/// The first objective that can't be met.
pub fn check_feasible(
    slo: &Slo,
    prompt_tokens: u32,
    step_us: f64,
    chunk_tokens: u32,
    cost: &impl PrefillCost,
) -> Result<(), Infeasible> {
    if let Some(tpot) = slo.tpot
        && (tpot.0 as f64) < step_us
    {
        return Err(Infeasible { objective: "tpot", asked_us: tpot.0 as f64, best_us: step_us });
    }
    let Some(ttft) = slo.ttft else { return Ok(()) };
    let best_us = ttft_alone_us(prompt_tokens, step_us, chunk_tokens, cost);
    if (ttft.0 as f64) < best_us {
        return Err(Infeasible { objective: "ttft", asked_us: ttft.0 as f64, best_us });
    }
    Ok(())
}

/// Time to first token of a prompt on an idle machine, in microseconds.
pub fn ttft_alone_us(prompt_tokens: u32, step_us: f64, chunk_tokens: u32, cost: &impl PrefillCost) -> f64 {
    let chunk = chunk_tokens.max(1);
    let mut total = 0.0;
    let mut done = 0;
    while done < prompt_tokens {
        let tokens = chunk.min(prompt_tokens - done);
        total += step_us + cost.prefill_us(tokens, prefill_attended(done, tokens));
        done += tokens;
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Micros;

    /// Ten microseconds a token.
    struct Flat;

    impl PrefillCost for Flat {
        fn prefill_us(&self, tokens: u32, _: u64) -> f64 {
            10.0 * f64::from(tokens)
        }
    }

    #[test]
    fn objectives_beyond_an_empty_machine_are_named_with_the_best_possible() {
        let slo = |ttft: u64, tpot: u64| Slo { ttft: Some(Micros(ttft)), tpot: Some(Micros(tpot)) };
        assert!(check_feasible(&slo(1400, 100), 100, 100.0, 25, &Flat).is_ok());
        let tpot = check_feasible(&slo(1400, 99), 100, 100.0, 25, &Flat).unwrap_err();
        assert_eq!((tpot.objective, tpot.best_us), ("tpot", 100.0));
        let ttft = check_feasible(&slo(1399, 100), 100, 100.0, 25, &Flat).unwrap_err();
        assert_eq!((ttft.objective, ttft.best_us), ("ttft", 1400.0));
        assert!(ttft.to_string().contains("1.399 ms"), "{ttft}");
        assert!(check_feasible(&Slo::default(), 100, 1e9, 25, &Flat).is_ok());
    }
}
