//! CUDA graphs: a sequence of launches, recorded once and submitted by one call.

use std::ptr;

use cust::sys::{self, CUgraph, CUgraphExec, CUstreamCaptureMode_enum};

use super::error::{CudaError, check_driver};
use super::stream::Stream;

/// A recorded sequence of launches. Everything that they point to must stay where it is as
/// long as the graph is launched.
pub struct Graph {
    executable: CUgraphExec,
}

// SAFETY: a graph handle may be used from any thread whose current context owns it.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `enqueue` puts on `stream` instead of running it.
    ///
    /// # Errors
    /// Those of `enqueue`, and what cannot be captured (allocation, synchronisation).
    pub fn capture<E: From<CudaError>>(
        stream: &Stream,
        enqueue: impl FnOnce() -> Result<(), E>,
    ) -> Result<Graph, E> {
        let mode = CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives and nothing captures on it yet.
        check_driver(unsafe { sys::cuStreamBeginCapture_v2(stream.raw(), mode) }, "cuStreamBeginCapture")?;
        let enqueued = enqueue();
        let mut graph: CUgraph = ptr::null_mut();
        // SAFETY: ends the capture begun above, also when `enqueue` failed.
        let ended = unsafe { sys::cuStreamEndCapture(stream.raw(), &mut graph) };
        enqueued?;
        check_driver(ended, "cuStreamEndCapture")?;
        let mut executable: CUgraphExec = ptr::null_mut();
        // SAFETY: `graph` was just made; `executable` outlives the call, which writes to it.
        let made = unsafe { sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0) };
        // SAFETY: ours; the executable does not need it.
        unsafe { sys::cuGraphDestroy(graph) };
        check_driver(made, "cuGraphInstantiate")?;
        Ok(Graph { executable })
    }

    /// Enqueues the whole sequence.
    ///
    /// # Errors
    /// When the context is lost.
    pub fn launch(&self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: both handles live.
        check_driver(unsafe { sys::cuGraphLaunch(self.executable, stream.raw()) }, "cuGraphLaunch")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: created by us, dropped once. A failure means that the context is gone.
        unsafe { sys::cuGraphExecDestroy(self.executable) };
    }
}
