//! The Gumbel noise shared by target and draft.
//!
//! Bit-exact specification for every implementation:
//! 1. Token `v` at absolute position `t` under `seed` takes word `v mod 4` of the Philox
//!    block with counter `(v / 4, t, 0, 0)` and key `(seed mod 2^32, seed / 2^32)`. The third
//!    counter word separates uses ([`TOKEN_DOMAIN`]). A thread that handles four
//!    consecutive tokens computes one block.
//! 2. w = min((float(word >> 1) + 0.5) · 2^-31, 1 - 2^-24), the conversion rounded to
//!    nearest: uniform in (0, 1) and never 0 or 1; fine-grained near 0.
//! 3. E = -ln(1 - w), a standard exponential; G = -ln(E), a standard Gumbel, by
//!    [`float`](super::float). Large G come from small w, where w has all its 24 bits:
//!    the tail that decides the argmax over a large vocabulary is exact to 2^-32.
//!
//! So G is in [-2.82, 22.19]; it truncates the tails of a true Gumbel by a probability of 2^-24
//! below and 2^-32 above.

use crate::protocol::TokenId;

use super::float::{ln, minus_ln_one_minus};
use super::philox::philox4x32_10_lanes;

/// Third counter word of the noise for sampling tokens.
pub const TOKEN_DOMAIN: u32 = 0;

/// Slightly more than ln 2, so that [`gumbel_bound`] survives every rounding.
const LN_2_ABOVE: f32 = 0.6932;
/// Largest value of w.
const W_MAX: f32 = 1.0 - 1.0 / 16_777_216.0;

/// The noise of one position: a function from tokens to Gumbel variates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noise {
    /// The request's seed.
    pub seed: u64,
    /// Absolute position of the token to be sampled.
    pub position: u32,
}

impl Noise {
    /// The Philox blocks `first` to `first + N - 1`: `[v % 4][v / 4 - first]` is token v's word.
    #[inline]
    pub fn blocks<const N: usize>(self, first: u32) -> [[u32; N]; 4] {
        let block = std::array::from_fn(|n| first.wrapping_add(n as u32));
        let counters = [block, [self.position; N], [TOKEN_DOMAIN; N], [0; N]];
        philox4x32_10_lanes(counters, [self.seed as u32, (self.seed >> 32) as u32])
    }

    /// Returns the random word of one token.
    #[inline]
    pub fn word(self, token: TokenId) -> u32 {
        self.blocks::<1>(token / 4)[(token % 4) as usize][0]
    }

    /// G(seed, position, token).
    #[inline]
    pub fn gumbel(self, token: TokenId) -> f32 {
        gumbel(self.word(token))
    }
}

/// Step 2 of the specification: a uniform variate in (0, 1).
#[inline]
fn uniform(word: u32) -> f32 {
    // The shifted word fits an i32, which every target converts in one instruction.
    let w = ((word >> 1) as i32 as f32 + 0.5) * (1.0 / 2_147_483_648.0);
    if w < W_MAX { w } else { W_MAX }
}

/// Steps 2 and 3 of the specification: the variate of a random word.
#[inline]
pub fn gumbel(word: u32) -> f32 {
    -ln(minus_ln_one_minus(uniform(word)))
}

/// A cheap upper bound of [`gumbel`] of the same word: E > w ≥ 2^e, where e is w's
/// exponent, so G < -e · ln 2. Lets a search skip nearly all logarithms.
#[inline]
pub fn gumbel_bound(word: u32) -> f32 {
    let exponent = (uniform(word).to_bits() >> 23) as i32 - 127;
    -(exponent as f32) * LN_2_ABOVE
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLES: usize = 200_000;

    fn sample() -> Vec<f64> {
        (0..SAMPLES as u32)
            .map(|i| f64::from(Noise { seed: 0x1234_5678_9abc_def0, position: i % 97 }.gumbel(i / 97)))
            .collect()
    }

    /// Kolmogorov-Smirnov; 2.23 is the 1e-4 quantile of √n · D.
    #[test]
    fn noise_is_gumbel_distributed() {
        let mut values = sample();
        values.sort_by(f64::total_cmp);
        let n = values.len() as f64;
        let d = values.iter().enumerate().fold(0f64, |d, (i, g)| {
            let cdf = (-(-g).exp()).exp();
            d.max((cdf - i as f64 / n).abs()).max(((i + 1) as f64 / n - cdf).abs())
        });
        assert!(d * n.sqrt() < 2.23, "D·√n = {}", d * n.sqrt());
    }

    #[test]
    fn noise_of_neighbours_is_uncorrelated() {
        let at = |position, token| f64::from(Noise { seed: 9, position }.gumbel(token)) - 0.577_215_664_9;
        let n = 100_000u32;
        let correlation = |other: &dyn Fn(u32) -> f64| {
            (0..n).map(|i| at(i % 313, i / 313) * other(i)).sum::<f64>() / f64::from(n) / 1.644_934
        };
        let bound = 3.9 / f64::from(n).sqrt();
        assert!(correlation(&|i| at(i % 313, i / 313 + 1)).abs() < bound, "next token");
        assert!(correlation(&|i| at(i % 313 + 1, i / 313)).abs() < bound, "next position");
        let reseeded =
            |i: u32| f64::from(Noise { seed: 10, position: i % 313 }.gumbel(i / 313)) - 0.577_215_664_9;
        assert!(correlation(&reseeded).abs() < bound, "next seed");
    }

    #[test]
    fn the_extreme_words_give_finite_noise() {
        assert!((gumbel(0) - 32.0 * std::f32::consts::LN_2).abs() < 1e-5, "{}", gumbel(0));
        assert!((gumbel(u32::MAX) + 2.811_87).abs() < 1e-3, "{}", gumbel(u32::MAX));
        assert_eq!(gumbel(0), gumbel(1));
    }

    #[test]
    fn noise_agrees_with_double_precision() {
        for i in 0..300_000u32 {
            let word = i.wrapping_mul(0x9E37_79B9) >> (i % 30);
            let exact = -(-(-f64::from(uniform(word))).ln_1p()).ln();
            assert!((f64::from(gumbel(word)) - exact).abs() < 2e-6, "word {word:#x}");
        }
    }

    #[test]
    fn the_bound_is_never_below_the_noise() {
        for shift in 0..32 {
            for near in -40i64..=40 {
                let word = ((1i64 << shift) + near).clamp(0, i64::from(u32::MAX)) as u32;
                assert!(gumbel_bound(word) >= gumbel(word), "word {word:#x}");
            }
        }
        for i in 0..300_000u32 {
            let word = i.wrapping_mul(0x9E37_79B9);
            assert!(gumbel_bound(word) >= gumbel(word), "word {word:#x}");
        }
    }

    /// Pins the bits as a reference for other implementations.
    #[test]
    fn the_bits_are_those_of_the_specification() {
        let noise = Noise { seed: 0x0123_4567_89ab_cdef, position: 1000 };
        let bits = [0, 1, 2, 3, 4, 4095, 151_935].map(|token| noise.gumbel(token).to_bits());
        let expected =
            [0x3d86_2b6c, 0xbdc2_6617, 0x3ec5_ed46, 0x3ec2_97b5, 0x3f5c_0e72, 0xbf48_b726, 0xbe6c_80b7];
        assert_eq!(bits, expected);
    }
}
