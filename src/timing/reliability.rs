//! The warm start of the acceptance calibration, as a profile stores it: acceptance rates by bin of
//! draft probability.

use serde::{Deserialize, Serialize};

/// Inner and outer edges of the probability bins; fine near 1, where most drafts are.
pub const EDGES: [f32; BINS + 1] =
    [0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.94, 0.97, 0.99, 0.998, 1.0];
/// Bins of draft probability.
pub const BINS: usize = 17;
/// A warm start for the table, stored in the profile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reliability {
    /// Accepted share per probability bin at temperature 0.
    pub greedy: Vec<f64>,
    /// Accepted share per probability bin at other temperatures.
    pub sampled: Vec<f64>,
    /// Observations that each entry is worth.
    pub strength: f64,
}

impl Default for Reliability {
    /// Between what two pairs of models showed (docs/policy.md, "Survival"), and easily overruled.
    ///
    /// At temperature 0 the target agrees with a draft of probability q more often than q, as its
    /// own choice is the most probable token, too. At other temperatures target and draft sample
    /// under the same noise, so that they agree on improbable tokens as well.
    fn default() -> Reliability {
        let curve = |share: fn(f64) -> f64| (0..BINS).map(|bin| share(CENTRES[bin].into())).collect();
        Reliability {
            greedy: curve(|q| (1.0 - 0.9 * (1.0 - q).powf(1.5)).min(0.99)),
            sampled: curve(|q| 0.3 + 0.65 * q),
            strength: 6.0,
        }
    }
}

impl Reliability {
    /// Whether there is one share in 0..=1 per bin and a positive strength.
    pub fn is_valid(&self) -> bool {
        let shares = |table: &[f64]| table.len() == BINS && table.iter().all(|p| (0.0..=1.0).contains(p));
        shares(&self.greedy) && shares(&self.sampled) && self.strength.is_finite() && self.strength > 0.0
    }
}

/// The bin of a draft probability.
pub fn bin(probability: f32) -> usize {
    // a branch-free count: the branches of a binary search would be mispredicted
    EDGES[1..BINS].iter().map(|&edge| usize::from(edge <= probability)).sum()
}

/// The probability in the middle of each bin.
pub const CENTRES: [f32; BINS] = {
    let mut centres = [0.0; BINS];
    let mut bin = 0;
    while bin < BINS {
        centres[bin] = 0.5 * (EDGES[bin] + EDGES[bin + 1]);
        bin += 1;
    }
    centres
};
