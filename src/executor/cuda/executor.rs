//! [`Executor`] on a GPU: batches in, tokens out; logits never leave the device.

use super::batch_check::{ensure, verify_sums};
use super::compaction::Compactor;
use super::draft_round::DraftRound;
use super::driver::Gpu;
use super::error::CudaError;
use super::forward::{DeviceModel, kv_block_elements};
use super::host_step::input_shape;
use super::options::{CudaOptions, KvBudget, VERIFY_ROWS_MAX, captured_rows, eager_rows};
use super::runner::{DeviceQueue, Runner, RunnerOptions, StepOutput};
use super::scratch::ScratchSizes;
use super::verify_batch;
use crate::executor::contract::{BatchContract, no_drafter};
use crate::executor::{Drafter, Executor, Target};
use crate::model::{LoadedModel, ModelSpec};
use crate::protocol::{
    BLOCK_TOKENS, Compaction, DraftForest, DraftSeed, DrafterNeeds, ExecutorError, ExecutorInfo, Micros,
    ModelRole, NodeId, Proposal, SequenceInput, Verdict, VerifyRow,
};

/// Target and draft on one GPU. The thread that calls becomes the device's thread.
pub struct CudaExecutor {
    info: ExecutorInfo,
    contract: BatchContract,
    gpu: Gpu,
    target: Runner,
    draft: Option<Runner>,
    round: DraftRound,
    /// Room for one call's proposals, reused.
    proposals: Vec<Proposal>,
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
        draft: Option<&LoadedModel>,
        options: CudaOptions,
    ) -> Result<CudaExecutor, ExecutorError> {
        options.check().map_err(ExecutorError::Malformed)?;
        check_pair(&target.spec, draft.map(|draft| &draft.spec))?;
        let gpu = Gpu::open(options.ordinal)?;
        let queue = DeviceQueue::new()?;
        let logit_rows = logit_rows_max(&options);
        let mut target_model = DeviceModel::new(target, scratch_sizes(&options, logit_rows), &queue.stream)?;
        let draft_rows = captured_rows(options.batch_sequences_max as usize).unwrap_or(VERIFY_ROWS_MAX);
        let mut draft_model = match draft {
            Some(draft) => Some(DeviceModel::new(draft, scratch_sizes(&options, draft_rows), &queue.stream)?),
            None => None,
        };
        allocate_pools(&mut target_model, draft_model.as_mut(), &options, &gpu)?;
        let info = executor_info(&target_model, draft_model.as_ref(), &options, &gpu);
        let runner = |model: DeviceModel, logit_rows_max: usize| {
            let (graphs_max, tune) = (options.graphs_max, options.tune);
            Runner::new(model, RunnerOptions { logit_rows_max, graphs_max, tune }, &queue)
        };
        let target = runner(target_model, logit_rows)?;
        let draft = draft_model.map(|model| runner(model, draft_rows)).transpose()?;
        queue.stream.synchronize()?;
        Ok(CudaExecutor {
            contract: BatchContract::new(&info),
            info,
            gpu,
            target,
            draft,
            round: DraftRound::default(),
            proposals: Vec::new(),
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
            if let Some(draft) = &mut executor.draft {
                draft.warm_up(sequences, StepOutput::Proposals, &mut executor.queue)?;
                draft.warm_up_prompts(tokens, &mut executor.queue)?;
            }
            Ok(())
        })
    }

    /// Graphs captured so far: target, draft.
    pub fn graph_counts(&self) -> (usize, usize) {
        (self.target.graph_count(), self.draft.as_ref().map_or(0, Runner::graph_count))
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

    fn draft_runner(&mut self) -> Result<(&mut Runner, &mut DraftRound, &mut DeviceQueue), ExecutorError> {
        match &mut self.draft {
            Some(draft) => Ok((draft, &mut self.round, &mut self.queue)),
            None => Err(no_drafter()),
        }
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
        if self.draft.is_some() { Some(self) } else { None }
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
                ModelRole::Draft => {
                    let (runner, _, queue) = executor.draft_runner()?;
                    read_logits(runner, input, queue)
                }
            };
            Ok(logits?)
        })
    }
}

impl Target for CudaExecutor {
    fn verify(&mut self, rows: &[VerifyRow], out: &mut Vec<Verdict>) -> Result<(), ExecutorError> {
        self.contract.verify(rows)?;
        verify_sums(rows, self.target_logit_rows)?;
        self.on_device(|executor| verify_batch::run(rows, &mut executor.target, &mut executor.queue, out))
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
            let mut proposals = std::mem::take(&mut executor.proposals);
            let (runner, round, queue) = executor.draft_runner()?;
            round.start(seeds, runner, queue, &mut proposals)?;
            let proposed = seeds.iter().zip(&proposals).enumerate().filter(|(_, (seed, _))| seed.limit > 0);
            for (index, (_, &proposal)) in proposed {
                forest.add_root(index as u32, proposal);
            }
            executor.proposals = proposals;
            Ok(())
        })
    }

    fn extend(&mut self, nodes: &[NodeId], forest: &mut DraftForest) -> Result<(), ExecutorError> {
        let mut kept = std::mem::take(&mut self.extended);
        self.contract.extend(nodes, forest, &mut kept)?;
        self.on_device(|executor| {
            let mut proposals = std::mem::take(&mut executor.proposals);
            let (runner, round, queue) = executor.draft_runner()?;
            let mask = |index: usize| forest.mask(nodes[index]).cloned();
            round.go_on(&kept, mask, runner, queue, &mut proposals)?;
            for (&node, &proposal) in nodes.iter().zip(&proposals) {
                forest.add_child(node, proposal);
            }
            (executor.proposals, executor.extended) = (proposals, kept);
            Ok(())
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

/// Gives both pools their blocks.
fn allocate_pools(
    target: &mut DeviceModel,
    draft: Option<&mut DeviceModel>,
    options: &CudaOptions,
    gpu: &Gpu,
) -> Result<(), ExecutorError> {
    let block_bytes = |model: &DeviceModel| 2 * kv_block_elements(model.spec());
    let both = block_bytes(target) + draft.as_ref().map_or(0, |draft| block_bytes(draft));
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
    if let Some(draft) = draft {
        ensure(draft_blocks > 0, || "the draft's KV pool has 0 blocks".to_owned())?;
        draft.allocate_kv(draft_blocks)?;
    }
    Ok(())
}

fn executor_info(
    target: &DeviceModel,
    draft: Option<&DeviceModel>,
    options: &CudaOptions,
    gpu: &Gpu,
) -> ExecutorInfo {
    let context = |model: &DeviceModel| model.spec().context_tokens_max as u32;
    ExecutorInfo {
        backend: "cuda".to_owned(),
        device: gpu.info().name.clone(),
        vocab_size: target.spec().vocab_size as u32,
        context_tokens_max: draft.map_or(context(target), |draft| context(draft).min(context(target))),
        block_tokens: BLOCK_TOKENS,
        target_blocks: target.blocks(),
        drafter: draft.map(|draft| DrafterNeeds::kv_cache(draft.blocks())),
        batch_tokens_max: options.batch_tokens_max,
        batch_sequences_max: options.batch_sequences_max,
        draft_tokens_max: options.draft_tokens_max,
    }
}
