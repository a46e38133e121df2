//! [`Executor`] on a GPU: batches in, tokens out; logits never leave the device.

use super::batch_check::{ensure, tree_tokens};
use super::compaction::Compactor;
use super::drafter::{CudaDrafter, ModelDrafter};
use super::driver::Gpu;
use super::error::CudaError;
use super::forward::{DeviceModel, HiddenRows, kv_block_elements};
use super::heads::{HeadDrafter, hidden_state_capacity};
use super::host_step::input_shape;
use super::options::{CudaOptions, KvBudget, VERIFY_ROWS_MAX, captured_rows, eager_rows};
use super::runner::{DeviceQueue, Runner, RunnerOptions, StepOutput};
use super::scratch::ScratchSizes;
use super::verify_batch;
use crate::executor::contract::{BatchContract, no_draft_model, no_drafter};
use crate::executor::{Drafter, Executor, Target};
use crate::model::{DraftHead, DraftWeights, LoadedModel, ModelSpec};
use crate::protocol::{
    BLOCK_TOKENS, Compaction, DraftForest, DraftSeed, ExecutorError, ExecutorInfo, ExecutorMemory, Micros,
    ModelRole, NodeId, SequenceInput, Verdict, VerifyRow,
};

/// A target and what drafts for it on one GPU. The thread that calls becomes the device's thread.
pub struct CudaExecutor {
    info: ExecutorInfo,
    contract: BatchContract,
    gpu: Gpu,
    target: Runner,
    drafter: Option<CudaDrafter>,
    /// Seeds of the nodes of one call, reused.
    extended: Vec<u32>,
    compactor: Compactor,
    queue: DeviceQueue,
    target_logit_rows: usize,
    /// Why the device can't be used any more.
    failed: Option<String>,
}

impl CudaExecutor {
    /// Opens the GPU, uploads the models and allocates everything that steps need.
    ///
    /// # Errors
    /// [`ExecutorError::Malformed`] for options or models that can't work,
    /// [`ExecutorError::Device`] when the GPU is missing, too small, or fails.
    pub fn new(
        target: &LoadedModel,
        draft: Option<&DraftWeights>,
        options: CudaOptions,
    ) -> Result<CudaExecutor, ExecutorError> {
        options.check().map_err(ExecutorError::Malformed)?;
        check_pair(&target.spec, draft.map(DraftWeights::spec))?;
        let gpu = Gpu::open(options.ordinal)?;
        let queue = DeviceQueue::new()?;
        let logit_rows = logit_rows_max(&options);
        let mut target_model = DeviceModel::new(target, scratch_sizes(&options, logit_rows), &queue.stream)?;
        let draft_rows = captured_rows(options.batch_sequences_max as usize).unwrap_or(VERIFY_ROWS_MAX);
        let mut drafter = match draft {
            None => None,
            Some(DraftWeights::Model(model)) => {
                let model = DeviceModel::new(model, scratch_sizes(&options, draft_rows), &queue.stream)?;
                Some(Unfinished::Model(Box::new(model)))
            }
            Some(DraftWeights::Head(head)) => {
                Some(Unfinished::Head(Box::new(with_head(head, &mut target_model, &options, &queue)?)))
            }
        };
        let draft_blocks = allocate_pools(&mut target_model, drafter.as_mut(), &options, &gpu)?;
        let mut info = executor_info(&target_model, draft, draft_blocks, &options, &gpu);
        info.memory = memory(&target_model, drafter.as_ref());
        let runner = |model: DeviceModel, logit_rows_max: usize| {
            let (graphs_max, tune) = (options.graphs_max, options.tune);
            Runner::new(model, RunnerOptions { logit_rows_max, graphs_max, tune }, &queue)
        };
        let target = runner(target_model, logit_rows)?;
        let drafter = match drafter {
            None => None,
            Some(Unfinished::Model(model)) => {
                Some(CudaDrafter::Model(Box::new(ModelDrafter::new(runner(*model, draft_rows)?))))
            }
            Some(Unfinished::Head(head)) => Some(CudaDrafter::Head(head)),
        };
        queue.stream.synchronize()?;
        Ok(CudaExecutor {
            contract: BatchContract::new(&info),
            info,
            gpu,
            target,
            drafter,
            extended: Vec::new(),
            compactor: Compactor::new()?,
            queue,
            target_logit_rows: logit_rows,
            failed: None,
        })
    }

