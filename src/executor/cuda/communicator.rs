//! Communication between the ranks of a tensor-parallel model: the seam behind which NCCL, or
//! another library, will stand. One GPU is a world of one rank.
#![forbid(unsafe_code)]

use super::buffer::DeviceBuffer;
use super::error::CudaError;
use super::stream::Stream;

/// One rank's view of the ranks that compute a model together. All ranks make the same calls
/// in the same order.
///
/// A call enqueues its work on the stream and does not wait for it, neither on the host nor by
/// allocating, so that a step with it can be captured as a graph. Results are bit-equal on all
/// ranks, and those of a row do not depend on the number of rows: a request must get the same
/// tokens in every batch.
pub trait Communicator: Send {
    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn world(&self) -> usize;

    /// Replaces the first `count` numbers, bf16, by their sums over all ranks.
    ///
    /// # Errors
    /// When a launch fails or a rank is lost.
    fn all_reduce(
        &self,
        numbers: &mut DeviceBuffer<u16>,
        count: usize,
        stream: &Stream,
    ) -> Result<(), CudaError>;

    /// Joins the columns of all ranks. Before, the buffer starts with this rank's part,
    /// `[rows][columns]`; after, with the whole, `[rows][world * columns]`, columns in the order
    /// of the ranks.
    ///
    /// # Errors
    /// When a launch fails or a rank is lost.
    fn all_gather(
        &self,
        numbers: &mut DeviceBuffer<f32>,
        rows: usize,
        columns: usize,
        stream: &Stream,
    ) -> Result<(), CudaError>;
}

/// A world of one rank: every part is the whole, and nothing is launched.
#[derive(Clone, Copy, Debug, Default)]
pub struct Solo;

impl Communicator for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn all_reduce(&self, _: &mut DeviceBuffer<u16>, _: usize, _: &Stream) -> Result<(), CudaError> {
        Ok(())
    }

    fn all_gather(&self, _: &mut DeviceBuffer<f32>, _: usize, _: usize, _: &Stream) -> Result<(), CudaError> {
        Ok(())
    }
}
