//! Runs the passes of a head: uploads inputs, enqueues the pass or replays its graph, waits.

use super::model::{HeadAddresses, HeadModel};
use super::sizes::HeadSizes;
use crate::executor::cuda::error::CudaError;
use crate::executor::cuda::graph::Graph;
use crate::executor::cuda::graphs::GraphCache;
use crate::executor::cuda::host_step::HostStep;
use crate::executor::cuda::runner::DeviceQueue;
use crate::executor::cuda::step_inputs::StepInputs;

/// Initial capacity for step inputs in 32-bit words.
const INPUT_WORDS: usize = 1 << 18;
/// Graphs of a head for each of a model: its passes have two sizes.
const GRAPHS_SHARE: usize = 2;

/// A head with its inputs and its graphs. Fill [`step`](Self::step), call [`run`](Self::run), then
/// read the results of the sampler.
pub struct HeadRunner {
    /// The head.
    pub model: HeadModel,
    /// The pass to run next, on the host.
    pub step: HostStep,
    inputs: StepInputs,
    graphs: GraphCache<HeadSizes>,
    capture: bool,
    tune: bool,
}

impl HeadRunner {
    /// A runner for a head that keeps up to twice as many graphs as a model's.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn new(model: HeadModel, graphs_max: usize, tune: bool) -> Result<HeadRunner, CudaError> {
        Ok(HeadRunner {
            step: HostStep::new(model.layers.room()),
            inputs: StepInputs::new(INPUT_WORDS)?,
            graphs: GraphCache::new(GRAPHS_SHARE * graphs_max),
            capture: graphs_max > 0,
            tune,
            model,
        })
    }

    /// Graphs captured so far.
    pub fn graph_count(&self) -> usize {
        self.graphs.len()
    }

    /// Runs the step as a pass of these sizes over hidden states at `states`, and waits for it. Passes
    /// that draft are captured.
    ///
    /// # Errors
    /// When the device fails. Most failures are sticky.
    pub fn run(
        &mut self,
        sizes: HeadSizes,
        states: *const u16,
        queue: &mut DeviceQueue,
    ) -> Result<(), CudaError> {
        if self.inputs.reserve(sizes.inputs(), &self.step)? {
            self.graphs.clear();
        }
        self.inputs.write(sizes.inputs(), &self.step);
        queue.marks.begin(&queue.stream)?;
        self.inputs.send(&queue.stream)?;
        self.submit(sizes, states, queue)?;
        queue.marks.end(&queue.stream)?;
        queue.stream.synchronize()
    }

    fn submit(
        &mut self,
        sizes: HeadSizes,
        states: *const u16,
        queue: &mut DeviceQueue,
    ) -> Result<(), CudaError> {
        let capture = self.capture && sizes.sequences > 0;
        if let Some(graph) = self.graphs.get(sizes).filter(|_| capture) {
            // All captured addresses belong to `self`, `queue` or the target, and graphs were dropped
            // above if the inputs have moved.
            return graph.launch(&queue.stream);
        }
        self.model.prepare(sizes, capture && self.tune, queue)?;
        self.enqueue(sizes, states, queue)?;
        if capture && self.graphs.has_room() {
            // Kernels can't be loaded during a capture: the run above has loaded all of them.
            queue.stream.synchronize()?;
            let graph = Graph::capture(&queue.stream, || self.enqueue(sizes, states, queue))?;
            self.graphs.insert(sizes, graph);
        }
        Ok(())
    }

    fn enqueue(
        &mut self,
        sizes: HeadSizes,
        states: *const u16,
        queue: &DeviceQueue,
    ) -> Result<(), CudaError> {
        let inputs = sizes.inputs();
        let step = self.inputs.addresses(inputs);
        let sampling = self.inputs.sampling_addresses(inputs);
        let at = HeadAddresses { states, step, sampling };
        // SAFETY: `run` has written and sent a step of these sizes, and the drafter fills it from checked
        // seeds: positions and blocks are within context and pool. Everything belongs to `self`, `queue`
        // or the target, which outlive the stream's work, and `queue` has one stream.
        unsafe { self.model.run(&at, sizes, &queue.gemm, &queue.stream) }
    }
}
