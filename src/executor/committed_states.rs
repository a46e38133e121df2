//! Which committed tokens have hidden states that a draft head has yet to read.
//!
//! Each forward pass of the target appends a row for every input token: the residual stream before
//! some of its layers. The rows of committed tokens, each with the token that follows, stay until the
//! head has computed keys and values from them. Here is what is known of each row; the rows themselves
//! are the executor's.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use crate::protocol::{BlockId, TokenId, Verdict, VerifyRow};

/// A place in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Slot {
    pub(crate) block: BlockId,
    /// Below the tokens of a block.
    pub(crate) offset: usize,
}

impl Slot {
    /// Where the `index`-th token of a sequence with these blocks has its place.
    pub(crate) fn of(blocks: &[BlockId], index: usize, block_tokens: usize) -> Slot {
        Slot { block: blocks[index / block_tokens], offset: index % block_tokens }
    }
}

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
pub(crate) struct CommittedStates {
    capacity: usize,
    /// Rows in use.
    used: usize,
    committed: Vec<Committed>,
    /// For each of them, whether the head has read it.
    read: Vec<bool>,
    /// Indices into `committed`. A slot that is written again has lost its token.
    by_slot: HashMap<Slot, usize>,
}

impl CommittedStates {
    /// Room for the states of `capacity` tokens.
    pub(crate) fn new(capacity: usize) -> CommittedStates {
        CommittedStates {
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

    /// Adds to `out` the unread tokens of a sequence right before the position `end`, the first one
    /// first: back to one that was read, whose predecessors were read, too. They count as read.
    #[cfg(feature = "cuda")]
    pub(crate) fn take_unread(
        &mut self,
        blocks: &[BlockId],
        end: usize,
        block_tokens: usize,
        out: &mut Vec<Committed>,
    ) {
        let first = out.len();
        for position in (0..end).rev() {
            let slot = Slot::of(blocks, position, block_tokens);
            let unread = self.by_slot.get(&slot).copied().filter(|&index| !self.read[index]);
            let Some(index) = unread.filter(|&index| self.committed[index].position == position) else {
                break;
            };
            self.read[index] = true;
            out.push(self.committed[index]);
        }
        out[first..].reverse();
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

    fn token(offset: usize, next: TokenId) -> Committed {
        Committed { row: offset, position: offset, slot: Slot { block: BlockId(2), offset }, next }
    }

    #[test]
    fn each_token_is_read_once_and_a_slot_that_is_written_again_is_read_again() {
        let mut states = CommittedStates::new(8);
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

    #[test]
    #[cfg(feature = "cuda")]
    fn the_unread_tokens_of_a_sequence_end_at_one_that_was_read_or_is_another_positions() {
        let blocks = [BlockId(4), BlockId(2)];
        let at = |position: usize| Committed {
            row: position,
            position,
            slot: Slot::of(&blocks, position, 4),
            next: 7,
        };
        let mut states = CommittedStates::new(16);
        (0..7).for_each(|position| states.add(at(position)));
        assert!(states.claim(at(2).slot, 2, 7).is_some());
        let mut out = vec![at(0)];
        states.take_unread(&blocks, 6, 4, &mut out);
        assert_eq!(out, [0, 3, 4, 5].map(at), "back to the one that was read, the first one first");
        out.clear();
        states.take_unread(&blocks, 7, 4, &mut out);
        assert_eq!(out, [at(6)], "each is read once");
        states.add(Committed { position: 40, ..at(5) });
        states.add(at(6));
        out.clear();
        states.take_unread(&blocks, 7, 4, &mut out);
        assert_eq!(out, [at(6)], "a slot that another sequence wrote is not this one's");
    }
}
