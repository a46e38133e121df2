//! Drafting: predict, execute, correct.

use super::StepPlan;
use crate::executor::{DraftRow, Executor, ExecutorError, Proposal};
use crate::policy::DraftedRow;
use crate::time::{Clock, Micros};

/// A plan and what was drafted for it.
#[derive(Debug)]
pub struct Drafted {
    /// The plan.
    pub plan: StepPlan,
    /// Rows with at least one proposal, in the order of the decoding sequences.
    pub rows: Vec<DraftedRow>,
    /// Whether the draft model ran the plan's rows.
    pub ran: bool,
    /// `(rows, input tokens)` of each draft call.
    pub calls: Vec<(u32, u32)>,
    /// Time on the draft model.
    pub time: Micros,
}

impl Drafted {
    /// A step that goes straight to the target.
    pub fn nothing(plan: StepPlan) -> Drafted {
        Drafted { plan, rows: Vec::new(), ran: false, calls: Vec::new(), time: Micros::ZERO }
    }
}

/// Runs the draft model as the plan and its policy say: all rows once, then, position by
/// position, those rows that the policy lets go on (AdaSpec §5.1, here per row).
pub fn draft_round(
    executor: &mut dyn Executor,
    plan: StepPlan,
    clock: &dyn Clock,
) -> Result<Drafted, ExecutorError> {
    if plan.drafting.is_empty() {
        return Ok(Drafted::nothing(plan));
    }
    let start = clock.now();
    let mut round = Round::start(executor, &plan)?;
    let mut keep = Vec::new();
    while round.settle() {
        keep.clear();
        let active: Vec<DraftedRow> = round.active.iter().map(|row| row.drafted.clone()).collect();
        plan.policy.extend(&plan.view, &active, &mut keep);
        if keep.is_empty() {
            break;
        }
        round.go_on(executor, &keep)?;
    }
    let Round { active, mut done, calls, .. } = round;
    done.extend(active.into_iter().map(|row| row.drafted));
    done.retain(|row| !row.proposals.is_empty());
    done.sort_by_key(|row| row.decoding);
    Ok(Drafted { plan, rows: done, ran: true, calls, time: clock.now() - start })
}

/// A drafting round in progress.
struct Round {
    /// Rows that may still draft.
    active: Vec<ActiveRow>,
    /// Rows that are done.
    done: Vec<DraftedRow>,
    calls: Vec<(u32, u32)>,
    proposals: Vec<Proposal>,
}

struct ActiveRow {
    /// Index into the rows of `draft_start`.
    executor_row: u32,
    limit: u32,
    drafted: DraftedRow,
    broken: bool,
}

impl ActiveRow {
    fn take(&mut self, proposal: Proposal) {
        // a proposal from logits that are not finite is dropped, and the row with it
        if proposal.finite {
            self.drafted.proposals.push(proposal);
        } else {
            self.broken = true;
        }
    }

    fn may_go_on(&self) -> bool {
        !self.broken && (self.drafted.proposals.len() as u32) < self.limit
    }
}

impl Round {
    fn start(executor: &mut dyn Executor, plan: &StepPlan) -> Result<Round, ExecutorError> {
        let rows: Vec<DraftRow> = plan.drafting.iter().map(|drafting| drafting.row.clone()).collect();
        let tokens = rows.iter().map(|row| row.input.tokens.len() as u32).sum();
        let mut proposals = Vec::with_capacity(rows.len());
        executor.draft_start(&rows, &mut proposals)?;
        expect_one_each(proposals.len(), rows.len())?;
        let mut active = Vec::new();
        for (index, drafting) in plan.drafting.iter().enumerate() {
            let Some(decoding) = drafting.decoding else { continue };
            let drafted = DraftedRow { decoding, proposals: Vec::with_capacity(drafting.limit as usize) };
            let mut row =
                ActiveRow { executor_row: index as u32, limit: drafting.limit, drafted, broken: false };
            row.take(proposals[index]);
            active.push(row);
        }
        Ok(Round { active, done: Vec::new(), calls: vec![(rows.len() as u32, tokens)], proposals })
    }

    /// Sets rows aside that can't go on; whether any is left.
    fn settle(&mut self) -> bool {
        self.set_aside(|_, row| row.may_go_on());
        !self.active.is_empty()
    }

    fn go_on(&mut self, executor: &mut dyn Executor, keep: &[u32]) -> Result<(), ExecutorError> {
        self.set_aside(|index, _| keep.binary_search(&(index as u32)).is_ok());
        let rows: Vec<u32> = self.active.iter().map(|row| row.executor_row).collect();
        self.proposals.clear();
        executor.draft_continue(&rows, &mut self.proposals)?;
        expect_one_each(self.proposals.len(), rows.len())?;
        for (row, &proposal) in self.active.iter_mut().zip(&self.proposals) {
            row.take(proposal);
        }
        self.calls.push((rows.len() as u32, rows.len() as u32));
        Ok(())
    }

    fn set_aside(&mut self, stays: impl Fn(usize, &ActiveRow) -> bool) {
        let rows = std::mem::take(&mut self.active);
        for (index, row) in rows.into_iter().enumerate() {
            if stays(index, &row) {
                self.active.push(row);
            } else {
                self.done.push(row.drafted);
            }
        }
    }
}

fn expect_one_each(proposals: usize, rows: usize) -> Result<(), ExecutorError> {
    if proposals == rows {
        return Ok(());
    }
    Err(ExecutorError::Device(format!("{proposals} proposals came back for {rows} draft rows")))
}
