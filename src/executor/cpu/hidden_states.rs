//! The hidden states of the target that a draft head has yet to read.
//!
//! Each forward pass of the target appends a row for every input token: the residual stream before
//! some of its layers, one after the other. The rows of committed tokens, each with the token that
//! follows, stay until the head has computed keys and values from them.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use crate::protocol::{TokenId, Verdict, VerifyRow};

use super::pass::Slot;
use super::rows::Rows;

/// A committed token whose hidden states are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Committed {
    /// Row of its hidden states.
    pub(crate) row: usize,
    /// Its position.
    pub(crate) position: usize,
    /// Its place in the cache.
    pub(crate) slot: Slot,
    /// The token that follows it.
    pub(crate) next: TokenId,
}

/// See the module's documentation.
pub(crate) struct HiddenStates {
    /// The layers of the target before which the stream is taken, in the order of a row.
    layers: Vec<usize>,
    /// Width of the target's stream.
    width: usize,
    rows: Rows,
    capacity: usize,
    /// Rows in use.
    used: usize,
    committed: Vec<Committed>,
    /// For each of them, whether the head has read it.
    read: Vec<bool>,
    /// Indices into `committed`. A slot that is written again has lost its token.
    by_slot: HashMap<Slot, usize>,
}

impl HiddenStates {
    /// Room for the states of `capacity` tokens of a target whose stream is `width` wide.
    pub(crate) fn new(layers: &[usize], width: usize, capacity: usize) -> HiddenStates {
        HiddenStates {
            layers: layers.to_vec(),
            width,
            rows: Rows::new(capacity, layers.len() * width),
            capacity,
            used: 0,
            committed: Vec::new(),
            read: Vec::new(),
            by_slot: HashMap::new(),
        }
    }

    /// Rows in use.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// Whether there is room for the states of so many more tokens.
    pub(crate) fn has_room(&self, tokens: usize) -> bool {
        self.used + tokens <= self.capacity
    }

    /// Gives up all rows. What is unread is lost.
    pub(crate) fn clear(&mut self) {
        self.used = 0;
        self.committed.clear();
        self.read.clear();
        self.by_slot.clear();
    }

    /// Takes the next `tokens` rows; returns the first.
    pub(crate) fn append(&mut self, tokens: usize) -> usize {
        let first = self.used;
        self.used += tokens;
        first
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

    /// Notes which tokens of a pass were committed: `first` is the row of the pass's first token.
    pub(crate) fn commit(
        &mut self,
        first: usize,
        rows: &[VerifyRow],
        verdicts: &[Verdict],
        block_tokens: usize,
    ) {
        let mut row_start = first;
        for (row, verdict) in rows.iter().zip(verdicts) {
            if verdict.finite {
                self.commit_row(row_start, row, verdict, block_tokens);
            }
            row_start += row.input.tokens.len();
        }
    }

    fn commit_row(&mut self, first: usize, row: &VerifyRow, verdict: &Verdict, block_tokens: usize) {
        let input = &row.input;
        let committed = input.tokens.len() - row.drafts as usize;
        let following = input.tokens[1..committed].iter().chain(&verdict.tokens).chain(&row.next);
        let accepted = (0..verdict.accepted as usize)
            .map(|depth| verdict.path.get(depth).map_or(depth, |&place| place as usize));
        let places = (0..committed).chain(accepted.map(|place| committed + place));
        for (index, (place, &next)) in places.zip(following).enumerate() {
            let position = input.start as usize + index;
            let slot = Slot::of(&input.blocks, position, block_tokens);
            self.add(Committed { row: first + place, position, slot, next });
        }
    }

    /// Adds an unread token, in place of another one that had its slot.
    pub(crate) fn add(&mut self, token: Committed) {
        let index = *self.by_slot.entry(token.slot).or_insert(self.committed.len());
        if index == self.committed.len() {
            self.committed.push(token);
            self.read.push(false);
        } else {
            (self.committed[index], self.read[index]) = (token, false);
        }
    }

    /// The tokens that the head has not read, each in a slot of its own; they count as read from
    /// here on.
    pub(crate) fn read(&mut self) -> Vec<Committed> {
        let unread = self.committed.iter().zip(&self.read).filter(|(_, read)| !**read);
        let unread = unread.map(|(token, _)| *token).collect();
        self.read.fill(true);
        unread
    }

    /// The token in a slot, read or not, if it is the one at `position` that `next` follows; it counts
    /// as read.
    pub(crate) fn claim(&mut self, slot: Slot, position: usize, next: TokenId) -> Option<Committed> {
        let index = *self.by_slot.get(&slot)?;
        let token = self.committed[index];
        if (token.position, token.next) != (position, next) {
            return None;
        }
        self.read[index] = true;
        Some(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::BlockId;

    fn token(offset: usize, next: TokenId) -> Committed {
        Committed { row: offset, position: offset, slot: Slot { block: BlockId(2), offset }, next }
    }

    #[test]
    fn each_token_is_read_once_and_a_slot_that_is_written_again_is_read_again() {
        let mut states = HiddenStates::new(&[1], 16, 8);
        [token(0, 5), token(1, 6)].into_iter().for_each(|token| states.add(token));
        assert_eq!(states.read(), [token(0, 5), token(1, 6)]);
        assert_eq!(states.read(), []);
        [token(1, 7), token(2, 8)].into_iter().for_each(|token| states.add(token));
        assert_eq!(states.claim(token(2, 8).slot, 2, 8), Some(token(2, 8)));
        assert_eq!(states.claim(token(2, 8).slot, 2, 9), None, "another token follows");
        assert_eq!(states.read(), [token(1, 7)], "the other one was claimed");
        assert_eq!(states.claim(token(2, 8).slot, 2, 8), Some(token(2, 8)), "states stay when they are read");
        states.clear();
        assert_eq!((states.claim(token(2, 8).slot, 2, 8), states.used()), (None, 0));
    }
}
