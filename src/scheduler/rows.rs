//! Row buffers of the last step, reused for the next.
//!
//! Most of a row stays the same from step to step: its request, its sampling parameters, nearly
//! always its block table. What is not rewritten stays in the caches of the core that reads it,
//! the device thread's, and what is not reallocated costs the planning thread nothing. The
//! contents never matter: every field is filled in again.

use crate::protocol::{RequestId, SequenceInput};

/// How far ahead a row is searched: requests keep their order, except for those that ended or
/// began in between.
const LOOK_AHEAD: usize = 8;

/// The inputs of one model's rows, in the order of their step.
#[derive(Debug, Default)]
pub(super) struct RowPool {
    inputs: Vec<Option<SequenceInput>>,
    next: usize,
}

impl RowPool {
    /// Replaces what is there by the rows of a step that is done.
    pub fn refill(&mut self, inputs: impl Iterator<Item = SequenceInput>) {
        self.inputs.clear();
        self.inputs.extend(inputs.map(Some));
        self.next = 0;
    }

    /// A request's row, if it is among the next few; each can be had once.
    pub fn take(&mut self, request: RequestId) -> Option<SequenceInput> {
        let ahead = self.inputs.iter_mut().enumerate().skip(self.next).take(LOOK_AHEAD);
        for (at, slot) in ahead {
            if let Some(input) = slot.take_if(|input| input.request == request) {
                self.next = at + 1;
                return Some(input);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::protocol::{BlockId, SamplingParams};

    fn row(id: u64) -> SequenceInput {
        SequenceInput {
            request: RequestId(id),
            tokens: vec![1],
            start: 0,
            blocks: vec![BlockId(2)],
            sampling: Arc::new(SamplingParams::greedy()),
            history: None,
        }
    }

    #[test]
    fn rows_are_found_in_order_past_those_that_ended_and_never_twice() {
        let mut rows = RowPool::default();
        assert_eq!(rows.take(RequestId(1)), None);
        rows.refill((1..=30).map(row));
        assert_eq!(rows.take(RequestId(2)), Some(row(2)));
        assert_eq!(rows.take(RequestId(2)), None);
        assert_eq!(rows.take(RequestId(1)), None, "passed by");
        assert_eq!(rows.take(RequestId(99)), None, "a new request");
        assert_eq!(rows.take(RequestId(3)), Some(row(3)));
        assert_eq!(rows.take(RequestId(30)), None, "too far ahead");
        assert_eq!(rows.take(RequestId(4)), Some(row(4)));
        rows.refill(std::iter::once(row(7)));
        assert_eq!(rows.take(RequestId(5)), None);
        assert_eq!(rows.take(RequestId(7)), Some(row(7)));
    }
}
