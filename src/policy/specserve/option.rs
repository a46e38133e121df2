//! Which rows draft on: those that may turn out worth verifying.
//!
//! Of the drafts of a call, only the most confident are verified, and how confident a draft is
//! shows only once it is made. So what a row is worth in a call is not its expected survival but
//! what it may be worth beyond the least draft that is verified: with that draft's weighted
//! survival `λ`, `E[max(w·S − λ, 0)]`. `S` is taken as logistic around its forecast, with the
//! spread that was observed, which makes the expectation a softplus.

/// Scale of a logistic distribution over its standard deviation, `√3/π`.
const LOGISTIC_SCALE: f32 = 0.551;
/// Fraction of its cost that a row must be expected to earn. Below 1, because `λ` is the one with
/// all rows in the call: the fewer there are, the more each of them is worth.
const PRICE_SHARE: f32 = 0.5;

/// The forecast of the survival of a row's next draft.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Next {
    pub(super) mean: f32,
    pub(super) spread: f32,
}

/// What a row's next draft is held against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hurdle {
    /// `λ`: weighted survival of the least draft that is planned to be verified.
    pub(super) marginal_value: f32,
    /// What a row in a draft call costs, in weighted tokens.
    pub(super) price: f32,
}

impl Hurdle {
    /// Whether a row's next draft is worth its price.
    pub(super) fn is_cleared_by(&self, weight: f32, next: Next) -> bool {
        self.gain(weight, next) > PRICE_SHARE * self.price
    }

    /// `E[max(w·S − λ, 0)]`.
    fn gain(&self, weight: f32, next: Next) -> f32 {
        let scale = (LOGISTIC_SCALE * weight * next.spread).max(f32::MIN_POSITIVE);
        let ahead = (weight * next.mean - self.marginal_value) / scale;
        // softplus, without overflow for large arguments
        scale * (ahead.max(0.0) + (-ahead.abs()).exp().ln_1p())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gain(mean: f32, spread: f32) -> f32 {
        Hurdle { marginal_value: 0.5, price: 0.0 }.gain(1.0, Next { mean, spread })
    }

    #[test]
    fn what_is_certain_gains_its_lead_over_the_least_verified_draft() {
        assert!((gain(0.8, 0.0) - 0.3).abs() < 1e-6);
        assert_eq!(gain(0.3, 0.0), 0.0);
        assert_eq!(gain(0.0, 0.0), 0.0);
    }

    #[test]
    fn what_is_uncertain_may_gain_though_its_forecast_is_below() {
        assert!(gain(0.4, 0.25) > 0.05);
        assert!(gain(0.4, 0.25) > gain(0.4, 0.1), "more so, the less is known");
        assert!(gain(0.1, 0.05) < 1e-3, "but not what is almost surely below");
    }
}
