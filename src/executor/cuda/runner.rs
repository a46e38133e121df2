//! Runs the steps of one model: uploads inputs, enqueues forward pass and sampling, downloads
//! results. Replays a captured graph where the step sizes allow it, and launches kernel by kernel
//! otherwise.

use super::attention_plan::SequenceShape;
use super::buffer::{DeviceBuffer, PinnedBuffer};
use super::error::{CudaError, check_launch};
use super::ffi::kernels::{self, DraftSampleParams, SampleParams, VerifyParams};
use super::forward::{DeviceModel, StepSizes};
use super::gemm::Gemm;
use super::graph::Graph;
use super::graphs::GraphCache;
use super::host_step::HostStep;
use super::options::{BATCH_SEQUENCES_MAX, EAGER_ROWS, captured_rows, captured_sizes, eager_rows};
use super::step_inputs::StepInputs;
use super::step_layout::InputSizes;
use super::step_marks::StepMarks;
use super::step_results::{OUTCOME_WORDS, PROPOSAL_WORDS, VerdictResults, VerdictWords};
use super::stream::Stream;
use crate::protocol::{BLOCK_TOKENS, BlockId};

/// Initial capacity for step inputs in 32-bit words: enough for the plans and block tables of
/// typical steps.
const INPUT_WORDS: usize = 1 << 20;

/// What the models on one device share.
pub struct DeviceQueue {
    /// The stream that all work is enqueued on.
    pub stream: Stream,
    /// Matrix products.
    pub gemm: Gemm,
    /// Events at the start and the end of the last steps.
    pub marks: StepMarks,
}

impl DeviceQueue {
    /// Creates a queue in the current context.
    ///
    /// # Errors
    /// When the driver or cuBLASLt refuses.
    pub fn new() -> Result<DeviceQueue, CudaError> {
        Ok(DeviceQueue { stream: Stream::new()?, gemm: Gemm::new()?, marks: StepMarks::new()? })
    }
}

/// What a step computes from its logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StepOutput {
    /// Nothing: there are none, or the host reads them.
    Nothing,
    /// A draft token per row.
    Proposals,
    /// The verification of drafts.
    Verdicts,
}

/// Everything that determines a step's launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct StepKey {
    step: StepSizes,
    sequences: usize,
    output: StepOutput,
    filtered: bool,
}

impl StepKey {
    fn inputs(&self) -> InputSizes {
        let StepSizes { rows, logit_rows, .. } = self.step;
        InputSizes { rows, logit_rows, sequences: self.sequences, sources: 0 }
    }

    /// Layout of the results of a verification.
    fn verdicts(&self) -> VerdictWords {
        VerdictWords::of(self.sequences, self.step.logit_rows)
    }
}

/// Limits and settings of a runner.
#[derive(Clone, Copy, Debug)]
pub struct RunnerOptions {
    /// Maximum rows of logits in a step.
    pub logit_rows_max: usize,
    /// Maximum number of captured graphs; 0 turns capturing off.
    pub graphs_max: usize,
    /// Whether to choose the GEMM algorithms of captured sizes by timing them.
    pub tune: bool,
}

/// A model with its input and result buffers and its graphs. Fill [`step`](Self::step), call
/// [`run`](Self::run), then read the results.
pub struct Runner {
    /// The model.
    pub model: DeviceModel,
    /// The step to run next, on the host.
    pub step: HostStep,
    inputs: StepInputs,
    sample_scratch: DeviceBuffer<u8>,
    results: DeviceBuffer<u32>,
    results_host: PinnedBuffer<u32>,
    /// Sizes of the last step, which determine the layout of the results.
    last: Option<StepKey>,
    graphs: GraphCache<StepKey>,
    options: RunnerOptions,
}

