//! The CPU executor: the embedded default, and the oracle for the GPU's.
//!
//! - Batch-invariant bit for bit: a row's numbers depend on nothing but its own
//!   sequence (`kernels` says how). A prompt in chunks equals the prompt at once, a
//!   tree node equals the chain of its ancestors, and a number of threads is a matter
//!   of time alone.
//! - Each weight is read once for up to 256 rows, so verifying a few tokens costs
//!   little more than decoding one.
//! - bf16 weights stay bf16 in memory and widen on the way into a register; f16 and f32
//!   weights are kept as f32. All sums and the KV cache are f32: nothing is rounded
//!   that the checkpoint has not rounded.

mod arena;
mod check;
mod drafting;
#[cfg(test)]
mod each_set;
mod forward;
mod heads;
mod hidden_states;
mod kernels;
mod kv_cache;
mod layers;
mod packed;
mod pass;
mod pool;
mod projection;
mod roofline;
mod rope;
mod round;
mod rows;
mod stages;
#[cfg(test)]
mod tests;
mod transformer;
mod verifying;
mod workers;

use std::sync::Arc;

pub use kernels::InstructionSet;
pub use roofline::Roofline;

use self::drafting::ModelDrafter;
use self::forward::{Model, ModelBounds};
use self::heads::{HeadBounds, HeadDrafter};
use self::hidden_states::HiddenStates;
use self::pass::Pass;
use self::pool::JobPanicked;
use self::workers::Workers;
use super::contract::{BatchContract, no_draft_model, no_drafter};
use super::{Drafter, Executor, Target};
use crate::model::{DraftHead, DraftWeights, Dtype, LoadedModel, ModelSpec, Tensor};
use crate::protocol::{
    BlockId, Compaction, DraftForest, DraftSeed, ExecutorError, ExecutorInfo, ExecutorMemory, ModelRole,
    NodeId, RequestId, SamplingParams, SequenceInput, Verdict, VerifyRow,
};

/// Most draft tokens that one sequence may have verified in one call: the nodes that the
/// executors' ancestor masks hold.
pub const DRAFT_TOKENS_MAX: u32 = 64;

/// Rows of logits that are held at once; sequences are sampled in groups of at most so many.
const LOGIT_ROWS: usize = 64;

/// How a [`CpuExecutor`] is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Compute threads, the calling one included; at least one. More than the processors
    /// that the process may use is slower, not wrong.
    pub threads: usize,
    /// Blocks in the target's KV pool.
    pub target_blocks: u32,
    /// Blocks in the draft's KV pool; ignored without a draft.
    pub draft_blocks: u32,
    /// Tokens in one KV block; a multiple of 16.
    pub block_tokens: u32,
    /// Most input tokens in one call.
    pub batch_tokens_max: u32,
    /// Most sequences in one call.
    pub batch_sequences_max: u32,
    /// Most draft tokens of one sequence in one call; at most [`DRAFT_TOKENS_MAX`].
    pub draft_tokens_max: u32,
}

/// Why a [`CpuExecutor`] could not be built.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// The model has a shape that the kernels do not compute.
    #[error("the CPU executor can't run this model: {0}")]
    Unsupported(String),
    /// An option is out of its range.
    #[error("the CPU executor's options: {0}")]
    Options(String),
    /// No memory for weights or KV.
    #[error("no memory for weights or KV cache")]
    Memory(#[source] std::io::Error),
    /// A compute thread could not be started.
    #[error("a compute thread could not be started")]
    Threads(#[source] std::io::Error),
}

/// Target and perhaps draft, on the processor.
pub struct CpuExecutor {
    info: ExecutorInfo,
    contract: BatchContract,
    workers: Workers,
    target: Model,
    drafter: Option<CpuDrafter>,
    /// Seeds of the nodes of one call, reused.
    extended: Vec<u32>,
}

/// What drafts.
enum CpuDrafter {
    Model(Box<ModelDrafter>),
    Head(Box<HeadDrafter>),
}

impl CpuDrafter {
    fn new(
        draft: &DraftWeights,
        options: &CpuOptions,
        of_target: ModelBounds,
        target: &Model,
        set: InstructionSet,
    ) -> Result<CpuDrafter, CpuError> {
        match draft {
            DraftWeights::Model(model) => {
                let blocks = options.draft_blocks as usize;
                let bounds = ModelBounds { blocks, logit_rows: LOGIT_ROWS, ..of_target };
                Ok(CpuDrafter::Model(Box::new(ModelDrafter::new(Model::new(model, set, bounds)?))))
            }
            DraftWeights::Head(head) => {
                let bounds = HeadBounds {
                    blocks: of_target.blocks,
                    block_tokens: of_target.block_tokens,
                    positions: target.spec().context_tokens_max,
                    sequences: options.batch_sequences_max as usize,
                    batch_tokens: options.batch_tokens_max as usize,
                    threads: options.threads,
                };
                Ok(CpuDrafter::Head(Box::new(HeadDrafter::new(head, set, bounds)?)))
            }
        }
    }

    /// Where the target's hidden states go.
    fn states_mut(&mut self) -> Option<&mut HiddenStates> {
        match self {
            CpuDrafter::Model(_) => None,
            CpuDrafter::Head(head) => Some(&mut head.states),
        }
    }
}

/// Bytes of one KV block of a model, all layers.
pub fn kv_block_bytes(spec: &ModelSpec, block_tokens: u32) -> u64 {
    let numbers = 2 * spec.layers * spec.kv_heads * spec.head_dim * block_tokens as usize;
    (numbers * size_of::<f32>()) as u64
}

/// Bytes of the hidden states that a draft head keeps of tokens that it has not read yet.
pub fn hidden_state_bytes(head: &DraftHead, batch_tokens_max: u32) -> u64 {
    let features = &head.interface().features;
    let tokens = batch_tokens_max as usize + heads::WAITING_TOKENS;
    (tokens * features.count * features.target_hidden_size * size_of::<f32>()) as u64
}

/// Bytes of weights once repacked, which come on top of the mapped files.
pub fn packed_bytes<'a>(matrices: impl Iterator<Item = &'a Tensor>) -> u64 {
    let bytes = matrices.map(|tensor| {
        let number = if tensor.dtype == Dtype::Bf16 { size_of::<u16>() } else { size_of::<f32>() };
        (tensor.elements() * number) as u64
    });
    bytes.sum()
}

