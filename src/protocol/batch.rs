//! Data of the executor interface: inputs and results of a forward pass.
//!
//! Everything is in tokens and block ids. No tensors appear here: sampling and verification
//! are part of the executor, because on a GPU they must stay on the device.

use std::sync::Arc;

use super::{BlockId, RequestId, SamplingParams, TokenId, TokenMask};

/// Static properties of an executor.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct ExecutorInfo {
    /// `cpu`, `cuda` or `virtual`; part of the profile's fingerprint.
    pub backend: String,
    /// Human-readable device name.
    pub device: String,
    /// Vocabulary size, in tokens.
    pub vocab_size: u32,
    /// Context length: prompt plus output, in tokens.
    pub context_tokens_max: u32,
    /// Tokens per KV block, for both models.
    pub block_tokens: u32,
    /// Blocks in the target's KV pool.
    pub target_blocks: u32,
    /// What the drafter needs to be told; `None` without one.
    pub drafter: Option<DrafterNeeds>,
    /// Most input tokens in one call, over all sequences.
    pub batch_tokens_max: u32,
    /// Most sequences per call.
    pub batch_sequences_max: u32,
    /// Most draft tokens per sequence that one call verifies.
    pub draft_tokens_max: u32,
    /// Most rows of one call behind which the target samples, over all sequences: their last committed
    /// tokens and the drafts that are verified.
    pub sampled_rows_max: u32,
    /// Memory that it holds for its whole life.
    pub memory: ExecutorMemory,
}

/// Memory that an executor holds for its whole life, as allocated, in bytes. Working memory of passes
/// is not part of it; a part that an executor does not have is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ExecutorMemory {
    /// The target's weights. On the CPU its packed matrices: norms and biases are left out, which are
    /// thousandths of them, and the embedding, which stays in the model's file.
    pub target_weights: u64,
    /// The weights of a draft model or head, counted likewise; what a head shares with its target is
    /// the target's.
    pub draft_weights: u64,
    /// The target's KV pool.
    pub target_kv: u64,
    /// The KV pool of a draft model, or what a head keeps for the target's blocks and for the blocks
    /// that it drafts.
    pub draft_kv: u64,
    /// The target's hidden states that a head has not read yet.
    pub hidden_states: u64,
}

impl ExecutorMemory {
    /// Each part with its name in the metrics.
    pub fn parts(&self) -> [(&'static str, u64); 5] {
        [
            ("target_weights", self.target_weights),
            ("draft_weights", self.draft_weights),
            ("target_kv", self.target_kv),
            ("draft_kv", self.draft_kv),
            ("hidden_states", self.hidden_states),
        ]
    }
}

impl VerifyRow {
    /// A plain decode step: samples the token that follows the input.
    pub fn decode(input: SequenceInput) -> VerifyRow {
        let (role, masks) = (RowRole::Decode, Vec::new());
        VerifyRow { input, role, drafts: 0, tree: None, masks, next: None }
    }

    /// A prefill chunk, and the committed token that follows it, if there is one.
    pub fn prefill(input: SequenceInput, next: Option<TokenId>) -> VerifyRow {
        VerifyRow { role: RowRole::Prefill, next, ..VerifyRow::decode(input) }
    }

    /// Whether the target samples the token that follows the input.
    pub fn samples(&self) -> bool {
        self.next.is_none()
    }

    /// What the target may sample at a node: 0 is the last committed token, `j > 0` is draft
    /// `j - 1`. `None`: any token.
    pub fn mask(&self, node: usize) -> Option<&Arc<TokenMask>> {
        self.masks.get(node)?.as_ref()
    }

    /// Whether there is one mask per node or none at all, and each is for `vocab_size` tokens.
    pub fn masks_fit(&self, vocab_size: u32) -> bool {
        let complete = self.masks.is_empty() || self.masks.len() == self.drafts as usize + 1;
        complete && self.masks.iter().flatten().all(|mask| mask.vocab_size() == vocab_size)
    }
}

impl ExecutorInfo {
    /// Blocks in the draft model's KV pool; 0 when drafts do not come from a model.
    pub fn draft_blocks(&self) -> u32 {
        self.drafter.as_ref().map_or(0, |needs| needs.kv_blocks)
    }

    /// Whether there is a draft model.
    pub fn has_draft_model(&self) -> bool {
        self.draft_blocks() > 0
    }

    /// Whether drafting takes the device's time: by a draft model or a draft head.
    pub fn drafts_on_device(&self) -> bool {
        self.has_draft_model() || self.has_draft_head()
    }

