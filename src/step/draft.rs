//! Drafting: predict, execute, correct (AdaSpec §5.1, here per row).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::StepPlan;
use super::constraint::ConstrainedDrafts;
use super::fault::{SpeculationFault, panic_message};
use crate::executor::{Drafter, Executor};
use crate::policy::Scratch;
use crate::protocol::{
    Clock, DeviceIdle, DraftForest, DraftNode, DraftPlace, DraftSeed, DraftSet, DraftShape, DraftedRow,
    ExecutorError, ExecutorInfo, Micros, NodeId, OpenDraft, Proposal, TokenId,
};

/// A plan and what was drafted for it.
#[derive(Debug)]
pub struct Drafted {
    /// The plan.
    pub plan: StepPlan,
    /// Rows with at least one proposal, in the order of the decoding sequences.
    pub rows: Vec<DraftedRow>,
    /// The drafter's side of each of them.
    pub tracks: Vec<DraftTrack>,
    /// What may follow each draft, for those of constrained requests.
    pub(super) constrained: Vec<Option<ConstrainedDrafts>>,
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
            tracks: Vec::new(),
            constrained: Vec::new(),
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
    let mut round = Round::new(&mut drafted.plan, executor.info());
    round.draft_forced(&mut drafted.plan.seeds);
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
    let Round { rows, tracks, bounds, forest, calls, .. } = round;
    for ((row, track), bounds) in rows.into_iter().zip(tracks).zip(bounds) {
        if !row.proposals.is_empty() {
            drafted.rows.push(row);
            drafted.tracks.push(track);
            drafted.constrained.push(bounds.constrained);
        }
    }
    (drafted.forest, drafted.calls) = (forest, calls);
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
    /// The drafter's side of each of them.
    tracks: Vec<DraftTrack>,
    /// For each of them, how far it may go.
    bounds: Vec<RowBounds>,
    /// For each seed, the row it drafts for; `None` where it only fills the cache.
    row_of_seed: Vec<Option<u32>>,
    /// Drafts of the last call that may be fed next; by row, then by draft.
    open: Vec<OpenDraft>,
    forest: DraftForest,
    calls: Vec<(u32, u32)>,
    vocab_size: u32,
    shape: DraftShape,
    /// Whether the drafter can be fed runner-ups, and several drafts of a row at once.
    branches: bool,
    /// Most drafts of one call.
    call_rows_max: usize,
}

/// The drafts of a row as the drafter knows them.
#[derive(Clone, Debug, Default)]
pub struct DraftTrack {
    /// The node of each draft.
    pub nodes: Vec<NodeId>,
    /// Drafts that the drafter was fed.
    pub fed: DraftSet,
}

struct RowBounds {
    /// Most drafts of a chain, most answers of a tree.
    limit: u32,
    /// What may follow each draft of a constrained sequence.
    constrained: Option<ConstrainedDrafts>,
}

impl RowBounds {
    /// Whether a row that was fed so many drafts may be fed another.
    fn may_feed(&self, fed: usize) -> bool {
        fed + 1 < self.limit as usize
    }

    /// The tokens that must follow the committed ones, as far as they are known.
    fn forced(&mut self) -> Vec<TokenId> {
        self.constrained.as_mut().map(ConstrainedDrafts::forced).unwrap_or_default()
    }

    /// Goes on from a node of the row by a token; whether it is allowed.
    fn allow(&mut self, parent: u32, token: TokenId) -> bool {
        self.constrained.as_mut().is_none_or(|drafts| drafts.add(parent as usize, token))
    }
}

impl Round {
    /// Begins a round of the plan's seeds, and gives the constrained ones their masks.
    fn new(plan: &mut StepPlan, info: &ExecutorInfo) -> Round {
        let mut bounds = Vec::with_capacity(plan.seeds.len());
        for seed in plan.seeds.iter_mut().filter(|seed| seed.limit > 0) {
            let mut constrained = ConstrainedDrafts::of(&seed.input);
            seed.mask = constrained.as_mut().and_then(|drafts| drafts.mask(0).cloned());
            bounds.push(RowBounds { limit: seed.limit, constrained });
        }
        let proposing = plan.seeds.iter().filter(|seed| seed.limit > 0);
        let rows: Vec<DraftedRow> = proposing
            .map(|seed| DraftedRow::chain(seed.row, Vec::with_capacity(seed.limit as usize)))
            .collect();
        let mut next = 0..rows.len() as u32;
        Round {
            tracks: vec![DraftTrack::default(); rows.len()],
            bounds,
            row_of_seed: plan
                .seeds
                .iter()
                .map(|seed| (seed.limit > 0).then(|| next.next()).flatten())
                .collect(),
            open: Vec::with_capacity(rows.len()),
            rows,
            forest: DraftForest::default(),
            calls: Vec::new(),
            vocab_size: info.vocab_size,
            shape: plan.granted.shape,
            branches: info.drafter.as_ref().is_some_and(|needs| needs.branches),
            call_rows_max: info.batch_sequences_max as usize,
        }
    }

