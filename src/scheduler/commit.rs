//! Taking over what a step did.

use super::Scheduler;
use super::plan::{InFlight, PlannedRow};
use crate::protocol::{Micros, RequestFailure, RowRole, TokenEvent};
use crate::step::{Delivery, RowOutcome, StepOutcome};

impl Scheduler {
    /// Appends the chosen tokens, moves the caches' marks, frees what ended, and returns the
    /// events to deliver, in order. An outcome of a step that is no longer in flight (it was
    /// abandoned) is ignored. This is the only place where a request gains tokens.
    ///
    /// What the step computed can be found by other prompts once
    /// [`publish_computed`](Self::publish_computed) was called.
    ///
    /// # Panics
    /// When the outcome does not match the plan: the executor broke its contract.
    pub fn commit(&mut self, outcome: StepOutcome, now: Micros) -> Vec<Delivery> {
        let Some(in_flight) = self.in_flight.take_if(|step| step.number == outcome.number) else {
            return Vec::new();
        };
        check_shape(&in_flight, &outcome);
        self.publish_computed();
        if outcome.draft_ran && self.drafts.has_cache() {
            self.commit_drafts(&in_flight, &outcome);
        }
        let mut deliveries = Vec::with_capacity(in_flight.rows.len());
        let mut ended = Vec::new();
        for (row, outcome) in in_flight.rows.iter().zip(outcome.rows) {
            let end = self.commit_row(row, outcome, now, &mut deliveries);
            if let Some(event) = end {
                ended.push((row.running_index, event));
            }
        }
        self.remove_ended(ended, &mut deliveries);
        self.unpublished = true;
        deliveries
    }

    /// Draft caches hold the input and those proposals that were fed back and accepted.
    fn commit_drafts(&mut self, in_flight: &InFlight, outcome: &StepOutcome) {
        for draft in &in_flight.drafts {
            let row = &outcome.rows[draft.row as usize];
            let sequence = &mut self.running[draft.running_index];
            sequence.draft.computed = draft.computed + row.cached;
        }
    }

    /// One row: returns the terminal event if the request ends here.
    fn commit_row(
        &mut self,
        row: &PlannedRow,
        outcome: RowOutcome,
        now: Micros,
        deliveries: &mut Vec<Delivery>,
    ) -> Option<TokenEvent> {
        let RowOutcome { verdict, drafted, verified, nothing_allowed, .. } = outcome;
        let sequence = &mut self.running[row.running_index];
        let id = sequence.request.id;
        if let Some(ending) = sequence.pending_end.take() {
            return Some(sequence.ended(ending));
        }
        if !verdict.finite {
            let failure = match nothing_allowed {
                true => RequestFailure::NothingAllowed,
                false => RequestFailure::Numerical,
            };
            return Some(TokenEvent::Failed(failure));
        }
        if row.role == RowRole::Decode {
            sequence.speculation.record(drafted, verified, verdict.accepted);
        }
        let (sent, finish) = sequence.append(verdict.tokens, now);
        if !sent.is_empty() {
            deliveries.push((id, TokenEvent::Tokens(sent)));
        }
        if let Some(reason) = finish {
            return Some(TokenEvent::Finished { reason, summary: sequence.summary() });
        }
        let computed = row.computed + verdict.accepted;
        let tokens = sequence.len();
        sequence.target.settle(&mut self.target_pool, tokens, computed);
        self.drafts.settle(sequence);
        None
    }

    /// Inserts newly filled blocks into the prefix cache. Planning and ending do it themselves
    /// where they depend on it. Call it off the critical path: it hashes every new block.
    pub fn publish_computed(&mut self) {
        if !std::mem::take(&mut self.unpublished) {
            return;
        }
        for sequence in &mut self.running {
            sequence.target.publish(&mut self.target_pool, &sequence.tokens);
            self.drafts.publish(sequence);
        }
    }

    fn remove_ended(&mut self, mut ended: Vec<(usize, TokenEvent)>, deliveries: &mut Vec<Delivery>) {
        // sequences that were not part of the step may have been ended, too
        let in_step: Vec<usize> = ended.iter().map(|(running_index, _)| *running_index).collect();
        for (running_index, sequence) in self.running.iter_mut().enumerate() {
            if let Some(ending) = sequence.pending_end.take_if(|_| !in_step.contains(&running_index)) {
                ended.push((running_index, sequence.ended(ending)));
            }
        }
        ended.sort_by_key(|(running_index, _)| std::cmp::Reverse(*running_index));
        for (running_index, event) in ended {
            let mut sequence = self.running.remove(running_index);
            self.release(&mut sequence);
            deliveries.push((sequence.request.id, event));
        }
    }
}

/// Invariant 4, for every row, before any of it is applied.
fn check_shape(in_flight: &InFlight, outcome: &StepOutcome) {
    assert_eq!(outcome.rows.len(), in_flight.rows.len(), "one outcome per row");
    for (row, outcome) in in_flight.rows.iter().zip(&outcome.rows) {
        let RowOutcome { verdict, drafted, verified, cached, .. } = outcome;
        assert!(verdict.accepted <= *verified && verified <= drafted, "accepted ≤ verified ≤ drafted");
        assert!(*cached <= verdict.accepted, "only what was accepted stays in the draft's cache");
        if row.role == RowRole::Decode && verdict.finite {
            assert_eq!(verdict.tokens.len() as u32, verdict.accepted + 1, "one token is the target's own");
        }
    }
}