    /// Whether there is a draft head, which reads hidden states of the target.
    pub fn has_draft_head(&self) -> bool {
        self.drafter.as_ref().is_some_and(DrafterNeeds::reads_hidden_states)
    }
}

/// What a drafter has to be given for each sequence that it drafts for.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct DrafterNeeds {
    /// Blocks in a paged KV pool of its own, which the scheduler hands out; 0 without one. A
    /// drafter with a pool is fed every committed token once, and lags behind while it is not.
    pub kv_blocks: u32,
    /// Whether each seed must carry all committed tokens ([`SequenceInput::history`]).
    pub tokens: bool,
    /// Target layers before which it reads the hidden states of every committed token, from 0. Such
    /// a drafter keeps what it needs of them in the target's blocks, so that whatever the target has
    /// cached, it has as well: it has no blocks of its own, is given the target's, and never lags
    /// behind.
    pub hidden_layers: Vec<u32>,
    /// Most proposals of one call of a drafter that proposes several at once; 0 if each needs a call
    /// of its own.
    pub block_tokens: u32,
    /// Whether a call may feed several nodes of a seed, runner-ups among them. Else only the latest
    /// choice of each seed can be fed.
    pub branches: bool,
}

impl DrafterNeeds {
    /// A draft model with a KV pool of so many blocks.
    pub fn kv_cache(kv_blocks: u32) -> DrafterNeeds {
        DrafterNeeds { kv_blocks, ..DrafterNeeds::default() }
    }

    /// A draft head that reads the hidden states before these layers.
    pub fn hidden_states(hidden_layers: Vec<u32>) -> DrafterNeeds {
        DrafterNeeds { hidden_layers, ..DrafterNeeds::default() }
    }

    /// Whether the drafter reads hidden states of the target.
    pub fn reads_hidden_states(&self) -> bool {
        !self.hidden_layers.is_empty()
    }

    /// The committed tokens and nothing else, as prompt lookup does.
    pub fn tokens() -> DrafterNeeds {
        DrafterNeeds { tokens: true, ..DrafterNeeds::default() }
    }
}

/// One sequence's part of a forward pass: its input tokens and the blocks for their keys and
/// values.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceInput {
    /// Id of the request.
    pub request: RequestId,
    /// Input tokens; at least one. `tokens[i]` is at absolute position `start + i`
    /// (for a tree see [`VerifyRow::tree`]).
    pub tokens: Vec<TokenId>,
    /// Absolute position of `tokens[0]`; all earlier positions are in the cache.
    pub start: u32,
    /// The sequence's blocks, in order; cover at least `start + tokens.len()` positions.
    pub blocks: Vec<BlockId>,
    /// Sampling parameters.
    pub sampling: Arc<SamplingParams>,
    /// Committed tokens of prompt and output, up to and including position
    /// `start + committed inputs - 1`; only where [`SamplingParams::needs_history`].
    pub history: Option<History>,
}

/// Tokens that penalties count and constraints read.
#[derive(Clone, Debug, PartialEq)]
pub struct History {
    /// Prompt and committed output.
    pub tokens: Vec<TokenId>,
    /// Number of leading tokens that belong to the prompt.
    pub prompt_tokens: u32,
}

/// The root of one sequence's drafts in a step.
#[derive(Clone, Debug, PartialEq)]
pub struct DraftSeed {
    /// Index of the step's row that it drafts for.
    pub row: u32,
    /// Committed tokens that the drafter has not seen yet (catch-up); the last committed token
    /// is the last of them when anything is to be proposed.
    pub input: SequenceInput,
    /// Most proposals; 0: only fill the drafter's cache.
    pub limit: u32,
    /// The tokens that its first proposal may be; `None`: any.
    pub mask: Option<Arc<TokenMask>>,
}

/// Index of a node in a [`DraftForest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

/// One proposal and what it follows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DraftNode {
    /// Index of its seed.
    pub seed: u32,
    /// The proposal before it; `None` directly behind the committed tokens.
    pub parent: Option<NodeId>,
    /// Proposals before it on its path.
    pub depth: u32,
    /// 0 for the drafter's choice, 1 for the runner-up beside it.
    pub rank: u32,
    /// The proposal.
    pub proposal: Proposal,
}

/// All proposals of a step, in the order in which they were made. A chain is a tree of width one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DraftForest {
    nodes: Vec<DraftNode>,
    /// What may follow a node, for constrained sequences only; ascending.
    masks: Vec<(NodeId, Arc<TokenMask>)>,
}

impl DraftForest {
    /// Forgets all nodes and masks, and keeps the memory.
    pub fn clear(&mut self) {
        self.nodes.clear();
        self.masks.clear();
    }

    /// Nodes so far.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether nothing was proposed.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// A node; `None` for an id of another forest.
    pub fn get(&self, id: NodeId) -> Option<&DraftNode> {
        self.nodes.get(id.0 as usize)
    }

    /// The nodes from index `first` on, with their ids.
    pub fn since(&self, first: usize) -> impl Iterator<Item = (NodeId, &DraftNode)> {
        self.nodes.iter().enumerate().skip(first).map(|(index, node)| (NodeId(index as u32), node))
    }

    /// Adds a proposal that follows the committed tokens of a seed.
    pub fn add_root(&mut self, seed: u32, proposal: Proposal) -> NodeId {
        self.add(DraftNode { seed, parent: None, depth: 0, rank: 0, proposal })
    }

    /// Adds a proposal that follows another.
    ///
    /// # Panics
    /// When `parent` is a node of another forest.
    pub fn add_child(&mut self, parent: NodeId, proposal: Proposal) -> NodeId {
        let before = self.nodes[parent.0 as usize];
        let (seed, depth) = (before.seed, before.depth + 1);
        self.add(DraftNode { seed, parent: Some(parent), depth, rank: 0, proposal })
    }