impl CpuExecutor {
    /// Packs the weights and allots the caches.
    pub fn new(
        options: CpuOptions,
        target: LoadedModel,
        draft: Option<DraftWeights>,
    ) -> Result<CpuExecutor, CpuError> {
        CpuExecutor::with_instruction_set(options, target, draft, InstructionSet::detect())
    }

    /// [`new`](Self::new) with a chosen instruction set, one of [`InstructionSet::available`].
    pub fn with_instruction_set(
        options: CpuOptions,
        target: LoadedModel,
        draft: Option<DraftWeights>,
        set: InstructionSet,
    ) -> Result<CpuExecutor, CpuError> {
        check::options(&options, &target.spec, draft.as_ref(), set)?;
        let workers = Workers::new(options.threads).map_err(CpuError::Threads)?;
        let mut info = info(&options, &target, draft.as_ref(), set);
        let bounds = ModelBounds {
            blocks: options.target_blocks as usize,
            block_tokens: options.block_tokens as usize,
            rows: options.batch_tokens_max as usize,
            logit_rows: LOGIT_ROWS.max(options.draft_tokens_max as usize + 1),
            threads: options.threads,
        };
        let target = Model::new(&target, set, bounds)?;
        let drafter =
            draft.map(|draft| CpuDrafter::new(&draft, &options, bounds, &target, set)).transpose()?;
        info.memory = memory(&target, drafter.as_ref());
        Ok(CpuExecutor {
            contract: BatchContract::new(&info),
            info,
            workers,
            target,
            drafter,
            extended: Vec::new(),
        })
    }

    /// Runs each model once over as many rows as go through the layers together, so that the first
    /// request does not wait for memory that was never touched. Leaves nothing behind but
    /// what is in the first blocks of the caches, which are written before they are read.
    ///
    /// # Errors
    /// As [`Executor::logits`].
    pub fn warm_up(&mut self) -> Result<(), ExecutorError> {
        for (role, blocks) in
            [(ModelRole::Target, self.info.target_blocks), (ModelRole::Draft, self.info.draft_blocks())]
        {
            let room = (blocks * self.info.block_tokens).min(self.info.context_tokens_max);
            let tokens = (layers::PART_ROWS_MAX as u32).min(self.info.batch_tokens_max).min(room);
            if tokens == 0 {
                continue;
            }
            let input = SequenceInput {
                request: RequestId(0),
                tokens: vec![0; tokens as usize],
                start: 0,
                blocks: (0..tokens.div_ceil(self.info.block_tokens)).map(BlockId).collect(),
                sampling: Arc::new(SamplingParams::greedy()),
                history: None,
            };
            self.logits(role, &input)?;
        }
        Ok(())
    }

    /// Binds the calling thread to a processor, as the executor's own threads are bound.
    /// For a thread that does nothing but drive this executor: left to itself it may be put
    /// beside a bound worker, and each fork then waits for a time slice.
    pub fn pin_caller(&self) {
        self.workers.pool.pin_caller();
    }
}

