//! Rotary embedding: a table of sines and cosines and the rotation itself.
#![forbid(unsafe_code)]

use crate::model::Rope;

/// Cosines and sines of every position and pair, computed in `f64`.
#[derive(Clone, Debug)]
pub(crate) struct RopeTable {
    half: usize,
    /// Per position: `half` cosines, then `half` sines.
    values: Vec<f32>,
}

impl RopeTable {
    /// The table of positions `0..positions`.
    pub(crate) fn new(rope: &Rope, head_dim: usize, positions: usize) -> RopeTable {
        let frequencies = rope.inverse_frequencies(head_dim);
        let mut values = Vec::with_capacity(positions * head_dim);
        for position in 0..positions {
            let angles = || frequencies.iter().map(|frequency| frequency * position as f64);
            values.extend(angles().map(|angle| angle.cos() as f32));
            values.extend(angles().map(|angle| angle.sin() as f32));
        }
        RopeTable { half: head_dim / 2, values }
    }

    /// Rotates one head's query or key to its position (half-split layout).
    pub(crate) fn rotate(&self, head: &mut [f32], position: usize) {
        let row = &self.values[position * 2 * self.half..][..2 * self.half];
        let (cosines, sines) = row.split_at(self.half);
        let (low, high) = head.split_at_mut(self.half);
        for (((a, b), cosine), sine) in low.iter_mut().zip(high).zip(cosines).zip(sines) {
            (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RopeScaling;

    #[test]
    fn rotation_keeps_length_and_depends_on_distance_alone() {
        let rope = Rope { theta: 10_000.0, scaling: RopeScaling::Default };
        let table = RopeTable::new(&rope, 16, 64);
        let score = |query_position: usize, key_position: usize| -> f32 {
            let mut query: Vec<f32> = (0..16).map(|i| (i as f32 * 0.7).sin()).collect();
            let mut key: Vec<f32> = (0..16).map(|i| (i as f32 * 1.3).cos()).collect();
            table.rotate(&mut query, query_position);
            table.rotate(&mut key, key_position);
            query.iter().zip(&key).map(|(q, k)| q * k).sum()
        };
        assert!((score(40, 33) - score(9, 2)).abs() < 1e-4);
        assert!((score(5, 5) - score(0, 0)).abs() < 1e-4);
        assert!((score(9, 2) - score(9, 3)).abs() > 1e-3, "distance matters");
    }
}