impl Runner {
    /// Allocates input and result buffers for a model.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn new(model: DeviceModel, options: RunnerOptions, queue: &DeviceQueue) -> Result<Runner, CudaError> {
        let rows = options.logit_rows_max;
        let words = rows * PROPOSAL_WORDS.max(2) + rows + BATCH_SEQUENCES_MAX as usize * OUTCOME_WORDS;
        // SAFETY: computes a size.
        let scratch = unsafe { kernels::specserve_sample_scratch_bytes(rows as i32) };
        Ok(Runner {
            step: HostStep::new(model.room()),
            inputs: StepInputs::new(INPUT_WORDS)?,
            sample_scratch: DeviceBuffer::filled(0, scratch, &queue.stream)?,
            results: DeviceBuffer::filled(0, words, &queue.stream)?,
            results_host: PinnedBuffer::zeroed(words)?,
            last: None,
            graphs: GraphCache::new(options.graphs_max),
            options,
            model,
        })
    }

    /// Clears the step.
    pub fn begin(&mut self) {
        self.step.clear();
    }

    /// Plans the attention of these sequences, in the order of their tokens.
    pub fn plan<'a>(&mut self, sequences: impl Iterator<Item = SequenceShape<'a>> + Clone) {
        self.step.plan.build(sequences);
    }

    /// Runs the step and waits for its results.
    ///
    /// # Errors
    /// When the device fails. Most failures are sticky.
    pub fn run(&mut self, output: StepOutput, queue: &mut DeviceQueue) -> Result<(), CudaError> {
        let plan = &self.step.plan;
        let capturable = plan.prefill_items.is_empty() && self.options.graphs_max > 0;
        let captured = captured_rows(plan.rows()).filter(|_| capturable);
        let key = self.key(output, captured);
        self.submit(key, captured.is_some(), queue)?;
        queue.marks.end(&queue.stream)?;
        queue.stream.synchronize()
    }

    /// Prepares every captured size up to the one that fits `rows`: chooses algorithms, loads
    /// kernels, captures graphs.
    ///
    /// # Errors
    /// When the device fails.
    pub fn warm_up(
        &mut self,
        rows: usize,
        output: StepOutput,
        queue: &mut DeviceQueue,
    ) -> Result<(), CudaError> {
        self.begin();
        self.plan(std::iter::empty());
        for rows in captured_sizes(rows) {
            for large in [false, true] {
                let logit_rows = captured_rows(rows.min(self.options.logit_rows_max)).unwrap_or(rows);
                let step = StepSizes { rows, logit_rows, decode: true, large, prefill_items: 0 };
                let sequences = rows.min(BATCH_SEQUENCES_MAX as usize);
                let key = StepKey { step, sequences, output, filtered: false };
                self.submit(key, self.options.graphs_max > 0, queue)?;
                queue.stream.synchronize()?;
            }
        }
        Ok(())
    }

    /// Runs prompts of representative lengths up to `tokens_max` and chooses the algorithms for all
    /// other lengths, so that the first requests don't wait for kernels to load. Overwrites KV blocks
    /// from 0 on: none may be in use.
    ///
    /// # Errors
    /// When the device fails.
    pub fn warm_up_prompts(&mut self, tokens_max: usize, queue: &mut DeviceQueue) -> Result<(), CudaError> {
        let room = self.model.blocks() as usize * BLOCK_TOKENS as usize;
        let longest = tokens_max.min(room).min(self.model.spec().context_tokens_max);
        let blocks: Vec<BlockId> = (0..longest.div_ceil(BLOCK_TOKENS as usize) as u32).map(BlockId).collect();
        for tokens in prompt_lengths(longest) {
            self.begin();
            self.step.tokens.resize(tokens, 0);
            let prompt =
                SequenceShape { start: 0, tokens, drafts: 0, tree: None, cached: 0, blocks: &blocks };
            self.plan(std::iter::once(prompt));
            self.submit(self.key(StepOutput::Nothing, None), false, queue)?;
            queue.stream.synchronize()?;
        }
        for rows in (EAGER_ROWS..=eager_rows(tokens_max)).step_by(EAGER_ROWS) {
            let step = StepSizes { rows, logit_rows: 0, decode: false, large: false, prefill_items: 1 };
            self.model.prepare(step, false, &mut queue.gemm, &queue.stream)?;
        }
        Ok(())
    }

    /// Padded sizes of the current step.
    fn key(&self, output: StepOutput, captured: Option<usize>) -> StepKey {
        let plan = &self.step.plan;
        let rows = captured.unwrap_or_else(|| eager_rows(plan.rows()));
        let logits = self.step.gather.len();
        let logit_rows = if logits == 0 { 0 } else { captured_rows(logits).unwrap_or(logits) };
        let step = StepSizes {
            rows,
            logit_rows,
            decode: captured.is_some() || !plan.items.is_empty(),
            large: plan.large,
            prefill_items: plan.prefill_items.len(),
        };
        let sequences = rows.min(BATCH_SEQUENCES_MAX as usize);
        let output = if logits == 0 { StepOutput::Nothing } else { output };
        StepKey { step, sequences, output, filtered: self.step.sampling.filtered() }
    }

    fn submit(&mut self, key: StepKey, capture: bool, queue: &mut DeviceQueue) -> Result<(), CudaError> {
        if self.inputs.reserve(key.inputs(), &self.step)? {
            self.graphs.clear();
        }
        self.inputs.write(key.inputs(), &self.step);
        queue.marks.begin(&queue.stream)?;
        self.inputs.send(&queue.stream)?;
        self.last = Some(key);
        if let Some(graph) = self.graphs.get(key).filter(|_| capture) {
            // All captured addresses belong to `self` or `queue`, and graphs were dropped above if
            // the inputs have moved.
            return graph.launch(&queue.stream);
        }
        self.model.prepare(key.step, capture && self.options.tune, &mut queue.gemm, &queue.stream)?;
        self.enqueue(key, queue)?;
        if capture && self.graphs.has_room() {
            // Kernels can't be loaded during a capture: the run above has loaded all of them.
            queue.stream.synchronize()?;
            let graph = Graph::capture(&queue.stream, || self.enqueue(key, queue))?;
            self.graphs.insert(key, graph);
        }
        Ok(())
    }

    /// Enqueues forward pass, sampling and the copy of the results to the host.
    fn enqueue(&mut self, key: StepKey, queue: &DeviceQueue) -> Result<(), CudaError> {
        let step = self.inputs.addresses(key.inputs());
        // SAFETY: `submit` has written and sent a step of these sizes, and the executor has checked
        // that its positions and blocks are within context and pool. Everything belongs to `self` or
        // `queue`, which outlive the stream's work, and `queue` has one stream.
        unsafe { self.model.run(&step, key.step, &queue.gemm, &queue.stream)? };
        let words = match key.output {
            StepOutput::Nothing => return Ok(()),
            StepOutput::Proposals => self.propose(key, &queue.stream)?,
            StepOutput::Verdicts => self.verify(key, &queue.stream)?,
        };
        // SAFETY: the pinned memory lives as long as the graph, and is read only after the stream
        // has been synchronized.
        unsafe { self.results.download_async(0, &mut self.results_host[..words], &queue.stream) }
    }

    fn sample_params(&mut self, key: StepKey) -> SampleParams {
        let vocab = self.model.spec().vocab_size;
        let addresses = self.inputs.sampling_addresses(key.inputs());
        SampleParams {
            logits: self.model.logits().mut_ptr(),
            stride: vocab as i64,
            rows: addresses.rows,
            adjustments: addresses.adjustments,
            masks: addresses.masks,
            scratch: self.sample_scratch.mut_ptr().cast(),
            row_count: key.step.logit_rows as i32,
            vocab: vocab as i32,
            filtered: i32::from(key.filtered),
        }
    }

    /// Enqueues the sampling of draft tokens; returns the number of result words.
    fn propose(&mut self, key: StepKey, stream: &Stream) -> Result<usize, CudaError> {
        let words = key.step.logit_rows * PROPOSAL_WORDS;
        let params = DraftSampleParams {
            sample: self.sample_params(key),
            proposals: self.results.mut_ptr().cast(),
            tokens: self.results.mut_ptr().wrapping_add(words).cast(),
        };
        // SAFETY: logits, scratch memory and results have room for `logit_rows_max` rows; the
        // sampling inputs were laid out for this key by `submit`.
        check_launch(unsafe { kernels::specserve_draft_sample(&params, stream.raw()) }, "draft_sample")?;
        Ok(words)
    }

    /// Enqueues the verification of drafts; returns the number of result words.
    fn verify(&mut self, key: StepKey, stream: &Stream) -> Result<usize, CudaError> {
        let addresses = self.inputs.sampling_addresses(key.inputs());
        let layout = key.verdicts();
        let results = self.results.mut_ptr();
        let params = VerifyParams {
            sample: self.sample_params(key),
            sequences: addresses.sequences,
            sequence_of: addresses.sequence_of,
            drafts: addresses.drafts,
            parents: addresses.parents,
            outcomes: results.cast(),
            tokens: results.wrapping_add(layout.tokens).cast(),
            path: results.wrapping_add(layout.path).cast(),
            sequence_count: key.sequences as i32,
        };
        // SAFETY: logits, scratch memory and results have room for `logit_rows_max` rows; the
        // sampling inputs were laid out for this key by `submit`.
        check_launch(unsafe { kernels::specserve_verify(&params, stream.raw()) }, "verify")?;
        Ok(layout.end)
    }

    /// Results of the last step as words. Valid after [`run`](Self::run).
    pub fn results(&self) -> &[u32] {
        &self.results_host
    }

    /// Results of the last verification. Valid after [`run`](Self::run).
    pub fn verdicts(&self) -> VerdictResults<'_> {
        let layout = self.last.map_or(VerdictWords::of(0, 0), |key| key.verdicts());
        VerdictResults::new(&self.results_host, layout)
    }

    /// Number of graphs captured so far.
    pub fn graph_count(&self) -> usize {
        self.graphs.len()
    }
}

/// Prompt lengths to warm up with. The kernels that run a prompt depend on its length, but powers of
/// two times the smallest length and the longest one cover them.
fn prompt_lengths(longest: usize) -> impl Iterator<Item = usize> {
    let doubled = std::iter::successors(Some(2 * EAGER_ROWS), |tokens| Some(2 * tokens));
    doubled.take_while(move |&tokens| tokens < longest).chain(Some(longest))
}
