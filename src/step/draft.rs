//! Drafting: predict, execute, correct (AdaSpec §5.1, here per row).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::StepPlan;
use super::constraint::ConstrainedPath;
use super::fault::{SpeculationFault, panic_message};
use crate::executor::{Drafter, Executor};
use crate::policy::Scratch;
use crate::protocol::{Clock, DeviceIdle, DraftForest, DraftNode, DraftedRow, ExecutorError, Micros, NodeId};

/// A plan and what was drafted for it.
#[derive(Debug)]
pub struct Drafted {
    /// The plan.
    pub plan: StepPlan,
    /// Rows with at least one proposal, in the order of the decoding sequences.
    pub rows: Vec<DraftedRow>,
    /// All proposals as the drafter made them.
    pub forest: DraftForest,
    /// Whether the drafter ran the plan's seeds to their end, so that its cache can be relied on.
    pub ran: bool,
    /// `(rows, input tokens)` of each call of the drafter.
    pub calls: Vec<(u32, u32)>,
    /// Time on the drafter.
    pub time: Micros,
    /// How long the device has been idle; `None` where the backend can't tell, or before its
    /// first work.
    pub idle: Option<DeviceIdle>,
    /// What cost the step its drafts, or some of them.
    pub fault: Option<SpeculationFault>,
}

impl Drafted {
    fn none(mut plan: StepPlan) -> Drafted {
        let fault = plan.fault.take();
        Drafted {
            plan,
            rows: Vec::new(),
            forest: DraftForest::default(),
            ran: false,
            calls: Vec::new(),
            time: Micros::ZERO,
            idle: None,
            fault,
        }
    }
}

/// Runs the drafter as the plan and its policy say: all seeds once, then, call by call, those
/// rows that the policy lets continue. Never fails: without drafts the step decodes plainly.
pub fn draft(
    executor: &mut dyn Executor,
    plan: StepPlan,
    scratch: &mut Scratch,
    clock: &dyn Clock,
) -> Drafted {
    let mut drafted = Drafted::none(plan);
    if !drafted.plan.drafts() {
        return drafted;
    }
    let start = clock.now();
    let mut round = Round::new(&mut drafted.plan, executor.info().vocab_size);
    match round.run(executor, &drafted.plan, scratch, &mut drafted.idle) {
        Ok(()) => drafted.ran = true,
        Err(Stop::Policy(fault)) => {
            // every call of the drafter was completed: its proposals are as good as any
            drafted.ran = true;
            drafted.fault = Some(fault);
        }
        Err(Stop::Drafter(fault)) => {
            // its cache may hold anything behind the committed tokens it was known to hold before
            round.rows.clear();
            drafted.fault = Some(fault);
        }
    }
    let Round { mut rows, forest, calls, .. } = round;
    rows.retain(|row| !row.proposals.is_empty());
    (drafted.rows, drafted.forest, drafted.calls) = (rows, forest, calls);
    drafted.time = clock.now().saturating_sub(start);
    drafted
}

/// Why a round ended early.
enum Stop {
    Policy(SpeculationFault),
    Drafter(SpeculationFault),
}

/// A drafting round in progress.
struct Round {
    /// All rows that propose, in the order of the decoding sequences.
    rows: Vec<DraftedRow>,
    /// For each of them, its latest node and the most proposals it may get.
    ends: Vec<RowEnd>,
    /// For each seed, the row it drafts for; `None` where it only fills the cache.
    row_of_seed: Vec<Option<u32>>,
    /// Rows that just got a proposal and may get another; ascending.
    active: Vec<u32>,
    forest: DraftForest,
    calls: Vec<(u32, u32)>,
    vocab_size: u32,
}

struct RowEnd {
    node: NodeId,
    limit: u32,
    /// Whether the last call of the drafter added to the row.
    grew: bool,
    /// The output up to here, of a constrained sequence.
    path: Option<ConstrainedPath>,
}

impl Round {
    /// Begins a round of the plan's seeds, and gives the constrained ones their masks.
    fn new(plan: &mut StepPlan, vocab_size: u32) -> Round {
        let mut ends = Vec::with_capacity(plan.seeds.len());
        for seed in plan.seeds.iter_mut().filter(|seed| seed.limit > 0) {
            let path = ConstrainedPath::of(&seed.input);
            seed.mask = path.as_ref().and_then(|path| path.mask().cloned());
            ends.push(RowEnd { node: NodeId(0), limit: seed.limit, grew: false, path });
        }
        let proposing = plan.seeds.iter().filter(|seed| seed.limit > 0);
        let rows: Vec<DraftedRow> = proposing
            .map(|seed| DraftedRow { decoding: seed.row, proposals: Vec::with_capacity(seed.limit as usize) })
            .collect();
        let mut next = 0..rows.len() as u32;
        Round {
            ends,
            row_of_seed: plan
                .seeds
                .iter()
                .map(|seed| (seed.limit > 0).then(|| next.next()).flatten())
                .collect(),
            active: Vec::with_capacity(rows.len()),
            rows,
            forest: DraftForest::default(),
            calls: Vec::new(),
            vocab_size,
        }
    }

