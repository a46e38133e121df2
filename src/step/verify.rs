//! Verification: choose what to verify, run the target, account for it.

use super::constraint::constrain;
use super::{Drafted, RowOutcome, SpeculationFault, StepOutcome, StepResult};
use crate::executor::Executor;
use crate::policy::Scratch;
use crate::protocol::{
    Clock, DeviceIdle, DraftCounts, ExecutorError, Micros, NodeId, RowRole, StepReport, Verdict, VerifyRow,
};

/// A step whose target rows hold the drafts to be verified.
#[derive(Debug)]
pub struct Selected {
    drafted: Drafted,
    /// Drafts to verify, per decoding sequence.
    verified: Vec<u32>,
}

impl Drafted {
    /// Asks the policy how many of each row's proposals to verify, and appends those to the
    /// target's inputs. A policy that panics has nothing verified. Constrained rows get their masks.
    pub fn select(mut self, scratch: &mut Scratch) -> Selected {
        let mut lengths = Vec::with_capacity(self.rows.len());
        if !self.rows.is_empty() {
            let (policy, step, rows) = (&self.plan.policy, self.plan.step(), &self.rows);
            let chosen =
                SpeculationFault::guard_policy("select", || policy.select(step, rows, scratch, &mut lengths));
            if let Err(fault) = chosen {
                lengths.clear();
                self.fault.get_or_insert(fault);
            }
        }
        let mut verified = vec![0; self.plan.view.decoding.len()];
        for (row, length) in self.rows.iter().zip(lengths) {
            let length = (length as usize).min(row.proposals.len());
            let target = &mut self.plan.rows[row.decoding as usize];
            target.input.tokens.extend(row.proposals[..length].iter().map(|proposal| proposal.token));
            target.drafts = length as u32;
            verified[row.decoding as usize] = length as u32;
        }
        self.plan.rows.iter_mut().for_each(constrain);
        Selected { drafted: self, verified }
    }
}

impl Selected {
    /// Drafts to verify, per decoding sequence.
    pub fn verified(&self) -> &[u32] {
        &self.verified
    }
}

/// Runs the target over the selected rows, and tells the drafter what was accepted.
///
/// # Errors
/// What the target says.
pub fn verify(
    executor: &mut dyn Executor,
    selected: Selected,
    clock: &dyn Clock,
) -> Result<StepResult, ExecutorError> {
    let Selected { mut drafted, verified } = selected;
    let start = clock.now();
    let mut verdicts = Vec::with_capacity(drafted.plan.rows.len());
    executor.target().verify(&drafted.plan.rows, &mut verdicts)?;
    DeviceIdle::add(&mut drafted.idle, executor.idle_before_last_call());
    let target_time = clock.now().saturating_sub(start);
    if drafted.ran {
        settle(executor, &mut drafted, &verdicts);
    }
    Ok(account(drafted, verdicts, verified, target_time))
}

/// Tells the drafter which of its nodes were accepted: on each path the first ones.
fn settle(executor: &mut dyn Executor, drafted: &mut Drafted, verdicts: &[Verdict]) {
    let Some(drafter) = executor.drafter() else { return };
    let accepted_of = |seed: u32| {
        let row = drafted.plan.seeds[seed as usize].row as usize;
        verdicts.get(row).map_or(0, |verdict| verdict.accepted)
    };
    let nodes = drafted.forest.since(0).filter(|(_, node)| node.depth < accepted_of(node.seed));
    let accepted: Vec<NodeId> = nodes.map(|(id, _)| id).collect();
    if let Err(error) = drafter.settle(&accepted, &drafted.forest) {
        drafted.fault.get_or_insert(SpeculationFault::Drafter(error.to_string()));
        drafted.ran = false;
    }
}

fn account(
    mut drafted: Drafted,
    verdicts: Vec<Verdict>,
    verified: Vec<u32>,
    target_time: Micros,
) -> StepResult {
    let mut plan = drafted.plan;
    let decoding = verified.len();
    let counts = verified.iter().zip(&verdicts);
    let counts =
        counts.map(|(&verified, verdict)| DraftCounts { verified, accepted: verdict.accepted }).collect();
    let mut rows: Vec<RowOutcome> =
        verdicts.into_iter().map(|verdict| RowOutcome { verdict, ..RowOutcome::default() }).collect();
    for (row, &verified) in rows.iter_mut().zip(&verified) {
        row.verified = verified;
    }
    for row in &drafted.rows {
        if let Some(outcome) = rows.get_mut(row.decoding as usize) {
            outcome.drafted = row.proposals.len() as u32;
        }
    }
    let attended = |row: &VerifyRow| {
        let (start, tokens) = (u64::from(row.input.start), row.input.tokens.len() as u64);
        tokens * start + tokens * (tokens + 1) / 2
    };
    let report = StepReport {
        drafted: std::mem::take(&mut drafted.rows),
        counts,
        draft_calls: drafted.calls,
        prefill_tokens: plan.prefill_tokens(),
        prefill_attended_tokens: plan.prefill_rows().map(attended).sum(),
        draft_time: drafted.time,
        target_time,
        step_time: drafted.time + target_time,
        device_idle: drafted.idle,
        granted: std::mem::take(&mut plan.granted),
        view: std::mem::take(&mut plan.view),
        finished: Vec::new(),
    };
    debug_assert!(plan.rows.iter().take(decoding).all(|row| row.role == RowRole::Decode));
    let outcome = StepOutcome { number: plan.number, rows, draft_ran: drafted.ran };
    StepResult { outcome, report, fault: drafted.fault, plan }
}
