//! The expected calibration error of probabilities: how far what was promised lies from what came.

/// Equal bins of probability.
const BINS: usize = 10;
/// Half-life of a sample, in samples that [`CalibrationError::fade`] was told of.
const HALF_LIFE_SAMPLES: f64 = 4096.0;

/// Expected calibration error (ECE; Guo et al. 2017): the mean over ten equal bins of probability of
/// |mean probability − share of events that came|, weighted by how many samples a bin has. Between 0
/// and 1; a share of about 0.01 is noise at the horizon, and more before.
///
/// A sample counts half after 4096 later ones, so that the error is that of about the last 6000
/// (4096 / ln 2), of which 94 % come from the last 16,000.
#[derive(Clone, Debug, Default)]
pub struct CalibrationError {
    bins: [Bin; BINS],
}

/// Decayed sums over the samples of one bin.
#[derive(Clone, Copy, Debug, Default)]
struct Bin {
    seen: f64,
    promised: f64,
    came: f64,
}

impl CalibrationError {
    /// Adds a sample: the probability that was given to an event before it was known, and whether it
    /// came. One that is not a number says nothing and is left out; others are clamped to 0..=1.
    pub fn add(&mut self, probability: f32, came: bool) {
        if probability.is_nan() {
            return;
        }
        let probability = probability.clamp(0.0, 1.0);
        let bin = &mut self.bins[((probability * BINS as f32) as usize).min(BINS - 1)];
        bin.seen += 1.0;
        bin.promised += f64::from(probability);
        bin.came += f64::from(u8::from(came));
    }

    /// Lets all samples so far count less, by what `samples` new ones cost them.
    pub fn fade(&mut self, samples: u32) {
        let factor = (-f64::from(samples) / HALF_LIFE_SAMPLES).exp2();
        for bin in &mut self.bins {
            bin.seen *= factor;
            bin.promised *= factor;
            bin.came *= factor;
        }
    }

    /// Adds samples and lets them cost earlier ones what they must.
    pub fn observe(&mut self, samples: impl IntoIterator<Item = (f32, bool)>) {
        let mut count = 0;
        for (probability, came) in samples {
            self.add(probability, came);
            count += 1;
        }
        self.fade(count);
    }

    /// The error; `None` before the first sample.
    pub fn get(&self) -> Option<f64> {
        let seen: f64 = self.bins.iter().map(|bin| bin.seen).sum();
        let gap: f64 = self.bins.iter().map(|bin| (bin.promised - bin.came).abs()).sum();
        (seen > 0.0).then(|| gap / seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `count` samples of this probability, of which so many of a hundred come.
    fn add(error: &mut CalibrationError, probability: f32, percent: u32, count: u32) {
        // 37 and 100 share no factor: every hundred samples take each residue once
        (0..count).for_each(|sample| error.observe([(probability, sample * 37 % 100 < percent)]));
    }

    #[track_caller]
    fn assert_error(error: &CalibrationError, expected: f64, tolerance: f64) {
        let seen = error.get().expect("samples");
        assert!((seen - expected).abs() < tolerance, "{seen} is not {expected}");
    }

    #[test]
    fn nothing_is_known_before_the_first_sample() {
        let mut error = CalibrationError::default();
        assert_eq!(error.get(), None);
        error.add(f32::NAN, true);
        assert_eq!(error.get(), None);
    }

    #[test]
    fn probabilities_that_come_true_as_often_as_they_say_have_no_error() {
        let mut error = CalibrationError::default();
        for percent in [5, 15, 35, 55, 75, 95] {
            add(&mut error, percent as f32 / 100.0, percent, 1000);
        }
        assert_error(&error, 0.0, 0.005);
    }

    #[test]
    fn a_constant_overconfidence_is_the_error() {
        let mut error = CalibrationError::default();
        for percent in [15, 35, 55, 75] {
            add(&mut error, percent as f32 / 100.0 + 0.2, percent, 1000);
        }
        assert_error(&error, 0.2, 0.005);
    }

    #[test]
    fn too_much_in_one_bin_does_not_excuse_too_little_in_another() {
        let mut error = CalibrationError::default();
        (0..100).for_each(|_| add(&mut error, 0.35, 55, 100));
        (0..100).for_each(|_| add(&mut error, 0.75, 55, 100));
        assert_error(&error, 0.2, 0.005);
    }

    #[test]
    fn a_bin_counts_as_often_as_it_is_used() {
        let mut error = CalibrationError::default();
        (0..30).for_each(|_| error.add(0.95, true));
        (0..10).for_each(|_| error.add(0.65, false));
        assert_error(&error, 0.75 * 0.05 + 0.25 * 0.65, 1e-6);
    }

    #[test]
    fn inside_a_bin_only_the_mean_counts() {
        let mut error = CalibrationError::default();
        error.add(0.41, true);
        error.add(0.49, false);
        assert_error(&error, 0.05, 1e-6);
    }

    #[test]
    fn the_ends_of_the_range_and_what_lies_beyond_are_in_the_outer_bins() {
        let mut error = CalibrationError::default();
        for (probability, came) in [(1.0, true), (1.01, true), (0.0, false), (-0.01, false)] {
            error.add(probability, came);
        }
        assert_eq!(error.get(), Some(0.0));
    }

    #[test]
    fn after_a_half_life_old_samples_weigh_as_much_as_new_ones() {
        let mut error = CalibrationError::default();
        add(&mut error, 0.75, 35, 100_000);
        assert_error(&error, 0.4, 0.005);
        // the new bin has no error, and after 4096 samples half of the weight
        add(&mut error, 0.95, 95, 4096);
        assert_error(&error, 0.2, 0.005);
        add(&mut error, 0.95, 95, 4096);
        assert_error(&error, 0.1, 0.005);
    }
}