    fn run(
        &mut self,
        executor: &mut dyn Executor,
        plan: &StepPlan,
        scratch: &mut Scratch,
        idle: &mut Option<DeviceIdle>,
    ) -> Result<(), Stop> {
        let tokens = plan.seeds.iter().map(|seed| seed.input.tokens.len() as u32).sum();
        self.call(executor, idle, (plan.seeds.len() as u32, tokens), |drafter, forest| {
            drafter.start(&plan.seeds, forest)
        })?;
        let (mut keep, mut nodes) = (Vec::new(), Vec::new());
        while !self.active.is_empty() {
            keep.clear();
            let (rows, active) = (&self.rows, &self.active);
            SpeculationFault::guard_policy("extend", || {
                plan.policy.extend(plan.step(), rows, active, scratch, &mut keep)
            })
            .map_err(Stop::Policy)?;
            if keep != self.active {
                self.active.retain(|row| keep.binary_search(row).is_ok());
            }
            if self.active.is_empty() {
                break;
            }
            nodes.clear();
            nodes.extend(self.active.iter().map(|&row| self.ends[row as usize].node));
            self.constrain_active();
            let rows = nodes.len() as u32;
            self.call(executor, idle, (rows, rows), |drafter, forest| drafter.extend(&nodes, forest))?;
        }
        Ok(())
    }

    /// Says what may follow the latest nodes of constrained rows.
    fn constrain_active(&mut self) {
        for &row in &self.active {
            let end = &self.ends[row as usize];
            if let Some(mask) = end.path.as_ref().and_then(ConstrainedPath::mask) {
                self.forest.constrain(end.node, Arc::clone(mask));
            }
        }
    }

    /// One call of the drafter; afterwards `active` are the rows that may get another proposal.
    fn call(
        &mut self,
        executor: &mut dyn Executor,
        idle: &mut Option<DeviceIdle>,
        size: (u32, u32),
        work: impl FnOnce(&mut dyn Drafter, &mut DraftForest) -> Result<(), ExecutorError>,
    ) -> Result<(), Stop> {
        let known = self.forest.len();
        let forest = &mut self.forest;
        let result = catch_unwind(AssertUnwindSafe(|| match executor.drafter() {
            Some(drafter) => work(drafter, forest),
            None => Err(ExecutorError::Malformed("there is no drafter".to_owned())),
        }));
        let failed = |text: String| Stop::Drafter(SpeculationFault::Drafter(text));
        match result {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(failed(error.to_string())),
            Err(panic) => return Err(failed(format!("it panicked: {}", panic_message(panic.as_ref())))),
        }
        self.calls.push(size);
        DeviceIdle::add(idle, executor.idle_before_last_call());
        self.active.clear();
        self.take(known).map_err(|what| Stop::Drafter(SpeculationFault::Contract(what)))
    }

    /// Takes over the nodes from index `known` on.
    fn take(&mut self, known: usize) -> Result<(), String> {
        for (id, node) in self.forest.since(known) {
            let Some(Some(row)) = self.row_of_seed.get(node.seed as usize).copied() else {
                return Err(format!("a proposal for seed {}, which asked for none", node.seed));
            };
            check(node, self.vocab_size)?;
            let (end, proposals) = (&mut self.ends[row as usize], &mut self.rows[row as usize].proposals);
            // a row ends at its limit, where its logits are not finite, and at a forbidden token
            let is_next = node.depth as usize == proposals.len();
            let goes_on = node.proposal.finite && is_next && (proposals.len() as u32) < end.limit;
            let token = node.proposal.token;
            if goes_on && end.path.as_mut().is_none_or(|path| path.advance(token)) {
                proposals.push(node.proposal);
                (end.node, end.grew) = (id, true);
            }
        }
        for (row, end) in self.ends.iter_mut().enumerate() {
            let grew = std::mem::take(&mut end.grew);
            if grew && (self.rows[row].proposals.len() as u32) < end.limit {
                self.active.push(row as u32);
            }
        }
        Ok(())
    }
}

/// Probabilities that pass as such: sums of rounded shares may end slightly outside of 0 to 1.
const PROBABILITIES: std::ops::RangeInclusive<f32> = -0.01..=1.01;

/// What a policy and the target may rely on.
fn check(node: &DraftNode, vocab_size: u32) -> Result<(), String> {
    let proposal = &node.proposal;
    if !proposal.finite {
        return Ok(());
    }
    if proposal.token >= vocab_size {
        return Err(format!("token {} of a vocabulary of {vocab_size}", proposal.token));
    }
    if !PROBABILITIES.contains(&proposal.probability) {
        return Err(format!("a probability of {}", proposal.probability));
    }
    Ok(())
}
