//! An executor that computes nothing and takes the time that a real one would.
//!
//! Every call moves a [`VirtualClock`] by what the profile's cost model says, or by what a
//! machine that differs from its profile would take ([`TimeError`]). A draft head ([`drafter_of`]) makes
//! as many drafts per call as its profile says, and reads the states of all tokens that were committed
//! since it last drafted. Which drafts are accepted comes from an [`AcceptanceProcess`]; a recorded draft
//! head makes the chain that was recorded where the round starts, and no longer one. Token ids are synthetic: the target's token
//! at a position is a pure function of request and position, so a step costs the host
//! nothing but the scheduler's and the policy's own work.

mod acceptance;
mod clock;
mod playback;
mod timing;

#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use acceptance::{AcceptanceOptions, AcceptanceProcess, Confidence, SEGMENT_TOKENS};
pub use clock::VirtualClock;
pub use playback::{Playback, Position};
pub use timing::TimeError;

use crate::executor::{BatchContract, Drafter, Executor, Target};
use crate::protocol::{
    Compaction, DraftForest, DraftSeed, DrafterNeeds, ExecutorError, ExecutorInfo, ModelRole, NodeId,
    Proposal, RequestId, RowRole, SequenceInput, TokenId, Verdict, VerifyRow,
};
use crate::sampling::{SampledToken, walk_chain, walk_tree};
use crate::timing::cost_model::{CostModel, LatencyModel, Work, prefill_attended};
use timing::Timer;

/// Spreads request numbers over token ids; odd, so that no two requests begin alike and
/// the prefix cache never takes one for the other.
const REQUEST_STRIDE: u32 = 0x9E37_79B1;
/// Turns the right token of a position into a wrong one.
const WRONG_BIT: u32 = 1 << 30;
/// Turns it into another wrong one, or one that is right elsewhere.
const OTHER_WRONG_BIT: u32 = 1 << 29;

/// Vocabulary of a [`VirtualExecutor`], in tokens: the right ones are below half of it.
pub const VOCAB_SIZE: u32 = 2 * WRONG_BIT;

/// What a [`VirtualExecutor`] pretends.
#[derive(Clone, Debug)]
pub struct VirtualOptions {
    /// Facts; the vocabulary has [`VOCAB_SIZE`] tokens.
    pub info: ExecutorInfo,
    /// The profile's times.
    pub cost: CostModel,
    /// How the machine differs from them.
    pub error: TimeError,
    /// What is accepted.
    pub acceptance: AcceptanceOptions,
    /// Of all randomness.
    pub seed: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct VirtualExecutor {
    info: ExecutorInfo,
    contract: BatchContract,
    timer: Timer,
    process: AcceptanceProcess,
    clock: Arc<VirtualClock>,
    round: Vec<RoundRow>,
    /// Seeds of the nodes of one call.
    extended: Vec<u32>,
    /// Tokens that were committed since the last round.
    unread_tokens: u64,
}

/// What the drafter of a profile has to be given: a draft model has a KV pool of `kv_blocks`, a draft
/// head reads hidden states and has none.
pub fn drafter_of(draft: &LatencyModel, kv_blocks: u32) -> DrafterNeeds {
    let Some(head) = draft.terms().head else {
        return DrafterNeeds { branches: true, ..DrafterNeeds::kv_cache(kv_blocks) };
    };
    let block_tokens = if draft.drafts_blocks() { head.drafts_per_call } else { 0 };
    DrafterNeeds { block_tokens, branches: block_tokens == 0, ..DrafterNeeds::hidden_states(vec![0]) }
}

/// Where a draft row stands within a round.
#[derive(Clone, Copy, Debug)]
struct RoundRow {
    request: RequestId,
    /// Position of the first proposal.
    start: u32,
}

impl VirtualExecutor {
    /// An executor that spends the time of `clock`.
    pub fn new(options: VirtualOptions, clock: Arc<VirtualClock>) -> VirtualExecutor {
        VirtualExecutor {
            contract: BatchContract::new(&options.info),
            info: options.info,
            timer: Timer::new(options.cost, options.error, options.seed),
            process: AcceptanceProcess::new(options.acceptance, options.seed),
            clock,
            round: Vec::new(),
            extended: Vec::new(),
            unread_tokens: 0,
        }
    }

    /// The prompt of a request, as this executor's target would continue it.
    pub fn prompt(request: RequestId, tokens: u32) -> Arc<[TokenId]> {
        (0..tokens).map(|position| right_token(request, position)).collect()
    }

    /// Spends what the host spends on a step beside the models. To be called once per step
    /// by the code that drives the steps: no call of this trait knows where a step ends.
    pub fn spend_host_time(&mut self) {
        let micros = self.timer.host_us();
        self.clock.advance(micros);
    }

    /// Drafts of a sequence that the first call of a round makes.
    fn drafts_per_call(&self) -> u32 {
        self.info.drafter.as_ref().map_or(1, |needs| needs.block_tokens.max(1))
    }

    /// Draft `depth` of a round whose first draft is for the position `start`, if there is one.
    fn propose(&mut self, request: RequestId, start: u32, depth: u32) -> Option<Proposal> {
        let drawn = self.process.draft(request, start, depth)?;
        let right = right_token(request, start.wrapping_add(depth));
        let wrong = right ^ WRONG_BIT;
        let (token, runner_up) = match (drawn.accepted, drawn.runner_up_accepted) {
            (true, _) => (right, wrong),
            (false, true) => (wrong, right),
            (false, false) => (wrong, right ^ OTHER_WRONG_BIT),
        };
        let probability = drawn.probability;
        // as if there were two candidates only
        let margin = (2.0 * probability - 1.0).max(0.0);
        Some(Proposal { token, probability, margin, runner_up, finite: true })
    }

