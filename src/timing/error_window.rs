//! Quantiles over the last few hundred values, in bounded memory.

use std::collections::VecDeque;

use crate::stats::quantile::nearest_rank;

/// Values that are kept: the p99 rests on the five largest.
pub(crate) const WINDOW: usize = 512;

/// The last [`WINDOW`] values.
#[derive(Clone, Debug, Default)]
pub(crate) struct ErrorWindow {
    values: VecDeque<f32>,
}

impl ErrorWindow {
    /// Adds a value; the oldest leaves. Not-a-numbers are dropped.
    pub(crate) fn push(&mut self, value: f64) {
        if value.is_nan() {
            return;
        }
        if self.values.len() == WINDOW {
            self.values.pop_front();
        }
        self.values.push_back(value as f32);
    }

    /// How many values there are.
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    /// The `share` quantile (nearest rank) of `map(value)`; `None` when empty.
    pub(crate) fn quantile(&self, share: f64, map: impl Fn(f32) -> f32) -> Option<f64> {
        let mut values: Vec<f32> = self.values.iter().map(|&value| map(value)).collect();
        nearest_rank(&mut values, share, f32::total_cmp).map(f64::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_ranks_of_the_last_values() {
        let mut window = ErrorWindow::default();
        assert_eq!(window.quantile(0.5, f32::abs), None);
        (0..1000).for_each(|value| window.push(f64::from(value)));
        window.push(f64::NAN);
        assert_eq!(window.len(), WINDOW);
        assert_eq!(window.quantile(1.0, |value| value), Some(999.0));
        assert_eq!(window.quantile(0.0, |value| value), Some(488.0));
        assert_eq!(window.quantile(0.5, |value| value), Some(743.0));
        assert_eq!(window.quantile(1.0, |value| -value), Some(-488.0));
    }
}