    /// Drafts what constraints force, for the rows whose drafts are forced as far as they may go. The
    /// drafter only fills its cache for these.
    fn draft_forced(&mut self, seeds: &mut [DraftSeed]) {
        for (index, seed) in seeds.iter_mut().enumerate() {
            let Some(row) = self.row_of_seed[index] else { continue };
            let forced = self.bounds[row as usize].forced();
            if forced.len() < seed.limit as usize {
                continue;
            }
            let mut end: Option<NodeId> = None;
            for (depth, &token) in (0..seed.limit).zip(&forced) {
                let proposal = Proposal::certain(token);
                let id = match end {
                    None => self.forest.add_root(index as u32, proposal),
                    Some(parent) => self.forest.add_child(parent, proposal),
                };
                let node = self.forest.get(id).copied();
                node.iter().for_each(|node| self.add(row, depth, id, node));
                end = Some(id);
            }
            (seed.limit, seed.mask) = (0, None);
            self.row_of_seed[index] = None;
        }
        self.open.clear();
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
        while !self.open.is_empty() {
            keep.clear();
            let (rows, open) = (&self.rows, &self.open);
            SpeculationFault::guard_policy("extend", || {
                plan.policy.expand(plan.step(), rows, open, scratch, &mut keep)
            })
            .map_err(Stop::Policy)?;
            self.feed(&keep, &mut nodes);
            if nodes.is_empty() {
                break;
            }
            let rows = nodes.len() as u32;
            self.call(executor, idle, (rows, rows), |drafter, forest| drafter.extend(&nodes, forest))?;
        }
        Ok(())
    }

    /// Notes that those open drafts are fed, as far as their rows may be; writes their nodes to
    /// `nodes`, ascending, and says what may follow those of constrained rows.
    fn feed(&mut self, keep: &[u32], nodes: &mut Vec<NodeId>) {
        nodes.clear();
        for &index in keep {
            let Some(&OpenDraft { row, draft }) = self.open.get(index as usize) else { continue };
            let (row, draft) = (row as usize, draft as usize);
            let track = &mut self.tracks[row];
            let has_room = nodes.len() < self.call_rows_max && self.bounds[row].may_feed(track.fed.len());
            if track.fed.contains(draft) || !has_room {
                continue;
            }
            track.fed.insert(draft);
            let node = track.nodes[draft];
            nodes.push(node);
            let constrained = self.bounds[row].constrained.as_mut();
            if let Some(mask) = constrained.and_then(|drafts| drafts.mask(draft + 1)) {
                self.forest.constrain(node, Arc::clone(mask));
            }
        }
        nodes.sort_unstable();
    }

    /// One call of the drafter; afterwards `open` are the new drafts that may be fed.
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
        self.open.clear();
        self.take(known).map_err(|what| Stop::Drafter(SpeculationFault::Contract(what)))
    }

    /// Takes over the nodes from index `known` on, in a tree with their runner-ups.
    fn take(&mut self, known: usize) -> Result<(), String> {
        for index in known..self.forest.len() {
            let id = NodeId(index as u32);
            let Some(&node) = self.forest.get(id) else { break };
            let Some(Some(row)) = self.row_of_seed.get(node.seed as usize).copied() else {
                return Err(format!("a proposal for seed {}, which asked for none", node.seed));
            };
            check(&node, self.vocab_size)?;
            if let Some(parent) = self.parent_in_row(row, &node) {
                self.add(row, parent, id, &node);
                let Proposal { token, runner_up, finite, .. } = node.proposal;
                if self.shape == DraftShape::Tree && finite && token != runner_up {
                    let id = self.forest.add_runner_up(id);
                    let beside = self.forest.get(id).copied();
                    beside.iter().for_each(|node| self.add(row, parent, id, node));
                }
            }
        }
        self.close_chains();
        self.open.sort_unstable_by_key(|draft| (draft.row, draft.draft));
        Ok(())
    }

    /// The place in a row of what a node follows, as [`DraftPlace::parent`] has it; `None` if the row
    /// did not take that over.
    fn parent_in_row(&self, row: u32, node: &DraftNode) -> Option<u32> {
        let Some(parent) = node.parent else { return Some(0) };
        let nodes = &self.tracks[row as usize].nodes;
        nodes.iter().rposition(|&known| known == parent).map(|draft| draft as u32 + 1)
    }

    /// Adds a draft to a row, unless it is not finite or forbidden, or the row is full.
    fn add(&mut self, row: u32, parent: u32, id: NodeId, node: &DraftNode) {
        let (drafts, bounds) = (&mut self.rows[row as usize], &mut self.bounds[row as usize]);
        let draft = drafts.proposals.len();
        let has_room = match self.shape {
            DraftShape::Chain => parent as usize == draft && draft < bounds.limit as usize,
            DraftShape::Tree => node.depth < bounds.limit && draft < DraftSet::DRAFTS_MAX,
        };
        if !node.proposal.finite || !has_room || !bounds.allow(parent, node.proposal.token) {
            return;
        }
        drafts.proposals.push(node.proposal);
        if self.shape == DraftShape::Tree {
            drafts.places.push(DraftPlace { parent, depth: node.depth, rank: node.rank });
        }
        let track = &mut self.tracks[row as usize];
        track.nodes.push(id);
        let may_go_on = node.depth + 1 < bounds.limit && bounds.may_feed(track.fed.len());
        if may_go_on && (self.branches || node.rank == 0) {
            self.open.push(OpenDraft { row, draft: draft as u32 });
        }
    }

    /// Of several drafts that a drafter of chains made at once only the last can be fed.
    fn close_chains(&mut self) {
        if self.branches {
            return;
        }
        let (tracks, rows, shape) = (&self.tracks, &self.rows, self.shape);
        self.open.retain(|&OpenDraft { row, draft }| {
            let behind = |later: usize| rows[row as usize].place(later).parent == draft + 1;
            let drafts = tracks[row as usize].nodes.len();
            match shape {
                DraftShape::Chain => draft as usize + 1 == drafts,
                DraftShape::Tree => !(draft as usize + 1..drafts).any(behind),
            }
        });
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
