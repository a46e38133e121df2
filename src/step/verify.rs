//! Verification: choose what to verify, run the target, account for it.

use super::constraint::constrain;
use super::{Drafted, RowOutcome, SpeculationFault, StepOutcome, StepResult};
use crate::executor::Executor;
use crate::policy::Scratch;
use crate::protocol::{
    Clock, Compaction, DeviceIdle, DraftCounts, DraftOutcome, DraftSet, DraftedRow, ExecutorError, Micros,
    NodeId, RowRole, StepReport, Verdict, VerifyRow,
};

/// A step whose target rows hold the drafts to be verified.
#[derive(Debug)]
pub struct Selected {
    drafted: Drafted,
    /// Of each row that drafted, the drafts to verify, in the order in which the target has them.
    orders: Vec<Vec<u32>>,
    /// Drafts to verify, per decoding sequence.
    verified: Vec<u32>,
}

impl Drafted {
    /// Asks the policy which of each row's proposals to verify, and appends those to the target's
    /// inputs. A policy that panics has nothing verified. Constrained rows get their masks; a draft
    /// that nothing may follow is left out, so that its request fails there as in plain decoding.
    pub fn select(mut self, scratch: &mut Scratch) -> Selected {
        let mut chosen = Vec::with_capacity(self.rows.len());
        if !self.rows.is_empty() {
            let (policy, step, rows) = (&self.plan.policy, self.plan.step(), &self.rows);
            let answer =
                SpeculationFault::guard_policy("select", || policy.choose(step, rows, scratch, &mut chosen));
            if let Err(fault) = answer {
                chosen.clear();
                self.fault.get_or_insert(fault);
            }
        }
        chosen.resize(self.rows.len(), DraftSet::default());
        let mut verified = vec![0; self.plan.view.decoding.len()];
        let mut orders = Vec::with_capacity(self.rows.len());
        for ((row, chosen), drafts) in self.rows.iter().zip(chosen).zip(&mut self.constrained) {
            let index = row.decoding as usize;
            let mut order =
                row.verification_order(row.rooted(chosen, self.plan.granted.drafts[index] as usize));
            if let Some(drafts) = drafts.as_mut() {
                order.retain(|&draft| drafts.goes_on(draft as usize + 1));
            }
            let target = &mut self.plan.rows[index];
            append(target, row, &order);
            constrain(target, drafts.as_mut(), &order);
            verified[index] = order.len() as u32;
            orders.push(order);
        }
        let without_masks = self.plan.rows.iter_mut().filter(|row| row.masks.is_empty());
        without_masks.for_each(|row| constrain(row, None, &[]));
        Selected { drafted: self, orders, verified }
    }
}

/// Appends drafts to a target row, in this order.
fn append(target: &mut VerifyRow, row: &DraftedRow, order: &[u32]) {
    target.input.tokens.extend(order.iter().map(|&draft| row.proposals[draft as usize].token));
    target.drafts = order.len() as u32;
    let place_of =
        |draft: u32| order.iter().position(|&other| other == draft).map_or(0, |place| place as u32 + 1);
    let parent = |&draft: &u32| row.place(draft as usize).parent.checked_sub(1).map_or(0, place_of);
    if row.is_tree() {
        let parents: Vec<u32> = order.iter().map(parent).collect();
        let is_chain = (0..).zip(&parents).all(|(draft, &parent)| draft == parent);
        target.tree = (!is_chain).then_some(parents);
    }
}

impl Selected {
    /// Drafts to verify, per decoding sequence.
    pub fn verified(&self) -> &[u32] {
        &self.verified
    }
}

