//! The hidden states of the target that a draft head has yet to read.
#![forbid(unsafe_code)]

use super::rows::Rows;
use crate::executor::committed_states::CommittedStates;

/// The residual stream before some of the target's layers, one after the other, for each input token
/// of the last forward passes.
pub(crate) struct HiddenStates {
    /// What is known of each row.
    pub(crate) tokens: CommittedStates,
    /// The layers of the target before which the stream is taken, in the order of a row.
    layers: Vec<usize>,
    /// Width of the target's stream.
    width: usize,
    rows: Rows,
}

impl HiddenStates {
    /// Room for the states of `capacity` tokens of a target whose stream is `width` wide.
    pub(crate) fn new(layers: &[usize], width: usize, capacity: usize) -> HiddenStates {
        HiddenStates {
            tokens: CommittedStates::new(capacity),
            layers: layers.to_vec(),
            width,
            rows: Rows::new(capacity, layers.len() * width),
        }
    }

    /// Size of the states in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.rows.bytes()
    }

    /// Copies the stream before a layer to `tokens` rows from `first` on, if a row has that layer.
    pub(crate) fn take<'s>(
        &mut self,
        layer: usize,
        first: usize,
        tokens: usize,
        stream: impl Fn(usize) -> &'s [f32],
    ) {
        let Some(place) = self.layers.iter().position(|&taken| taken == layer) else { return };
        let columns = place * self.width..(place + 1) * self.width;
        for token in 0..tokens {
            self.rows.row_mut(first + token)[columns.clone()].copy_from_slice(stream(token));
        }
    }

    /// The states of a row, layer after layer.
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.rows.row(row)[..self.layers.len() * self.width]
    }
}
