//! A running mean that starts as the plain mean and then forgets.

/// The mean of what was added: of all of it at first, then exponentially weighted.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunningMean {
    value: f64,
    count: u32,
}

impl RunningMean {
    /// A mean that starts from a guess, which counts as `count` observations.
    pub fn guess(value: f64, count: u32) -> RunningMean {
        RunningMean { value, count }
    }

    /// Adds an observation to a mean that remembers about `memory` of them.
    pub fn add(&mut self, value: f64, memory: f64) {
        self.count = self.count.saturating_add(1);
        self.value += (value - self.value) / f64::from(self.count).min(memory);
    }

    /// The mean; `None` before anything was added.
    pub fn get(&self) -> Option<f64> {
        (self.count > 0).then_some(self.value)
    }

    /// Observations so far, the guess included.
    pub fn count(&self) -> u32 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_plain_mean_until_its_memory_is_full_and_then_forgets() {
        let mut mean = RunningMean::default();
        assert_eq!(mean.get(), None);
        [2.0, 4.0, 6.0].into_iter().for_each(|value| mean.add(value, 4.0));
        assert_eq!((mean.get(), mean.count()), (Some(4.0), 3));
        (0..100).for_each(|_| mean.add(10.0, 4.0));
        assert!((mean.get().unwrap() - 10.0).abs() < 1e-6);
    }

    #[test]
    fn a_guess_counts_as_so_many_observations() {
        let mut mean = RunningMean::guess(64.0, 3);
        mean.add(0.0, 100.0);
        assert_eq!(mean.get(), Some(48.0));
    }
}