/// Runs the target over the selected rows, moves the keys and values of accepted paths to where they
/// belong, and tells the drafter what was accepted.
///
/// # Errors
/// What the target says.
pub fn verify(
    executor: &mut dyn Executor,
    selected: Selected,
    clock: &dyn Clock,
) -> Result<StepResult, ExecutorError> {
    let Selected { mut drafted, orders, verified } = selected;
    let start = clock.now();
    let mut verdicts = Vec::with_capacity(drafted.plan.rows.len());
    executor.target().verify(&drafted.plan.rows, &mut verdicts)?;
    DeviceIdle::add(&mut drafted.idle, executor.idle_before_last_call());
    let moves: Vec<Compaction> = drafted.plan.rows.iter().zip(&verdicts).filter_map(compaction).collect();
    if !moves.is_empty() {
        executor.target().compact(&moves)?;
    }
    let target_time = clock.now().saturating_sub(start);
    let outcomes: Vec<DraftOutcome> = drafted
        .rows
        .iter()
        .zip(&orders)
        .map(|(row, order)| outcome(order, verdicts.get(row.decoding as usize)))
        .collect();
    if drafted.ran {
        settle(executor, &mut drafted, &outcomes);
    }
    Ok(account(drafted, verdicts, outcomes, verified, target_time))
}

/// The moves that an accepted path of a tree needs, unless all of it is where it belongs.
fn compaction((row, verdict): (&VerifyRow, &Verdict)) -> Option<Compaction> {
    row.tree.as_ref()?;
    let in_place = (0..).zip(&verdict.path).all(|(depth, &place)| depth == place);
    let first = row.input.start + row.input.tokens.len() as u32 - row.drafts;
    let moves = || Compaction { blocks: row.input.blocks.clone(), first, path: verdict.path.clone() };
    (!in_place).then(moves)
}

/// What a verdict says of the drafts that were verified in this order.
fn outcome(order: &[u32], verdict: Option<&Verdict>) -> DraftOutcome {
    let mut outcome = DraftOutcome::default();
    order.iter().for_each(|&draft| outcome.verified.insert(draft as usize));
    let Some(verdict) = verdict.filter(|verdict| verdict.finite) else { return outcome };
    for depth in 0..verdict.accepted as usize {
        // a chain's path is left out
        let place = verdict.path.get(depth).map_or(depth, |&place| place as usize);
        order.get(place).into_iter().for_each(|&draft| outcome.accepted.insert(draft as usize));
    }
    outcome.next = verdict.tokens.last().copied();
    outcome
}

/// Tells the drafter which of its nodes were accepted.
fn settle(executor: &mut dyn Executor, drafted: &mut Drafted, outcomes: &[DraftOutcome]) {
    let Some(drafter) = executor.drafter() else { return };
    let mut accepted: Vec<NodeId> = Vec::new();
    for (track, outcome) in drafted.tracks.iter().zip(outcomes) {
        accepted.extend(outcome.accepted.iter().filter_map(|draft| track.nodes.get(draft)));
    }
    accepted.sort_unstable();
    if let Err(error) = drafter.settle(&accepted, &drafted.forest) {
        drafted.fault.get_or_insert(SpeculationFault::Drafter(error.to_string()));
        drafted.ran = false;
    }
}

fn account(
    mut drafted: Drafted,
    verdicts: Vec<Verdict>,
    outcomes: Vec<DraftOutcome>,
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
    for (outcome, row) in rows.iter_mut().zip(&plan.rows) {
        outcome.nothing_allowed = !outcome.verdict.finite && row.mask(0).is_some_and(|mask| mask.is_empty());
    }
    for ((row, track), outcome) in drafted.rows.iter().zip(&drafted.tracks).zip(&outcomes) {
        if let Some(of_row) = rows.get_mut(row.decoding as usize) {
            of_row.drafted = row.proposals.len() as u32;
            of_row.cached = outcome.accepted.common(track.fed) as u32;
        }
    }
    let attended = |row: &VerifyRow| {
        let (start, tokens) = (u64::from(row.input.start), row.input.tokens.len() as u64);
        tokens * start + tokens * (tokens + 1) / 2
    };
    let report = StepReport {
        drafted: std::mem::take(&mut drafted.rows),
        outcomes,
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
