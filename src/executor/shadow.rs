//! An executor whose "model" is a hash of the tokens before it.
//!
//! Each KV slot holds a rolling hash of everything up to its token, and the next token
//! is a function of that hash. A scheduler that hands out a block twice, reads a freed
//! block, or loses a token gets other tokens than [`ShadowExecutor::expect`] names, so
//! this is the sharpest test there is of everything above the seam, at no cost. It can
//! also be told to fail. A draft head of its kind keeps its hashes in the target's slots. It has no
//! logits and ignores masks. Not for serving.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use super::contract::BatchContract;
use super::{Drafter, Executor, Target};
use crate::protocol::{
    BLOCK_TOKENS, BlockId, Compaction, DraftForest, DraftSeed, DrafterNeeds, ExecutorError, ExecutorInfo,
    ExecutorMemory, ModelRole, NodeId, Proposal, RequestId, SamplingParams, SequenceInput, TokenId, Verdict,
    VerifyRow,
};
use crate::random::SplitMix64;

/// What [`ShadowExecutor`] should pretend.
#[derive(Clone, Debug)]
pub struct ShadowOptions {
    /// Facts; tokens are below `vocab_size`.
    pub info: ExecutorInfo,
    /// Share of positions at which the draft proposes the target's token, 0 to 1.
    pub agreement: f64,
    /// Rows of this request come back as not finite.
    pub not_finite: Option<RequestId>,
    /// The `n`th call of `verify` (from 0) and all later ones fail.
    pub fails_at_call: Option<u64>,
}