    /// Chooses algorithms, loads kernels and captures graphs for every step size up to the
    /// batch's bounds, and runs prompts, so that no request waits for it. No KV block may be in
    /// use: they are overwritten.
    ///
    /// # Errors
    /// [`ExecutorError::Device`].
    pub fn warm_up(&mut self) -> Result<(), ExecutorError> {
        self.on_device(|executor| {
            let sequences = executor.info.batch_sequences_max as usize;
            let tokens = executor.info.batch_tokens_max as usize;
            let rows = executor.target_logit_rows;
            executor.target.warm_up(rows, StepOutput::Verdicts, &mut executor.queue)?;
            executor.target.warm_up_prompts(tokens, &mut executor.queue)?;
            let queue = &mut executor.queue;
            match (&mut executor.drafter, &executor.target.model.hidden_rows) {
                (Some(CudaDrafter::Model(draft)), _) => {
                    draft.runner.warm_up(sequences, StepOutput::Proposals, queue)?;
                    Ok(draft.runner.warm_up_prompts(tokens, queue)?)
                }
                (Some(CudaDrafter::Head(head)), Some(states)) => head.warm_up(states, queue),
                _ => Ok(()),
            }
        })
    }

    /// Graphs captured so far: target, drafter.
    pub fn graph_counts(&self) -> (usize, usize) {
        (self.target.graph_count(), self.drafter.as_ref().map_or(0, CudaDrafter::graph_count))
    }

    /// Time that the device took for the last step, copies included, in microseconds; `None`
    /// before the first.
    ///
    /// # Errors
    /// [`ExecutorError::Device`].
    pub fn busy_microseconds(&self) -> Result<Option<f64>, ExecutorError> {
        Ok(self.queue.marks.busy_microseconds()?)
    }

    /// Time that the device stood idle before the last step, in microseconds; `None` before
    /// the second.
    ///
    /// # Errors
    /// [`ExecutorError::Device`].
    pub fn idle_microseconds(&self) -> Result<Option<f64>, ExecutorError> {
        Ok(self.queue.marks.idle_microseconds()?)
    }

    /// Runs `work` with the context current; a device error stays for good.
    fn on_device<T>(
        &mut self,
        work: impl FnOnce(&mut CudaExecutor) -> Result<T, ExecutorError>,
    ) -> Result<T, ExecutorError> {
        if let Some(reason) = &self.failed {
            return Err(ExecutorError::Device(reason.clone()));
        }
        let result = self.gpu.bind_to_thread().map_err(ExecutorError::from).and_then(|()| work(self));
        if let Err(ExecutorError::Device(reason)) = &result {
            self.failed = Some(reason.clone());
        }
        result
    }

    /// Runs checked rows; a draft head gets the hidden states of what they commit.
    fn verify_checked(&mut self, rows: &[VerifyRow], out: &mut Vec<Verdict>) -> Result<(), ExecutorError> {
        let CudaExecutor { target, drafter, queue, .. } = self;
        let Some(CudaDrafter::Head(head)) = drafter else {
            return verify_batch::run(rows, [0, 0], target, queue, out);
        };
        let tokens = rows.iter().map(|row| row.input.tokens.len()).sum();
        let first = match &target.model.hidden_rows {
            Some(states) => head.make_room(tokens, states, queue)?,
            None => 0,
        };
        verify_batch::run(rows, [first as i32, tokens as i32], target, queue, out)?;
        head.commit(first, rows, out);
        Ok(())
    }
}

impl Executor for CudaExecutor {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    fn target(&mut self) -> &mut dyn Target {
        self
    }

    fn drafter(&mut self) -> Option<&mut dyn Drafter> {
        if self.drafter.is_some() { Some(self) } else { None }
    }

    fn idle_before_last_call(&self) -> Option<Micros> {
        // a figure for people: what failed shows in the next call
        let idle = self.idle_microseconds().ok().flatten()?;
        Some(Micros(idle.max(0.0) as u64))
    }

    fn logits(&mut self, role: ModelRole, input: &SequenceInput) -> Result<Vec<f32>, ExecutorError> {
        self.contract.logits(role, input)?;
        self.on_device(|executor| {
            let logits = match role {
                ModelRole::Target => read_logits(&mut executor.target, input, &mut executor.queue),
                ModelRole::Draft => match &mut executor.drafter {
                    Some(CudaDrafter::Model(draft)) => {
                        read_logits(&mut draft.runner, input, &mut executor.queue)
                    }
                    _ => return Err(no_draft_model()),
                },
            };
            Ok(logits?)
        })
    }
}

impl Target for CudaExecutor {
    fn verify(&mut self, rows: &[VerifyRow], out: &mut Vec<Verdict>) -> Result<(), ExecutorError> {
        self.contract.verify(rows)?;
        tree_tokens(rows)?;
        self.on_device(|executor| executor.verify_checked(rows, out))
    }

