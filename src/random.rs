//! Random variates: a sequential generator ([`SplitMix64`]) and, for simulation, one without
//! state.
//!
//! A [`Draw`] is a pure function of a seed, a stream and two counters (Philox 4x32-10), so that a
//! value drawn for a request or a position does not depend on when it is drawn, nor on what else
//! was drawn.
//!
//! May import: sampling.
#![forbid(unsafe_code)]

mod splitmix;

pub use splitmix::SplitMix64;

use crate::sampling::philox::philox4x32_10;

/// One block of randomness: 128 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw([u32; 4]);

impl Draw {
    /// The block of `stream` at the counters `major` and `minor`.
    pub fn new(seed: u64, stream: u32, major: u64, minor: u32) -> Draw {
        let counter = [minor, stream, major as u32, (major >> 32) as u32];
        Draw(philox4x32_10(counter, [seed as u32, (seed >> 32) as u32]))
    }

    /// Word `index` of 4 as a number in (0, 1).
    pub fn uniform(self, index: usize) -> f64 {
        (f64::from(self.0[index]) + 0.5) / 4_294_967_296.0
    }

    /// A standard normal variate from words 0 and 1 (Box and Muller).
    pub fn normal(self) -> f64 {
        let radius = (-2.0 * self.uniform(0).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform(1)).cos()
    }
}

/// A gamma variate of the given shape and scale 1, from the blocks of `stream` at `major`
/// (Marsaglia and Tsang, "A simple method for generating gamma variables", 2000).
pub fn gamma(seed: u64, stream: u32, major: u64, shape: f64) -> f64 {
    if shape < 1.0 {
        // rejection never gets as far as the last block
        let boost = Draw::new(seed, stream, major, u32::MAX).uniform(0).powf(1.0 / shape);
        return gamma(seed, stream, major, shape + 1.0) * boost;
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    let mut attempt = 0;
    loop {
        let draw = Draw::new(seed, stream, major, attempt);
        let x = draw.normal();
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && draw.uniform(2).ln() < 0.5 * x * x + d * (1.0 - v + v.ln()) {
            return d * v;
        }
        attempt += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(values: impl Iterator<Item = f64>) -> (f64, f64) {
        let values: Vec<f64> = values.collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / values.len() as f64;
        (mean, variance)
    }

    #[test]
    fn normals_have_mean_zero_and_variance_one() {
        let (mean, variance) = moments((0..20_000).map(|n| Draw::new(7, 1, n, 0).normal()));
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }

    #[test]
    fn gammas_have_the_moments_of_their_shape() {
        for shape in [0.25, 1.0, 4.0] {
            let (mean, variance) = moments((0..20_000).map(|n| gamma(7, 2, n, shape)));
            assert!((mean / shape - 1.0).abs() < 0.05, "{shape}: mean {mean}");
            assert!((variance / shape - 1.0).abs() < 0.12, "{shape}: variance {variance}");
        }
    }

    #[test]
    fn each_of_seed_stream_and_counters_gives_another_block() {
        let base = Draw::new(1, 2, 3, 4);
        assert_eq!(base, Draw::new(1, 2, 3, 4));
        for other in
            [Draw::new(2, 2, 3, 4), Draw::new(1, 3, 3, 4), Draw::new(1, 2, 4, 4), Draw::new(1, 2, 3, 5)]
        {
            assert_ne!(base, other);
        }
    }
}
