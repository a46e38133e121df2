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
mod kernels;
mod kv_cache;
mod packed;
mod pass;
mod pool;
mod projection;
mod roofline;
mod rope;
mod rows;
mod stages;
#[cfg(test)]
mod tests;
mod transformer;
mod verifying;

use std::sync::{Arc, Mutex, PoisonError};

pub use kernels::InstructionSet;
pub use roofline::Roofline;

use self::drafting::Round;
use self::forward::{Model, ModelBounds};
use self::pass::Pass;
use self::pool::{JobPanicked, Pool};
use super::contract::{BatchContract, no_drafter};
use super::{Drafter, Executor, Target};
use crate::model::{Dtype, LoadedModel, ModelSpec};
use crate::protocol::{
    BlockId, Compaction, DraftForest, DraftSeed, DrafterNeeds, ExecutorError, ExecutorInfo, ModelRole,
    NodeId, RequestId, SamplingParams, SequenceInput, Verdict, VerifyRow,
};
use crate::sampling::Sampler;

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
    pool: Pool,
    target: Model,
    draft: Option<Model>,
    round: Round,
    /// Seeds of the nodes of one call, reused.
    extended: Vec<u32>,
    /// One per thread.
    samplers: Vec<Mutex<Sampler>>,
}

/// Bytes of one KV block of a model, all layers.
pub fn kv_block_bytes(spec: &ModelSpec, block_tokens: u32) -> u64 {
    let numbers = 2 * spec.layers * spec.kv_heads * spec.head_dim * block_tokens as usize;
    (numbers * size_of::<f32>()) as u64
}

/// Bytes of a model's weights once repacked, which come on top of the mapped files.
pub fn packed_bytes(model: &LoadedModel) -> u64 {
    let layers = model.weights.layers.iter().flat_map(|layer| layer.tensors().map(|(_, tensor)| tensor));
    let bytes = layers.chain([&model.weights.head]).map(|tensor| {
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
        draft: Option<LoadedModel>,
    ) -> Result<CpuExecutor, CpuError> {
        CpuExecutor::with_instruction_set(options, target, draft, InstructionSet::detect())
    }

    /// [`new`](Self::new) with a chosen instruction set, one of [`InstructionSet::available`].
    pub fn with_instruction_set(
        options: CpuOptions,
        target: LoadedModel,
        draft: Option<LoadedModel>,
        set: InstructionSet,
    ) -> Result<CpuExecutor, CpuError> {
        check::options(&options, &target.spec, draft.as_ref().map(|draft| &draft.spec), set)?;
        let pool = Pool::new(options.threads).map_err(CpuError::Threads)?;
        let info = info(&options, &target, draft.as_ref(), set);
        let bounds = ModelBounds {
            blocks: options.target_blocks as usize,
            block_tokens: options.block_tokens as usize,
            rows: options.batch_tokens_max as usize,
            logit_rows: LOGIT_ROWS.max(options.draft_tokens_max as usize + 1),
            threads: options.threads,
        };
        let target = Model::new(&target, set, bounds)?;
        let bounds = ModelBounds { blocks: options.draft_blocks as usize, logit_rows: LOGIT_ROWS, ..bounds };
        let draft = draft.map(|draft| Model::new(&draft, set, bounds)).transpose()?;
        let samplers = (0..options.threads).map(|_| Mutex::new(Sampler::new())).collect();
        Ok(CpuExecutor {
            contract: BatchContract::new(&info),
            info,
            pool,
            target,
            draft,
            round: Round::default(),
            extended: Vec::new(),
            samplers,
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
            let tokens = (forward::PART_ROWS_MAX as u32).min(self.info.batch_tokens_max).min(room);
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
        self.pool.pin_caller();
    }
}

fn info(
    options: &CpuOptions,
    target: &LoadedModel,
    draft: Option<&LoadedModel>,
    set: InstructionSet,
) -> ExecutorInfo {
    // Target and draft run through the same positions: the shorter context binds both.
    let contexts = [Some(target), draft].into_iter().flatten().map(|model| model.spec.context_tokens_max);
    ExecutorInfo {
        backend: "cpu".into(),
        device: describe_device(options.threads, set),
        vocab_size: target.spec.vocab_size as u32,
        context_tokens_max: contexts.min().unwrap_or(0) as u32,
        block_tokens: options.block_tokens,
        target_blocks: options.target_blocks,
        drafter: draft.map(|_| DrafterNeeds::kv_cache(options.draft_blocks)),
        batch_tokens_max: options.batch_tokens_max,
        batch_sequences_max: options.batch_sequences_max,
        draft_tokens_max: options.draft_tokens_max,
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
        if self.draft.is_some() { Some(self) } else { None }
    }

    fn logits(&mut self, model: ModelRole, input: &SequenceInput) -> Result<Vec<f32>, ExecutorError> {
        self.contract.logits(model, input)?;
        let model = match model {
            ModelRole::Target => &mut self.target,
            ModelRole::Draft => self.draft.as_mut().ok_or_else(no_drafter)?,
        };
        let mut pass = Pass::default();
        pass.push_chain(&input.blocks, &input.tokens, input.start, 1);
        model.forward(&self.pool, &pass)?;
        Ok(model.logits(&self.pool, 0..1)?.row(0).to_vec())
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
                    self.target.cache.copy_slot(&one.blocks, from, to);
                }
            }
        }
        Ok(())
    }
}

impl Drafter for CpuExecutor {
    fn start(&mut self, seeds: &[DraftSeed], forest: &mut DraftForest) -> Result<(), ExecutorError> {
        let proposals = self.start_round(seeds)?;
        for (index, proposal) in proposals {
            forest.add_root(index, proposal);
        }
        Ok(())
    }

    fn extend(&mut self, nodes: &[NodeId], forest: &mut DraftForest) -> Result<(), ExecutorError> {
        let mut seeds = std::mem::take(&mut self.extended);
        self.contract.extend(nodes, forest, &mut seeds)?;
        let tokens = nodes.iter().filter_map(|&node| Some(forest.get(node)?.proposal.token));
        let proposals = self.continue_round(&seeds, tokens, |index| forest.mask(nodes[index]).cloned())?;
        for (&node, proposal) in nodes.iter().zip(proposals) {
            forest.add_child(node, proposal);
        }
        self.extended = seeds;
        Ok(())
    }
}

/// Calls `work(index, sampler)` for `count` indices, shared among the threads; the results
/// in order.
fn pooled<T: Send>(
    pool: &Pool,
    samplers: &[Mutex<Sampler>],
    count: usize,
    work: impl Fn(usize, &mut Sampler) -> T + Sync,
) -> Result<Vec<T>, JobPanicked> {
    let results: Vec<Mutex<Option<T>>> = (0..count).map(|_| Mutex::new(None)).collect();
    pool.run(count, &|thread, index| {
        // A sampler's memory is scratch: a panic while it was held leaves nothing to mistrust.
        let mut sampler = samplers[thread].lock().unwrap_or_else(PoisonError::into_inner);
        let made = work(index, &mut sampler);
        *results[index].lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
    })?;
    let made = results.into_iter().filter_map(|one| one.into_inner().unwrap_or_else(PoisonError::into_inner));
    Ok(made.collect())
}

impl From<JobPanicked> for ExecutorError {
    fn from(panicked: JobPanicked) -> ExecutorError {
        ExecutorError::Device(panicked.to_string())
    }
}
