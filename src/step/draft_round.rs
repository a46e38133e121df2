//! Drafting: predict, execute, correct.

use super::StepPlan;
use crate::executor::Executor;
use crate::policy::Scratch;
use crate::protocol::{Clock, DeviceIdle, DraftedRow, ExecutorError, Micros, Proposal};

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
    /// How long the device has had nothing to do; `None` where the backend can't tell, or
    /// before its first work.
    pub idle: Option<DeviceIdle>,
}

impl Drafted {
    /// A step that goes straight to the target: plainly, or with drafts that were looked up.
    pub fn without_model(mut plan: StepPlan) -> Drafted {
        let rows = std::mem::take(&mut plan.lookups);
        Drafted { plan, rows, ran: false, calls: Vec::new(), time: Micros::ZERO, idle: None }
    }
}

/// Runs the draft model as the plan and its policy say: all rows once, then, position by
/// position, those rows that the policy lets go on (AdaSpec §5.1, here per row).
pub fn draft_round(
    executor: &mut dyn Executor,
    plan: StepPlan,
    scratch: &mut Scratch,
    clock: &dyn Clock,
) -> Result<Drafted, ExecutorError> {
    if plan.drafting.is_empty() {
        return Ok(Drafted::without_model(plan));
    }
    let start = clock.now();
    let mut round = Round::start(executor, &plan)?;
    let mut idle = executor.idle_before_last_call().map(DeviceIdle::starting_with);
    let mut keep = Vec::new();
    while !round.active.is_empty() {
        keep.clear();
        plan.policy.extend(plan.step(), &round.rows, &round.active, scratch, &mut keep);
        if keep != round.active {
            round.active.retain(|row| keep.binary_search(row).is_ok());
        }
        if round.active.is_empty() {
            break;
        }
        round.go_on(executor)?;
        DeviceIdle::go_on(&mut idle, executor.idle_before_last_call());
    }
    let Round { mut rows, calls, .. } = round;
    rows.retain(|row| !row.proposals.is_empty());
    Ok(Drafted { plan, rows, ran: true, calls, time: clock.now() - start, idle })
}

/// A drafting round in progress.
struct Round {
    /// All rows that propose, in the order of the decoding sequences.
    rows: Vec<DraftedRow>,
    /// For each of them, its index into the rows of `draft_start`.
    executor_rows: Vec<u32>,
    /// For each of them, the most proposals it may get.
    limits: Vec<u32>,
    /// Those of them that just got a proposal and may get another; ascending.
    active: Vec<u32>,
    calls: Vec<(u32, u32)>,
    proposals: Vec<Proposal>,
}

impl Round {
    fn start(executor: &mut dyn Executor, plan: &StepPlan) -> Result<Round, ExecutorError> {
        let rows = &plan.draft_rows;
        let tokens = rows.iter().map(|row| row.input.tokens.len() as u32).sum();
        let mut proposals = Vec::with_capacity(rows.len());
        executor.draft_start(rows, &mut proposals)?;
        expect_one_each(proposals.len(), rows.len())?;
        let mut round = Round {
            rows: Vec::with_capacity(rows.len()),
            executor_rows: Vec::with_capacity(rows.len()),
            limits: Vec::with_capacity(rows.len()),
            active: Vec::with_capacity(rows.len()),
            calls: vec![(rows.len() as u32, tokens)],
            proposals: Vec::new(),
        };
        for (index, drafting) in plan.drafting.iter().enumerate() {
            let Some(decoding) = drafting.decoding else { continue };
            let proposals_of_row = Vec::with_capacity(drafting.limit as usize);
            round.rows.push(DraftedRow { decoding, proposals: proposals_of_row });
            round.executor_rows.push(index as u32);
            round.limits.push(drafting.limit);
            if round.take(round.rows.len() - 1, proposals[index]) {
                round.active.push(round.rows.len() as u32 - 1);
            }
        }
        round.proposals = proposals;
        Ok(round)
    }

    /// One more proposal for each active row.
    fn go_on(&mut self, executor: &mut dyn Executor) -> Result<(), ExecutorError> {
        let wanted: Vec<u32> = self.active.iter().map(|&row| self.executor_rows[row as usize]).collect();
        let mut proposals = std::mem::take(&mut self.proposals);
        proposals.clear();
        executor.draft_continue(&wanted, &mut proposals)?;
        expect_one_each(proposals.len(), wanted.len())?;
        self.calls.push((wanted.len() as u32, wanted.len() as u32));
        let asked = std::mem::take(&mut self.active);
        for (row, &proposal) in asked.into_iter().zip(&proposals) {
            if self.take(row as usize, proposal) {
                self.active.push(row);
            }
        }
        self.proposals = proposals;
        Ok(())
    }

    /// Notes a proposal; whether the row may get another. One from logits that are not
    /// finite is dropped, and ends the row's drafting.
    fn take(&mut self, row: usize, proposal: Proposal) -> bool {
        if proposal.finite {
            self.rows[row].proposals.push(proposal);
        }
        proposal.finite && (self.rows[row].proposals.len() as u32) < self.limits[row]
    }
}

fn expect_one_each(proposals: usize, rows: usize) -> Result<(), ExecutorError> {
    if proposals == rows {
        return Ok(());
    }
    Err(ExecutorError::Device(format!("{proposals} proposals came back for {rows} draft rows")))
}