    fn compact(&mut self, moves: &[Compaction]) -> Result<(), ExecutorError> {
        self.contract.compact(moves)?;
        if moves.iter().all(|compaction| compaction.path.is_empty()) {
            return Ok(());
        }
        self.on_device(|executor| {
            Ok(executor.compactor.run(moves, &mut executor.target.model, &executor.queue.stream)?)
        })
    }
}

impl Drafter for CudaExecutor {
    fn start(&mut self, seeds: &[DraftSeed], forest: &mut DraftForest) -> Result<(), ExecutorError> {
        self.contract.start(seeds)?;
        self.on_device(|executor| {
            let CudaExecutor { target, drafter, queue, .. } = executor;
            match (drafter, &target.model.hidden_rows) {
                (Some(CudaDrafter::Model(draft)), _) => draft.start(seeds, queue, forest),
                (Some(CudaDrafter::Head(head)), Some(states)) => head.start(seeds, states, queue, forest),
                _ => Err(no_drafter()),
            }
        })
    }

    fn extend(&mut self, nodes: &[NodeId], forest: &mut DraftForest) -> Result<(), ExecutorError> {
        let mut kept = std::mem::take(&mut self.extended);
        self.contract.extend(nodes, forest, &mut kept)?;
        self.on_device(|executor| {
            let CudaExecutor { target, drafter, queue, .. } = executor;
            match (drafter, &target.model.hidden_rows) {
                (Some(CudaDrafter::Model(draft)), _) => draft.extend(nodes, &kept, queue, forest)?,
                (Some(CudaDrafter::Head(head)), Some(states)) => {
                    head.extend(nodes, &kept, states, queue, forest)?;
                }
                _ => return Err(no_drafter()),
            }
            executor.extended = kept;
            Ok(())
        })
    }

    fn settle(&mut self, accepted: &[NodeId], forest: &DraftForest) -> Result<(), ExecutorError> {
        let Some(CudaDrafter::Model(draft)) = &self.drafter else { return Ok(()) };
        let moves = draft.settle(accepted, forest);
        if moves.is_empty() {
            return Ok(());
        }
        self.on_device(|executor| {
            let CudaExecutor { drafter, compactor, queue, .. } = executor;
            let Some(CudaDrafter::Model(draft)) = drafter else { return Ok(()) };
            Ok(compactor.run(&moves, &mut draft.runner.model, &queue.stream)?)
        })
    }
}

impl Drop for CudaExecutor {
    fn drop(&mut self) {
        // Device memory is freed by the fields, which needs the context on this thread. If it
        // is lost, there is nothing left to free.
        let _ = self.gpu.bind_to_thread();
    }
}

fn read_logits(
    runner: &mut Runner,
    input: &SequenceInput,
    queue: &mut DeviceQueue,
) -> Result<Vec<f32>, CudaError> {
    runner.begin();
    runner.step.push_tokens(&input.tokens);
    runner.plan(std::iter::once(input_shape(input, 0, None)));
    runner.step.gather.push(input.tokens.len() as i32 - 1);
    runner.run(StepOutput::Nothing, queue)?;
    let mut logits = vec![0.0; runner.model.spec().vocab_size];
    // SAFETY: `logits` is borrowed until the synchronisation below.
    unsafe { runner.model.logits().download_async(0, &mut logits, &queue.stream)? };
    queue.stream.synchronize()?;
    Ok(logits)
}

fn check_pair(target: &ModelSpec, draft: Option<&ModelSpec>) -> Result<(), ExecutorError> {
    let Some(draft) = draft else { return Ok(()) };
    let sizes = (target.vocab_size, draft.vocab_size);
    ensure(sizes.0 == sizes.1, || format!("target and draft have {} and {} tokens", sizes.0, sizes.1))
}

/// Rows of logits of the largest verification.
fn logit_rows_max(options: &CudaOptions) -> usize {
    let rows = options.batch_sequences_max as usize * (options.draft_tokens_max as usize + 1);
    captured_rows(rows).unwrap_or(VERIFY_ROWS_MAX)
}

fn scratch_sizes(options: &CudaOptions, logit_rows: usize) -> ScratchSizes {
    ScratchSizes {
        rows: eager_rows(options.batch_tokens_max as usize).max(VERIFY_ROWS_MAX),
        logit_rows,
        masked_rows: logit_rows,
    }
}

/// What drafts, before its cache is allocated.
enum Unfinished {
    Model(Box<DeviceModel>),
    Head(Box<HeadDrafter>),
}