fn info(
    options: &CpuOptions,
    target: &LoadedModel,
    draft: Option<&DraftWeights>,
    set: InstructionSet,
) -> ExecutorInfo {
    // Target and draft model run through the same positions: the shorter context binds both.
    let own_context = match draft {
        Some(DraftWeights::Model(model)) => model.spec.context_tokens_max,
        _ => usize::MAX,
    };
    let drafts_max = draft.map_or(u32::MAX, DraftWeights::drafts_max);
    ExecutorInfo {
        backend: "cpu".into(),
        device: describe_device(options.threads, set),
        vocab_size: target.spec.vocab_size as u32,
        context_tokens_max: target.spec.context_tokens_max.min(own_context) as u32,
        block_tokens: options.block_tokens,
        target_blocks: options.target_blocks,
        drafter: draft.map(|draft| draft.needs(options.draft_blocks)),
        batch_tokens_max: options.batch_tokens_max,
        batch_sequences_max: options.batch_sequences_max,
        draft_tokens_max: options.draft_tokens_max.min(drafts_max),
        sampled_rows_max: u32::MAX,
        memory: ExecutorMemory::default(),
    }
}

/// What models and caches take.
fn memory(target: &Model, drafter: Option<&CpuDrafter>) -> ExecutorMemory {
    let (weights, kv, states) = match drafter {
        None => (0, 0, 0),
        Some(CpuDrafter::Model(draft)) => {
            (draft.model.layers.weight_bytes(), draft.model.layers.cache.bytes(), 0)
        }
        Some(CpuDrafter::Head(head)) => (head.weight_bytes(), head.kv_bytes(), head.states.bytes()),
    };
    ExecutorMemory {
        target_weights: target.layers.weight_bytes() as u64,
        draft_weights: weights as u64,
        target_kv: target.layers.cache.bytes() as u64,
        draft_kv: kv as u64,
        hidden_states: states as u64,
    }
}

/// Human-readable device name, as the [`ExecutorInfo`] of an executor with so many threads has it.
pub fn device_description(threads: usize) -> String {
    describe_device(threads, InstructionSet::detect())
}

fn describe_device(threads: usize, set: InstructionSet) -> String {
    format!("{}, {threads} threads, {}", processor_name(), set.name())
}

/// The processor's name as the system tells it.
fn processor_name() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

impl Executor for CpuExecutor {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    fn target(&mut self) -> &mut dyn Target {
        self
    }

    fn drafter(&mut self) -> Option<&mut dyn Drafter> {
        if self.drafter.is_some() { Some(self) } else { None }
    }

    fn logits(&mut self, model: ModelRole, input: &SequenceInput) -> Result<Vec<f32>, ExecutorError> {
        self.contract.logits(model, input)?;
        let mut pass = Pass::default();
        pass.push_chain(&input.blocks, &input.tokens, input.start, 1);
        let model = match (model, &mut self.drafter) {
            (ModelRole::Target, _) => &mut self.target,
            (ModelRole::Draft, Some(CpuDrafter::Model(draft))) => &mut draft.model,
            (ModelRole::Draft, _) => return Err(no_draft_model()),
        };
        model.forward(&self.workers.pool, &pass, None)?;
        Ok(model.logits(&self.workers.pool, 0..1)?.row(0).to_vec())
    }
}

impl Target for CpuExecutor {
    fn verify(&mut self, rows: &[VerifyRow], out: &mut Vec<Verdict>) -> Result<(), ExecutorError> {
        self.verify_rows(rows, out)
    }

    fn compact(&mut self, moves: &[Compaction]) -> Result<(), ExecutorError> {
        self.contract.compact(moves)?;
        for one in moves {
            for (to, &from) in one.path.iter().enumerate() {
                let (from, to) = (one.first as usize + from as usize, one.first as usize + to);
                if from != to {
                    self.target.layers.cache.copy_slot(&one.blocks, from, to);
                }
            }
        }
        Ok(())
    }
}

impl Drafter for CpuExecutor {
    fn start(&mut self, seeds: &[DraftSeed], forest: &mut DraftForest) -> Result<(), ExecutorError> {
        self.contract.start(seeds)?;
        match self.drafter.as_mut().ok_or_else(no_drafter)? {
            CpuDrafter::Model(draft) => draft.start(&self.workers, seeds, forest),
            CpuDrafter::Head(head) => head.start(&self.workers, &self.target, seeds, forest),
        }
    }

    fn extend(&mut self, nodes: &[NodeId], forest: &mut DraftForest) -> Result<(), ExecutorError> {
        let drafter = self.drafter.as_mut().ok_or_else(no_drafter)?;
        let mut seeds = std::mem::take(&mut self.extended);
        self.contract.extend(nodes, forest, &mut seeds)?;
        match drafter {
            CpuDrafter::Model(draft) => draft.extend(&self.workers, nodes, &seeds, forest)?,
            CpuDrafter::Head(head) => head.extend(&self.workers, &self.target, nodes, &seeds, forest)?,
        }
        self.extended = seeds;
        Ok(())
    }

    fn settle(&mut self, accepted: &[NodeId], _: &DraftForest) -> Result<(), ExecutorError> {
        if let Some(CpuDrafter::Model(draft)) = &mut self.drafter {
            draft.settle(accepted);
        }
        Ok(())
    }
}

impl From<JobPanicked> for ExecutorError {
    fn from(panicked: JobPanicked) -> ExecutorError {
        ExecutorError::Device(panicked.to_string())
    }
}
