//! Verification: choose what to verify, run the target, account for it.

use super::{Drafted, StepOutcome, StepPlan};
use crate::executor::Executor;
use crate::policy::Scratch;
use crate::protocol::{Clock, DeviceIdle, ExecutorError, Micros, StepReport, Verdict};

/// A step that is done.
#[derive(Debug)]
pub struct Stepped {
    /// For the scheduler.
    pub outcome: StepOutcome,
    /// For the SLO monitor and the policy.
    pub report: StepReport,
    /// What the step was made of, less view and decision, which the report has. Freeing its many small
    /// parts takes time that only whoever is not waited for has.
    pub plan: StepPlan,
}

impl Drafted {
    /// Asks the policy how many of each row's proposals to verify, and puts those behind the
    /// target's inputs. Returns the drafts to verify per decoding sequence.
    pub fn select(&mut self, scratch: &mut Scratch) -> Vec<u32> {
        let mut lengths = Vec::with_capacity(self.rows.len());
        self.plan.policy.select(self.plan.step(), &self.rows, scratch, &mut lengths);
        let mut verified = vec![0; self.plan.view.decoding.len()];
        for (row, length) in self.rows.iter().zip(lengths) {
            let length = (length as usize).min(row.proposals.len());
            let target = &mut self.plan.rows[row.decoding as usize];
            target.input.tokens.extend(row.proposals[..length].iter().map(|proposal| proposal.token));
            target.drafts = length as u32;
            verified[row.decoding as usize] = length as u32;
        }
        verified
    }

    fn drafted_counts(&self) -> Vec<u32> {
        let mut drafted = vec![0; self.plan.view.decoding.len()];
        for row in &self.rows {
            drafted[row.decoding as usize] = row.proposals.len() as u32;
        }
        drafted
    }
}

/// Runs the target over the plan's rows, whose drafts [`Drafted::select`] has put in place.
pub fn verify_round(
    executor: &mut dyn Executor,
    mut drafted: Drafted,
    verified: Vec<u32>,
    clock: &dyn Clock,
) -> Result<Stepped, ExecutorError> {
    let start = clock.now();
    let mut verdicts = Vec::with_capacity(drafted.plan.rows.len());
    executor.verify(&drafted.plan.rows, &mut verdicts)?;
    check_verdicts(&drafted, &verdicts)?;
    DeviceIdle::go_on(&mut drafted.idle, executor.idle_before_last_call());
    Ok(account(drafted, verdicts, verified, clock.now() - start))
}

/// Invariant 4: what comes from a device is checked before the host uses it.
fn check_verdicts(drafted: &Drafted, verdicts: &[Verdict]) -> Result<(), ExecutorError> {
    let rows = &drafted.plan.rows;
    if verdicts.len() != rows.len() {
        return Err(ExecutorError::Device(format!(
            "{} verdicts came back for {} rows",
            verdicts.len(),
            rows.len()
        )));
    }
    for (row, verdict) in rows.iter().zip(verdicts) {
        let tokens = verdict.tokens.len() as u32;
        let expected = if row.sample && verdict.finite { verdict.accepted + 1 } else { 0 };
        if tokens != expected || verdict.accepted > row.drafts {
            return Err(ExecutorError::Device(format!(
                "request {}: {} of {} drafts accepted with {tokens} tokens",
                row.input.request, verdict.accepted, row.drafts
            )));
        }
    }
    Ok(())
}

fn account(drafted: Drafted, verdicts: Vec<Verdict>, verified: Vec<u32>, target_time: Micros) -> Stepped {
    let counts = drafted.drafted_counts();
    let mut plan = drafted.plan;
    let decoding = plan.view.decoding.len();
    let attended = |row: &crate::protocol::VerifyRow| {
        let (start, tokens) = (u64::from(row.input.start), row.input.tokens.len() as u64);
        tokens * start + tokens * (tokens + 1) / 2
    };
    let report = StepReport {
        drafted: drafted.rows,
        accepted: verdicts[..decoding].iter().map(|verdict| verdict.accepted).collect(),
        verified: verified.clone(),
        draft_calls: drafted.calls,
        prefill_tokens: plan.prefill_tokens(),
        prefill_attended_tokens: plan.prefill_rows().map(attended).sum(),
        draft_time: drafted.time,
        target_time,
        step_time: drafted.time + target_time,
        device_idle: drafted.idle,
        view: std::mem::take(&mut plan.view),
        granted: std::mem::take(&mut plan.granted),
    };
    let outcome =
        StepOutcome { number: plan.number, verdicts, draft_ran: drafted.ran, drafted: counts, verified };
    Stepped { outcome, report, plan }
}