/// Uploads a head, and has the target keep the hidden states that it reads.
fn with_head(
    head: &DraftHead,
    target: &mut DeviceModel,
    options: &CudaOptions,
    queue: &DeviceQueue,
) -> Result<HeadDrafter, ExecutorError> {
    let features = &head.interface().features;
    let layers = features
        .layers
        .as_deref()
        .ok_or_else(|| ExecutorError::Malformed("the draft head was loaded without its target".to_owned()))?;
    let capacity = hidden_state_capacity(options.batch_tokens_max);
    let rows = HiddenRows::new(layers, features.target_hidden_size, capacity)?;
    target.hidden_rows = Some(rows);
    let spec = target.spec().clone();
    let (weights, _) = target.parts();
    HeadDrafter::new(head, (weights, &spec), options, queue)
}

/// Gives both pools their blocks; returns those of a draft model.
fn allocate_pools(
    target: &mut DeviceModel,
    drafter: Option<&mut Unfinished>,
    options: &CudaOptions,
    gpu: &Gpu,
) -> Result<u32, ExecutorError> {
    let block_bytes = |model: &DeviceModel| 2 * kv_block_elements(model.spec());
    let of_drafter = match &drafter {
        None => 0,
        Some(Unfinished::Model(model)) => block_bytes(model),
        Some(Unfinished::Head(head)) => head.kv_block_bytes(),
    };
    let both = block_bytes(target) + of_drafter;
    // More than every sequence at its longest is never used.
    let context_blocks = target.spec().context_tokens_max.div_ceil(BLOCK_TOKENS as usize);
    let useful = context_blocks * options.batch_sequences_max as usize;
    let (target_blocks, draft_blocks) = match options.kv {
        KvBudget::Blocks { target, draft } => (target, draft),
        KvBudget::MemoryFraction(share) => {
            let room = gpu.memory_free_bytes()? as f64 * share;
            let blocks = ((room / both as f64) as usize).min(useful) as u32;
            (blocks, blocks)
        }
    };
    let slots_max = i32::MAX as u32 / BLOCK_TOKENS;
    for blocks in [target_blocks, draft_blocks] {
        ensure(blocks <= slots_max, || format!("{blocks} KV blocks, at most {slots_max}"))?;
    }
    ensure(target_blocks > 0, || "no memory is left for KV blocks".to_owned())?;
    target.allocate_kv(target_blocks)?;
    match drafter {
        None => {}
        Some(Unfinished::Model(draft)) => {
            ensure(draft_blocks > 0, || "the draft's KV pool has 0 blocks".to_owned())?;
            draft.allocate_kv(draft_blocks)?;
        }
        Some(Unfinished::Head(head)) => head.allocate_kv(target_blocks)?,
    }
    Ok(draft_blocks)
}

/// What models and caches take of the device's memory.
fn memory(target: &DeviceModel, drafter: Option<&Unfinished>) -> ExecutorMemory {
    let draft = drafter.map(|drafter| match drafter {
        Unfinished::Model(model) => &**model,
        Unfinished::Head(head) => head.layers(),
    });
    ExecutorMemory {
        target_weights: target.weight_bytes() as u64,
        draft_weights: draft.map_or(0, DeviceModel::weight_bytes) as u64,
        target_kv: target.kv_bytes() as u64,
        draft_kv: draft.map_or(0, DeviceModel::kv_bytes) as u64,
        hidden_states: target.hidden_rows.as_ref().map_or(0, HiddenRows::bytes) as u64,
    }
}

fn executor_info(
    target: &DeviceModel,
    draft: Option<&DraftWeights>,
    draft_blocks: u32,
    options: &CudaOptions,
    gpu: &Gpu,
) -> ExecutorInfo {
    let context = target.spec().context_tokens_max;
    let own_context =
        draft.and_then(DraftWeights::model).map_or(context, |model| model.spec.context_tokens_max);
    ExecutorInfo {
        backend: "cuda".to_owned(),
        device: gpu.info().name.clone(),
        vocab_size: target.spec().vocab_size as u32,
        context_tokens_max: context.min(own_context) as u32,
        block_tokens: BLOCK_TOKENS,
        target_blocks: target.blocks(),
        drafter: draft.map(|draft| draft.needs(draft_blocks)),
        batch_tokens_max: options.batch_tokens_max,
        batch_sequences_max: options.batch_sequences_max,
        draft_tokens_max: options.draft_tokens_max.min(draft.map_or(u32::MAX, DraftWeights::drafts_max)),
        sampled_rows_max: logit_rows_max(options) as u32,
        memory: ExecutorMemory::default(),
    }
}