    /// Adds the runner-up of a drafter's choice beside it. It has the choice's probability and margin,
    /// and the choice as its own runner-up.
    ///
    /// # Panics
    /// When `choice` is a node of another forest.
    pub fn add_runner_up(&mut self, choice: NodeId) -> NodeId {
        let choice = self.nodes[choice.0 as usize];
        let Proposal { token, runner_up, .. } = choice.proposal;
        let proposal = Proposal { token: runner_up, runner_up: token, ..choice.proposal };
        self.add(DraftNode { rank: 1, proposal, ..choice })
    }

    /// Allows only the tokens of `mask` to follow a node. To be called before the drafter
    /// extends a node of a constrained sequence.
    pub fn constrain(&mut self, node: NodeId, mask: Arc<TokenMask>) {
        match self.masks.binary_search_by_key(&node, |(id, _)| *id) {
            Ok(index) => self.masks[index].1 = mask,
            Err(index) => self.masks.insert(index, (node, mask)),
        }
    }

    /// The tokens that may follow a node; `None`: any.
    pub fn mask(&self, node: NodeId) -> Option<&Arc<TokenMask>> {
        let index = self.masks.binary_search_by_key(&node, |(id, _)| *id).ok()?;
        Some(&self.masks[index].1)
    }

    fn add(&mut self, node: DraftNode) -> NodeId {
        self.nodes.push(node);
        NodeId(self.nodes.len() as u32 - 1)
    }
}

/// The draft model's proposal for one position of one sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Proposal {
    /// The draft's choice under the request's noise, which the target samples with, too.
    pub token: TokenId,
    /// Draft probability of `token` after the request's sampling parameters; at
    /// temperature 0 the plain softmax at temperature 1.
    pub probability: f32,
    /// Difference between the draft's two largest probabilities, in the same distribution.
    pub margin: f32,
    /// The draft's runner-up under the same noise, for trees.
    pub runner_up: TokenId,
    /// Whether the logits were all finite and a token was allowed; if not, the proposal must not
    /// be used.
    pub finite: bool,
}

impl Proposal {
    /// The only token that may come.
    pub fn certain(token: TokenId) -> Proposal {
        Proposal { token, probability: 1.0, margin: 1.0, runner_up: token, finite: true }
    }
}

/// One sequence of a verification batch: a prefill chunk, a plain decode step
/// (one token) or a verification (one token and drafts).
#[derive(Clone, Debug, PartialEq)]
pub struct VerifyRow {
    /// Input: committed tokens, then `drafts` draft tokens.
    pub input: SequenceInput,
    /// What the row is for.
    pub role: RowRole,
    /// How many tokens at the end of the input are drafts.
    pub drafts: u32,
    /// `None`: the drafts are a chain. Else one parent per draft: `0` is the last
    /// committed token, `j > 0` is draft `j - 1`; parents stand before their children.
    /// A node's position is its parent's plus one; its KV slot is that of its
    /// place in the input, until the cache is compacted ([`Compaction`]).
    pub tree: Option<Vec<u32>>,
    /// What the target may sample behind the last committed token and behind each draft, in this
    /// order: `drafts + 1` masks, `None` where any token may come. Empty where the request is not
    /// constrained. A draft that its mask forbids is never accepted, so what follows it needs no
    /// mask.
    pub masks: Vec<Option<Arc<TokenMask>>>,
    /// The committed token that follows the input, for a prefill chunk that does not reach the end of
    /// the committed tokens. `None`: the row samples it.
    pub next: Option<TokenId>,
}

/// What a row of a verification batch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowRole {
    /// One more token, and as many more as drafts are accepted.
    Decode,
    /// A chunk of a prompt, or of tokens that are recomputed after a preemption.
    Prefill,
}

/// What the target decided for one row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// The next tokens of the sequence: the accepted drafts, then the bonus token. Empty iff
    /// the row did not sample or is not finite.
    pub tokens: Vec<TokenId>,
    /// Accepted drafts: `tokens.len() - 1`.
    pub accepted: u32,
    /// For a tree, the accepted drafts' places (0-based, ascending); empty for chains.
    pub path: Vec<u32>,
    /// False if a relevant logit was NaN or infinite, or if a mask allowed no token.
    pub finite: bool,
}

/// Moves the accepted path of a tree to the slots right behind the committed tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Compaction {
    /// The sequence's blocks.
    pub blocks: Vec<BlockId>,
    /// Position of the first draft's slot.
    pub first: u32,
    /// Accepted places, ascending: slot `first + path[i]` moves to `first + i`.
    pub path: Vec<u32>,
}

/// Errors of an executor. All are programmer or device errors; no request may cause one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExecutorError {
    /// The device failed. The executor must not be used again: CUDA errors are sticky.
    #[error("the device failed: {0}")]
    Device(String),
    /// The batch violates an invariant of this module.
    #[error("malformed batch: {0}")]
    Malformed(String),
}

/// Role of a model in the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelRole {
    /// The target model.
    Target,
    /// The draft model.
    Draft,
}