    /// Adds what the first call of a round proposes for a seed.
    fn add_first(
        &mut self,
        index: u32,
        request: RequestId,
        start: u32,
        limit: u32,
        forest: &mut DraftForest,
    ) {
        let mut last = None;
        for depth in 0..limit.min(self.drafts_per_call()) {
            let Some(proposal) = self.propose(request, start, depth) else { break };
            last = Some(match last {
                None => forest.add_root(index, proposal),
                Some(before) => forest.add_child(before, proposal),
            });
        }
    }
}

impl Executor for VirtualExecutor {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    fn target(&mut self) -> &mut dyn Target {
        self
    }

    fn drafter(&mut self) -> Option<&mut dyn Drafter> {
        if self.info.drafter.is_some() { Some(self) } else { None }
    }

    fn logits(&mut self, _model: ModelRole, _input: &SequenceInput) -> Result<Vec<f32>, ExecutorError> {
        Err(ExecutorError::Malformed("the virtual executor has no logits".to_owned()))
    }
}

impl Target for VirtualExecutor {
    fn verify(&mut self, rows: &[VerifyRow], out: &mut Vec<Verdict>) -> Result<(), ExecutorError> {
        self.contract.verify(rows)?;
        out.clear();
        let mut work = Work::default();
        for row in rows {
            let (start, tokens) = extent(&row.input);
            if row.role == RowRole::Decode {
                let (context, queries) = (u64::from(start) + 1, u64::from(tokens));
                work.rows += tokens;
                work.context_tokens += context;
                work.attended_tokens += queries * context + queries * (queries - 1) / 2;
            } else {
                work.prefill_tokens += tokens;
                work.prefill_attended_tokens += prefill_attended(start, tokens);
            }
            let verdict = judge(row, start + tokens - row.drafts);
            self.unread_tokens += u64::from(tokens - row.drafts + verdict.accepted);
            out.push(verdict);
        }
        let micros = self.timer.target_us(&work);
        self.clock.advance(micros);
        Ok(())
    }

    fn compact(&mut self, moves: &[Compaction]) -> Result<(), ExecutorError> {
        self.contract.compact(moves)
    }
}

impl Drafter for VirtualExecutor {
    fn start(&mut self, seeds: &[DraftSeed], forest: &mut DraftForest) -> Result<(), ExecutorError> {
        self.contract.start(seeds)?;
        self.round.clear();
        let mut work = Work { rows: seeds.len() as u32, ..Work::default() };
        for (index, seed) in seeds.iter().enumerate() {
            let (start, tokens) = extent(&seed.input);
            let request = seed.input.request;
            let position = start + tokens;
            work.context_tokens += u64::from(position);
            work.prefill_tokens += tokens - 1;
            work.prefill_attended_tokens += prefill_attended(start, tokens - 1);
            self.add_first(index as u32, request, position, seed.limit, forest);
            self.round.push(RoundRow { request, start: position });
        }
        work.attended_tokens = work.context_tokens;
        let unread_tokens = std::mem::take(&mut self.unread_tokens).saturating_sub(work.rows.into());
        let round_us = self.timer.draft_round_us() + self.timer.states_us(unread_tokens);
        let micros = self.timer.draft_us(&work) + round_us;
        self.clock.advance(micros);
        Ok(())
    }

    fn extend(&mut self, nodes: &[NodeId], forest: &mut DraftForest) -> Result<(), ExecutorError> {
        let mut seeds = std::mem::take(&mut self.extended);
        self.contract.extend(nodes, forest, &mut seeds)?;
        let mut work = Work { rows: seeds.len() as u32, ..Work::default() };
        for (&node, &seed) in nodes.iter().zip(&seeds) {
            let RoundRow { request, start } = self.round[seed as usize];
            let depth = forest.get(node).map_or(0, |node| node.depth + 1);
            work.context_tokens += u64::from(start + depth);
            if let Some(proposal) = self.propose(request, start, depth) {
                forest.add_child(node, proposal);
            }
        }
        self.extended = seeds;
        work.attended_tokens = work.context_tokens;
        let micros = self.timer.draft_us(&work);
        self.clock.advance(micros);
        Ok(())
    }
}

/// The target's token at a position.
fn right_token(request: RequestId, position: u32) -> TokenId {
    (request.0 as u32).wrapping_mul(REQUEST_STRIDE).wrapping_add(position) % WRONG_BIT
}

/// First position and number of a row's tokens.
fn extent(input: &SequenceInput) -> (u32, u32) {
    (input.start, input.tokens.len() as u32)
}

/// Accepts what equals the target's own tokens, of which the first stands at `next`.
fn judge(row: &VerifyRow, next: u32) -> Verdict {
    if !row.samples() {
        return Verdict { finite: true, ..Verdict::default() };
    }
    let drafts = &row.input.tokens[row.input.tokens.len() - row.drafts as usize..];
    let sample = |depth: usize| SampledToken {
        token: right_token(row.input.request, next + depth as u32),
        finite: true,
    };
    match &row.tree {
        None => walk_chain(drafts, sample),
        Some(parents) => walk_tree(drafts, parents, |_, path| sample(path.len())),
    }
}