impl ShadowOptions {
    /// A small executor with a draft that is right four times in five.
    pub fn small(target_blocks: u32, draft_blocks: u32) -> ShadowOptions {
        ShadowOptions {
            info: ExecutorInfo {
                backend: "shadow".to_owned(),
                device: "a hash function".to_owned(),
                vocab_size: 1000,
                context_tokens_max: 4096,
                block_tokens: BLOCK_TOKENS,
                target_blocks,
                drafter: (draft_blocks > 0).then(|| DrafterNeeds::kv_cache(draft_blocks)),
                batch_tokens_max: 512,
                batch_sequences_max: 64,
                draft_tokens_max: 16,
                sampled_rows_max: u32::MAX,
                memory: ExecutorMemory::default(),
            },
            agreement: 0.8,
            not_finite: None,
            fails_at_call: None,
        }
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct ShadowExecutor {
    options: ShadowOptions,
    contract: BatchContract,
    target: Vec<u64>,
    draft: Vec<u64>,
    round: Vec<RoundRow>,
    /// Seeds of the nodes of one call.
    extended: Vec<u32>,
    /// Of the nodes of the round that were fed, where they stand in the cache.
    fed: HashMap<NodeId, u32>,
    calls: u64,
}

/// Where a draft row stands within a round.
#[derive(Debug)]
struct RoundRow {
    blocks: Vec<BlockId>,
    sampling: std::sync::Arc<SamplingParams>,
    /// Where its first proposal stands.
    end: u32,
    /// Nodes that it was fed.
    fed: u32,
}

const START: u64 = 0x9E37_79B9_7F4A_7C15;

fn mix(state: u64, value: u64) -> u64 {
    SplitMix64::new(state ^ value.wrapping_mul(0xD6E8_FEB8_6659_FD93)).next_u64()
}

fn slot(blocks: &[BlockId], position: u32) -> usize {
    let block = blocks[(position / BLOCK_TOKENS) as usize];
    block.index() * BLOCK_TOKENS as usize + (position % BLOCK_TOKENS) as usize
}

impl ShadowExecutor {
    /// With caches full of noise.
    pub fn new(options: ShadowOptions) -> ShadowExecutor {
        let noise = |blocks: u32| (0..u64::from(blocks * BLOCK_TOKENS)).map(|i| mix(i, 7)).collect();
        ShadowExecutor {
            target: noise(options.info.target_blocks),
            draft: noise(options.info.draft_blocks()),
            contract: BatchContract::new(&options.info),
            round: Vec::new(),
            extended: Vec::new(),
            fed: HashMap::new(),
            calls: 0,
            options,
        }
    }

    /// The first `count` output tokens for a prompt, whatever schedule produced them.
    pub fn expect(&self, prompt: &[TokenId], sampling: &SamplingParams, count: usize) -> Vec<TokenId> {
        let mut state = prompt.iter().fold(START, |state, &token| mix(state, token.into()));
        let mut output = Vec::with_capacity(count);
        for _ in 0..count {
            let token = self.sample(state, sampling);
            output.push(token);
            state = mix(state, token.into());
        }
        output
    }

    /// Where the drafter's states are.
    fn draft_cache(&mut self) -> &mut Vec<u64> {
        if self.options.info.has_draft_head() { &mut self.target } else { &mut self.draft }
    }

    fn sample(&self, state: u64, sampling: &SamplingParams) -> TokenId {
        let seed = if sampling.temperature > 0.0 { sampling.seed } else { 0 };
        (mix(state, seed ^ 0x5EED) % u64::from(self.options.info.vocab_size)) as TokenId
    }

    fn propose(&self, state: u64, sampling: &SamplingParams) -> Proposal {
        let right = self.sample(state, sampling);
        let wrong = (right + 1) % self.options.info.vocab_size;
        let agrees = (mix(state, 0xD12A) as f64 / u64::MAX as f64) < self.options.agreement;
        let (token, runner_up) = if agrees { (right, wrong) } else { (wrong, right) };
        let probability = self.options.agreement as f32;
        Proposal { token, probability, margin: probability, runner_up, finite: true }
    }

    /// Feeds one row's tokens and returns the state after each.
    fn feed(cache: &mut [u64], input: &SequenceInput, committed: usize, tree: Option<&[u32]>) -> Vec<u64> {
        let before = if input.start == 0 { START } else { cache[slot(&input.blocks, input.start - 1)] };
        let mut states = Vec::with_capacity(input.tokens.len());
        for (index, &token) in input.tokens.iter().enumerate() {
            let parent = match (index, tree) {
                (0, _) => before,
                (_, Some(parents)) if index >= committed => {
                    states[committed - 1 + parents[index - committed] as usize]
                }
                _ => states[index - 1],
            };
            let state = mix(parent, token.into());
            states.push(state);
            cache[slot(&input.blocks, input.start + index as u32)] = state;
        }
        states
    }

    fn judge(&self, row: &VerifyRow, states: &[u64]) -> Verdict {
        let committed = row.input.tokens.len() - row.drafts as usize;
        let drafts = &row.input.tokens[committed..];
        if !row.samples() {
            return Verdict { finite: true, ..Verdict::default() };
        }
        if self.options.not_finite == Some(row.input.request) {
            return Verdict::default();
        }
        let mut verdict = Verdict { finite: true, ..Verdict::default() };
        let mut node = 0u32;
        loop {
            let token = self.sample(states[committed - 1 + node as usize], &row.input.sampling);
            verdict.tokens.push(token);
            let child = (0..row.drafts).find(|&draft| {
                let parent = row.tree.as_ref().map_or(draft, |parents| parents[draft as usize]);
                parent == node && drafts[draft as usize] == token
            });
            let Some(draft) = child else { return verdict };
            verdict.accepted += 1;
            if row.tree.is_some() {
                verdict.path.push(draft);
            }
            node = draft + 1;
        }
    }
}

impl Executor for ShadowExecutor {
    fn info(&self) -> &ExecutorInfo {
        &self.options.info
    }

    fn target(&mut self) -> &mut dyn Target {
        self
    }

    fn drafter(&mut self) -> Option<&mut dyn Drafter> {
        if self.options.info.drafter.is_some() { Some(self) } else { None }
    }

    fn logits(&mut self, model: ModelRole, input: &SequenceInput) -> Result<Vec<f32>, ExecutorError> {
        self.contract.logits(model, input)?;
        let cache = match model {
            ModelRole::Target => &mut self.target,
            ModelRole::Draft => &mut self.draft,
        };
        let states = Self::feed(cache, input, input.tokens.len(), None);
        let state = *states.last().ok_or_else(|| ExecutorError::Malformed("no tokens".to_owned()))?;
        let mut logits = vec![0.0; self.options.info.vocab_size as usize];
        logits[self.sample(state, &input.sampling) as usize] = 1.0;
        Ok(logits)
    }
}

impl Target for ShadowExecutor {
    fn verify(&mut self, rows: &[VerifyRow], out: &mut Vec<Verdict>) -> Result<(), ExecutorError> {
        let call = self.calls;
        self.calls += 1;
        if self.options.fails_at_call.is_some_and(|at| call >= at) {
            return Err(ExecutorError::Device(format!("told to fail at call {call}")));
        }
        self.contract.verify(rows)?;
        out.clear();
        for row in rows {
            let committed = row.input.tokens.len() - row.drafts as usize;
            let states = Self::feed(&mut self.target, &row.input, committed, row.tree.as_deref());
            out.push(self.judge(row, &states));
        }
        Ok(())
    }

    fn compact(&mut self, moves: &[Compaction]) -> Result<(), ExecutorError> {
        self.contract.compact(moves)?;
        for one in moves {
            for (to, &from) in one.path.iter().enumerate() {
                let state = self.target[slot(&one.blocks, one.first + from)];
                self.target[slot(&one.blocks, one.first + to as u32)] = state;
            }
        }
        Ok(())
    }
}

impl Drafter for ShadowExecutor {
    fn start(&mut self, seeds: &[DraftSeed], forest: &mut DraftForest) -> Result<(), ExecutorError> {
        self.contract.start(seeds)?;
        self.round.clear();
        self.fed.clear();
        for (index, seed) in seeds.iter().enumerate() {
            let states = Self::feed(self.draft_cache(), &seed.input, seed.input.tokens.len(), None);
            let state = *states.last().ok_or_else(|| ExecutorError::Malformed("no tokens".to_owned()))?;
            if seed.limit > 0 {
                forest.add_root(index as u32, self.propose(state, &seed.input.sampling));
            }
            self.round.push(RoundRow {
                blocks: seed.input.blocks.clone(),
                sampling: seed.input.sampling.clone(),
                end: seed.input.start + seed.input.tokens.len() as u32,
                fed: 0,
            });
        }
        Ok(())
    }

    fn extend(&mut self, nodes: &[NodeId], forest: &mut DraftForest) -> Result<(), ExecutorError> {
        self.contract.extend(nodes, forest, &mut self.extended)?;
        let extended = std::mem::take(&mut self.extended);
        for (&id, &seed) in nodes.iter().zip(&extended) {
            let node = forest.get(id).copied();
            let node = node.ok_or_else(|| ExecutorError::Malformed(format!("no draft node {}", id.0)))?;
            let row = &mut self.round[seed as usize];
            let before = match node.parent {
                None => row.end - 1,
                Some(parent) => *self.fed.get(&parent).ok_or_else(|| not_fed(parent))?,
            };
            let place = row.end + row.fed;
            row.fed += 1;
            let [before, slot] = [before, place].map(|position| slot(&row.blocks, position));
            self.fed.insert(id, place);
            let sampling = row.sampling.clone();
            let cache = self.draft_cache();
            let state = mix(cache[before], node.proposal.token.into());
            cache[slot] = state;
            forest.add_child(id, self.propose(state, &sampling));
        }
        self.extended = extended;
        Ok(())
    }

    fn settle(&mut self, accepted: &[NodeId], forest: &DraftForest) -> Result<(), ExecutorError> {
        for &id in accepted {
            let (Some(node), Some(&from)) = (forest.get(id), self.fed.get(&id)) else { continue };
            let row = &self.round[node.seed as usize];
            let [from, to] = [from, row.end + node.depth].map(|position| slot(&row.blocks, position));
            let cache = self.draft_cache();
            cache[to] = cache[from];
        }
        Ok(())
    }
}

fn not_fed(node: NodeId) -> ExecutorError {
    ExecutorError::Malformed(format!("draft node {} was not fed", node.0))
}
